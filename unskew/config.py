"""The configuration: Dassl's default tree and ours, layered from three axes, frozen once.

Later layers win: defaults < `COMMON` < `configs/datasets/D.yaml` < `configs/backbones/B.yaml` <
`configs/trainers/T.yaml` < T's `SCHEDULES` < D's `OVERRIDES` < `KEY VALUE` pairs.

The names and the YAML are checked before anything heavy is imported; torch is loaded only by
`load`, when it mounts the trainers' own nodes.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import yaml
from yacs.config import CfgNode

import unskew
from unskew.registry import discover, unknown_name

# What the few-shot and long-tailed trainers of CLIP's field share, where Dassl's defaults are for
# domain adaptation: CoOp's schedule, augmentation and test batch.
COMMON = {
    "INPUT": {"INTERPOLATION": "bicubic", "TRANSFORMS": ["random_resized_crop", "random_flip", "normalize"]},
    "DATASET": {"ROOT": "data"},
    "DATALOADER": {"TEST": {"BATCH_SIZE": 100}},
    "OPTIM": {
        "NAME": "sgd",
        "LR": 0.002,
        "LR_SCHEDULER": "cosine",
        "MAX_EPOCH": 50,
        "WARMUP_EPOCH": 1,
        "WARMUP_TYPE": "constant",
    },
}


def _node(**values) -> CfgNode:
    return CfgNode(values)


def get_cfg_default() -> CfgNode:
    """The default tree: every key of Dassl with its default, and ours; no trainer's own node yet."""
    loader = {"SAMPLER": "RandomSampler", "BATCH_SIZE": 32, "N_DOMAIN": 0, "N_INS": 16}
    return _node(
        VERSION=1,
        OUTPUT_DIR="./output",
        RESUME="",
        SEED=1,
        USE_CUDA=True,
        VERBOSE=True,
        INPUT=_node(
            SIZE=(224, 224),
            INTERPOLATION="bilinear",
            TRANSFORMS=(),
            NO_TRANSFORM=False,
            PIXEL_MEAN=[0.485, 0.456, 0.406],
            PIXEL_STD=[0.229, 0.224, 0.225],
            CROP_PADDING=4,
            RRCROP_SCALE=(0.08, 1.0),
            CUTOUT_N=1,
            CUTOUT_LEN=16,
            GN_MEAN=0.0,
            GN_STD=0.15,
            RANDAUGMENT_N=2,
            RANDAUGMENT_M=10,
            COLORJITTER_B=0.4,
            COLORJITTER_C=0.4,
            COLORJITTER_S=0.4,
            COLORJITTER_H=0.1,
            RGS_P=0.2,
            GB_P=0.5,
            GB_K=21,
            VIEWS=8,  # augmented views per training image that are encoded once; 0 encodes at every step
        ),
        DATASET=_node(
            ROOT="",
            NAME="",
            SOURCE_DOMAINS=(),
            TARGET_DOMAINS=(),
            NUM_LABELED=-1,
            LONGTAIL=False,  # a long-tailed set: runs on all its training images are called lt, for their tables
            NUM_SHOTS=-1,  # -1: all training images
            NUM_VAL_SHOTS=-1,  # -1: min(NUM_SHOTS, 4), as CoOp draws
            SEED=-1,  # of the few-shot sample; -1: SEED
            HOLDOUT=0.0,  # part of a class's training images that serves as val, in runs on all images without one
            IMBALANCE=100,  # of cifar100_lt: images of the most to those of the least frequent class
            TEMPLATE="",  # the prompt of a class, "a photo of a {}."; empty: the dataset's own
            CLASSNAMES="",  # of folder and csv: a file that names the classes; empty: their folders' names
            SUBSAMPLE_CLASSES="all",  # all, base or new
            VAL_PERCENT=0.1,
            STL10_FOLD=-1,
            CIFAR_C_TYPE="",
            CIFAR_C_LEVEL=1,
            ALL_AS_UNLABELED=False,
        ),
        DATALOADER=_node(
            NUM_WORKERS=4,
            K_TRANSFORMS=1,
            RETURN_IMG0=False,
            TRAIN_X=CfgNode(dict(loader)),
            TRAIN_U=CfgNode({**loader, "SAME_AS_X": True}),
            TEST=_node(SAMPLER="SequentialSampler", BATCH_SIZE=32),
        ),
        MODEL=_node(
            INIT_WEIGHTS="",
            BACKBONE=_node(NAME="", PRETRAINED=True),
            HEAD=_node(NAME="", HIDDEN_LAYERS=(), ACTIVATION="relu", BN=True, DROPOUT=0.0),
        ),
        OPTIM=_node(
            NAME="adam",
            LR=0.0003,
            WEIGHT_DECAY=5e-4,
            MOMENTUM=0.9,
            SGD_DAMPNING=0,
            SGD_NESTEROV=False,
            RMSPROP_ALPHA=0.99,
            ADAM_BETA1=0.9,
            ADAM_BETA2=0.999,
            STAGED_LR=False,
            NEW_LAYERS=(),
            BASE_LR_MULT=0.1,
            LR_SCHEDULER="single_step",
            STEPSIZE=(-1,),
            GAMMA=0.1,
            MAX_EPOCH=10,
            WARMUP_EPOCH=-1,
            WARMUP_TYPE="linear",
            WARMUP_CONS_LR=1e-5,
            WARMUP_MIN_LR=1e-5,
            WARMUP_RECOUNT=True,
        ),
        TRAIN=_node(
            CHECKPOINT_FREQ=0,
            PRINT_FREQ=10,
            COUNT_ITER="train_x",
            ACCUMULATE=1,  # batches whose gradients are averaged before each step
        ),
        TEST=_node(
            EVALUATOR="Classification",
            PER_CLASS_RESULT=False,
            COMPUTE_CMAT=False,
            NO_TEST=False,
            SPLIT="test",
            FINAL_MODEL="last_step",
            CROPS=1,  # logits are averaged over so many crops of an image: 1, 5 or 10
        ),
        TRAINER=_node(
            NAME="",
            CLASS="",  # the registered class, where a config lends it a name of its own; empty: NAME
            PREC="fp32",  # fp32, fp16, bf16 or amp
        ),
    )


