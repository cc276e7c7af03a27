"""The configuration, layered from three axes and frozen once.

Later layers win: `get_cfg_default` < `COMMON` < `configs/datasets/D.yaml` < `configs/backbones/B.yaml` <
`configs/trainers/T.yaml` < T's `SCHEDULES` < D's `OVERRIDES` < `KEY VALUE` pairs.

The names and the YAML are checked before anything heavy is imported; torch is loaded only by
`load`, when it mounts the trainers' own nodes.
"""

import copy
import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import yaml
from yacs.config import CfgNode

import unskew
from unskew.config import plugins
from unskew.config.defaults import COMMON, get_cfg_default
from unskew.utils.registry import discover, unknown_name

FINAL_MODELS = ("last_step", "best_val")


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
    """``name`` if it is a stem of that axis or a plugin's; else a ``ValueError`` that lists the near ones."""
    known = [*names(axis), *plugins.names(axis)]
    if name not in known:
        module = _folder(axis).parents[1] / axis / f"{name.lower()}.py"
        if module.is_file() and name.lower() not in map(str.lower, known):
            raise ValueError(f"'{module}' needs a config: configs/{axis}/{name}.yaml, which may be empty")
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
        .replace("choose one of", "see unskew/config/defaults.py and defaults() beside each trainer")
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


def all_defaults() -> CfgNode:
    """`get_cfg_default` with every trainer's own node; our trainers and datasets are registered then."""
    cfg = get_cfg_default()
    _mount_trainers(cfg)
    return cfg


def load(dataset: str, backbone: str = "", trainer: str = "", opts: Sequence = (), config_file: str = "") -> CfgNode:
    """The frozen config of one run.

    Args:
        dataset: a stem in `configs/datasets`, a plugin's dataset, or the path of a YAML, see `dataset_layer`.
        backbone: a backbone's name; empty: the dataset's default.
        trainer: a stem in `configs/trainers` or a plugin's trainer.
        opts: KEY VALUE pairs, flat; they win over everything.
        config_file: one more YAML, merged after the trainer's own (CoOp's ``--config-file``).

    Raises:
        ValueError: an unknown name or key (the near ones are listed), or a value of the wrong type.
    """
    pairs, extra = _pairs(opts), read_yaml(Path(config_file)) if config_file else {}
    extra_schedules = extra.pop("SCHEDULES", [])
    given = {**dict(flatten(extra)), **dict(pairs)}
    dataset, dataset_tree, dataset_source = dataset_layer(dataset)
    overrides = dataset_tree.pop("OVERRIDES", {})
    layers = _trainer_layers(check_name("trainers", trainer), given)

    cfg = all_defaults()
    unused = plugins.extend(cfg, (dataset, *layers))
    _merge(cfg, COMMON, "COMMON in unskew/config/defaults.py")
    _merge(cfg, dataset_tree, dataset_source)
    backbone = backbone or str(given.get("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME))
    if not backbone:
        way = "MODEL.BACKBONE.NAME" if has_members(trainer) else "--backbone"
        raise ValueError(f"'{dataset}' has no default backbone: give one, such as {way} ViT-B/16")
    for key, value in backbone_layer(backbone).items():
        set_key(cfg, key, value, f"configs/backbones, {backbone}")
    backbone = cfg.MODEL.BACKBONE.NAME

    shots = _integer("DATASET.NUM_SHOTS", given.get("DATASET.NUM_SHOTS", cfg.DATASET.NUM_SHOTS))
    for layer in layers:
        tree = _tree("trainers", layer)
        schedules = tree.pop("SCHEDULES", [])
        cfg.TRAINER.CLASS = ""  # a base's does not count for the trainer around it
        _merge(cfg, tree, f"configs/trainers/{layer}.yaml")
        _merge_schedules(cfg, schedules, shots, dataset, f"configs/trainers/{layer}.yaml")
        _merge(cfg, overrides.get(layer, {}), f"{dataset_source}, OVERRIDES")
    _merge(cfg, extra, config_file)
    _merge_schedules(cfg, extra_schedules, shots, dataset, config_file)
    for key, value in pairs:
        set_key(cfg, key, value, "the command line")

    for key in unused:
        *above, last = key.split(".")
        del functools.reduce(getattr, above, cfg)[last]
    cfg.DATASET.NAME, cfg.TRAINER.NAME, cfg.MODEL.BACKBONE.NAME = dataset, trainer, backbone
    if cfg.SEED >= 2**63:
        raise ValueError(f"SEED must be below 2**63, got {cfg.SEED}")
    if cfg.OPTIM.MAX_EPOCH < 0:
        raise ValueError(f"OPTIM.MAX_EPOCH must be 0 or more, got {cfg.OPTIM.MAX_EPOCH}")
    if cfg.TEST.FINAL_MODEL not in FINAL_MODELS:
        raise ValueError(unknown_name("TEST.FINAL_MODEL", cfg.TEST.FINAL_MODEL, FINAL_MODELS))
    cfg.freeze()
    return cfg


def _tree(axis: str, name: str) -> dict:
    """What the YAML of a name holds; nothing for a plugin's, which has none."""
    return read_yaml(_folder(axis) / f"{name}.yaml") if name in names(axis) else {}


def dataset_layer(dataset: str) -> tuple[str, dict, str]:
    """A dataset's name, the keys of its YAML and where they stand.

    Args:
        dataset: a name, or the path of a YAML. Its dataset is the one that its ``DATASET.NAME`` says, if there is one
            of that name; else the one of its stem, since CoOp's ``eurosat.yaml`` says "EuroSAT".
    """
    if not dataset.endswith((".yaml", ".yml")):
        return check_name("datasets", dataset), _tree("datasets", dataset), f"configs/datasets/{dataset}.yaml"
    tree, stem = read_yaml(Path(dataset)), Path(dataset).stem
    said = str(dict(flatten(tree)).get("DATASET.NAME") or stem)
    known = [*names("datasets"), *plugins.names("datasets")]
    return check_name("datasets", stem if stem in known and said not in known else said), tree, dataset


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
        for key in row.keys() - {"shots", "datasets", "set"}:
            raise ValueError(f"{source}: {unknown_name('key of SCHEDULES', key, ('shots', 'datasets', 'set'))}")
        if shots in row.get("shots", [shots]) and dataset in row.get("datasets", [dataset]):
            _merge(cfg, row["set"], f"{source}, SCHEDULES")


def _integer(key: str, value: object) -> int:
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key} takes a whole number, got {value!r}") from error


def read_base(trainer: str) -> str | None:
    """The base that a trainer's config names (`TRAINER.GLA.BASE`), if any."""
    tree = dict(flatten(_tree("trainers", trainer)))
    return tree.get(f"TRAINER.{class_name(trainer).upper()}.BASE")


def class_name(trainer: str) -> str:
    """The registered class of a trainer config: `TRAINER.CLASS` where it lends one a name of its own."""
    tree = dict(flatten(_tree("trainers", trainer)))
    return str(tree.get("TRAINER.CLASS", trainer))


def has_members(trainer: str) -> bool:
    """Whether a trainer's config names its backbones itself (`TRAINER.BACKDOOR.MEMBERS`)."""
    tree = dict(flatten(_tree("trainers", trainer)))
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