def _folder(axis: str) -> Path:
    """`configs/<axis>`, in a source checkout or inside the installed package."""
    for place in unskew.__path__:
        folder = Path(place) / "configs" / axis
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"the folder configs/{axis} is missing from the installation; install unskew again")


def names(axis: str) -> list[str]:
    """The stems of the YAML files of one axis: "datasets", "backbones" or "trainers"."""
    return sorted(path.stem for path in _folder(axis).glob("*.yaml"))


def check_name(axis: str, name: str) -> str:
    """``name`` if it is a stem of that axis; else a ``ValueError`` that lists the near ones."""
    known = names(axis)
    if name not in known:
        raise ValueError(unknown_name(axis.removesuffix("s"), name, known))
    return name


def check_backbone(name: str) -> str:
    """A backbone's name is a config's stem, CLIP's own short name ("ViT-B/16") or "ARCH@TAG"."""
    if "@" not in name:
        check_name("backbones", name.replace("/", "-"))
    return name


def read_yaml(path: Path) -> dict:
    """The mapping in a YAML file; a ``ValueError`` that names the file if it holds anything else."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no config file '{path}'")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"'{path}' is not valid YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"'{path}' must hold a mapping of config keys, got {type(content).__name__}")
    return content


def flatten(tree: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """The leaves of a config tree as ("OPTIM.LR", value)."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def set_key(cfg: CfgNode, key: str, value: object, source: str) -> None:
    """Set one leaf, with yacs's type rules.

    Args:
        source: where the value comes from ("configs/trainers/GLA.yaml"), for the error.

    Raises:
        ValueError: the key does not exist (the near ones are listed) or the type does not fit.
    """
    leaves = dict(flatten(cfg))
    if key not in leaves:
        raise ValueError(f"{source}: {_unknown_key(key, leaves)}")
    if isinstance(leaves[key], str):  # yacs would read "2024" as a number
        node, last = cfg, key.split(".")
        for part in last[:-1]:
            node = node[part]
        node[last[-1]] = str(value)
        return
    if isinstance(leaves[key], float) and isinstance(value, str | int):  # YAML reads 1e-5 as a string
        try:
            value = float(value)
        except ValueError as error:
            raise ValueError(f"{source}: {key} takes a number, got '{value}'") from error
    try:
        cfg.merge_from_list([key, value])
    except ValueError as error:
        expected = type(leaves[key]).__name__
        raise ValueError(f"{source}: {key} takes a value of type {expected}, got {value!r}") from error


def _unknown_key(key: str, leaves: Iterable[str]) -> str:
    """Near keys by their last part too, since people forget the node rather than the name."""
    last = key.split(".")[-1]
    same = [leaf for leaf in leaves if leaf.split(".")[-1] == last]
    if same:
        return f"unknown config key '{key}'; did you mean {' or '.join(same[:3])}?"
    return (
        unknown_name("config key", key, leaves)
        .split(" (known:")[0]
        .replace("choose one of", "see get_cfg_default() in unskew/config.py and defaults() beside each trainer")
    )


def _merge(cfg: CfgNode, tree: dict, source: str) -> None:
    for key, value in flatten(tree):
        set_key(cfg, key, value, source)


def _pairs(opts: Sequence) -> list[tuple[str, object]]:
    opts = list(opts)
    if len(opts) % 2:
        raise ValueError(f"config overrides come in pairs KEY VALUE; '{opts[-1]}' has no value")
    return list(zip(opts[::2], opts[1::2], strict=True))


def _mount_trainers(cfg: CfgNode) -> None:
    """`TRAINER.<NAME>` for each module in trainers/ that has `defaults()`; registers datasets too."""
    for module in discover("unskew.trainers"):
        if hasattr(module, "defaults"):
            cfg.TRAINER[module.__name__.split(".")[-1].upper()] = module.defaults()
    discover("unskew.datasets")


def load(dataset: str, backbone: str = "", trainer: str = "", opts: Sequence = (), config_file: str = "") -> CfgNode:
    """The frozen config of one run.

    Args:
        dataset: a stem in `configs/datasets`, or the path of a YAML whose stem names the dataset.
        backbone: a backbone's name; empty: the dataset's default.
        trainer: a stem in `configs/trainers`.
        opts: KEY VALUE pairs, flat; they win over everything.
        config_file: one more YAML, merged after the trainer's own (CoOp's ``--config-file``).

    Raises:
        ValueError: an unknown name or key (the near ones are listed), or a value of the wrong type.
    """
    pairs, extra = _pairs(opts), read_yaml(Path(config_file)) if config_file else {}
    extra_schedules = extra.pop("SCHEDULES", [])
    given = {**dict(flatten(extra)), **dict(pairs)}
    dataset_file = Path(dataset) if dataset.endswith((".yaml", ".yml")) else None
    dataset = check_name("datasets", dataset_file.stem if dataset_file else dataset)
    check_name("trainers", trainer)
    dataset_tree = read_yaml(dataset_file or _folder("datasets") / f"{dataset}.yaml")
    overrides = dataset_tree.pop("OVERRIDES", {})

    cfg = get_cfg_default()
    _mount_trainers(cfg)
    _merge(cfg, COMMON, "COMMON in unskew/config.py")
    _merge(cfg, dataset_tree, f"configs/datasets/{dataset}.yaml")
    backbone = backbone or str(given.get("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME))
    for key, value in backbone_layer(backbone).items():
        set_key(cfg, key, value, f"configs/backbones, {backbone}")
    backbone = cfg.MODEL.BACKBONE.NAME

    shots = _integer("DATASET.NUM_SHOTS", given.get("DATASET.NUM_SHOTS", cfg.DATASET.NUM_SHOTS))
    for layer in _trainer_layers(trainer, given):
        tree = read_yaml(_folder("trainers") / f"{layer}.yaml")
        schedules = tree.pop("SCHEDULES", [])
        cfg.TRAINER.CLASS = ""  # a base's does not count for the trainer around it
        _merge(cfg, tree, f"configs/trainers/{layer}.yaml")
        _merge_schedules(cfg, schedules, shots, dataset, f"configs/trainers/{layer}.yaml")
        _merge(cfg, overrides.get(layer, {}), f"configs/datasets/{dataset}.yaml, OVERRIDES")
    _merge(cfg, extra, config_file)
    _merge_schedules(cfg, extra_schedules, shots, dataset, config_file)
    for key, value in pairs:
        set_key(cfg, key, value, "the command line")

    cfg.DATASET.NAME, cfg.TRAINER.NAME, cfg.MODEL.BACKBONE.NAME = dataset, trainer, backbone
    if cfg.SEED >= 2**63:
        raise ValueError(f"SEED must be below 2**63, got {cfg.SEED}")
    cfg.freeze()
    return cfg


def backbone_layer(name: str) -> dict[str, object]:
    """The leaves that a backbone's name stands for: its YAML's, where it has one, and the name as it counts.

    The spelling that counts is the YAML's, "ViT-B/16" for "ViT-B-16".
    """
    path = _folder("backbones") / f"{check_backbone(name).replace('/', '-')}.yaml"
    return {"MODEL.BACKBONE.NAME": name, **dict(flatten(read_yaml(path) if path.is_file() else {}))}


def derive(cfg: CfgNode, values: dict[str, object]) -> CfgNode:
    """A frozen copy of ``cfg`` with other values, by key ("OPTIM.LR").

    Raises:
        ValueError: a key does not exist or a value's type does not fit.
    """
    changed = cfg.clone()
    changed.defrost()
    for key, value in values.items():
        set_key(changed, key, value, "config.derive")
    changed.freeze()
    return changed


def _merge_schedules(cfg: CfgNode, rows: Sequence[dict], shots: int, dataset: str, source: str) -> None:
    for row in rows:
        if shots in row.get("shots", [shots]) and dataset in row.get("datasets", [dataset]):
            _merge(cfg, row["set"], f"{source}, SCHEDULES")


def _integer(key: str, value: object) -> int:
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key} takes a whole number, got {value!r}") from error


def read_base(trainer: str) -> str | None:
    """The base that a trainer's config names (`TRAINER.GLA.BASE`), if any."""
    tree = dict(flatten(read_yaml(_folder("trainers") / f"{trainer}.yaml")))
    return tree.get(f"TRAINER.{class_name(trainer).upper()}.BASE")


def class_name(trainer: str) -> str:
    """The registered class of a trainer config: `TRAINER.CLASS` where it lends one a name of its own."""
    tree = dict(flatten(read_yaml(_folder("trainers") / f"{trainer}.yaml")))
    return str(tree.get("TRAINER.CLASS", trainer))


def has_members(trainer: str) -> bool:
    """Whether a trainer's config names its backbones itself (`TRAINER.BACKDOOR.MEMBERS`)."""
    tree = dict(flatten(read_yaml(_folder("trainers") / f"{trainer}.yaml")))
    return f"TRAINER.{class_name(trainer).upper()}.MEMBERS" in tree


def _trainer_layers(trainer: str, pairs: dict, above: tuple[str, ...] = ()) -> list[str]:
    """The trainer configs to merge, in order: that of a trainer's base comes before its own.

    Args:
        above: the classes of the trainers that this one is a base of.
    """
    base = pairs.get(f"TRAINER.{class_name(trainer).upper()}.BASE", read_base(trainer))
    if base is None:
        return [trainer]
    chain = (*above, class_name(trainer))
    if class_name(check_name("trainers", str(base))) in chain:
        raise ValueError(
            f"TRAINER.{chain[-1].upper()}.BASE cannot be {base}: {' over '.join([*chain, str(base)])} has no end; "
            "choose another trainer"
        )
    return [*_trainer_layers(str(base), pairs, chain), trainer]


def dump(cfg: CfgNode) -> str:
    """The config as YAML that `read_yaml` and `load(config_file=...)` read back."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return list(value) if isinstance(value, tuple) else copy.deepcopy(value)

    return yaml.safe_dump(plain(cfg), sort_keys=False)
