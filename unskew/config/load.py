"""The configuration of a run, layered from three axes and frozen once.

Later layers win: `get_cfg_default` and the trainers' keys < `COMMON` < `configs/datasets/D.yaml` <
`configs/backbones/B.yaml` < `configs/trainers/T.yaml` < T's `SCHEDULES` < D's `OVERRIDES` < `KEY VALUE` pairs.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from yacs.config import CfgNode

from unskew.config import plugins
from unskew.config._files import (
    backbone_layer,
    check_name,
    class_name,
    dataset_layer,
    read_yaml,
    stem_of,
    trainer_layer,
    trainer_node,
    trainer_nodes,
    trainer_tree,
)
from unskew.config._keys import copied, flatten, merge, node_of, set_key
from unskew.config._values import check_values
from unskew.config.defaults import COMMON, get_cfg_default

_FLAGS = {
    "DATASET.NAME": "--dataset",
    "TRAINER.NAME": "--trainer",
    "TRAINER.CLASS": "--trainer",
    "MODEL.BACKBONE.NAME": "--backbone",
}


def all_defaults() -> CfgNode:
    """Return the default tree with the node of every trainer."""
    cfg = get_cfg_default()
    for node, keys in trainer_nodes().items():
        cfg.TRAINER[node] = CfgNode(keys)
    return cfg


def load(dataset: str, backbone: str = "", trainer: str = "", opts: Sequence = (), config_file: str = "") -> CfgNode:
    """Return the frozen config of one run.

    Args:
        dataset: a stem in `configs/datasets`, a plugin's dataset, or the path of a YAML, see `dataset_layer`.
        backbone: a backbone's name; empty: the dataset's default.
        trainer: a stem in `configs/trainers` or a plugin's trainer.
        opts: KEY VALUE pairs, flat; they win over everything.
        config_file: one more YAML, merged after the trainer's own (CoOp's ``--config-file``).

    Raises:
        ValueError: an unknown name or key (the message suggests similar ones), or a value of the wrong type.
    """
    trainer = check_name("trainers", trainer)
    pairs, extra = _pairs(opts), read_yaml(Path(config_file)) if config_file else {}
    extra_schedules = extra.pop("SCHEDULES", None) or []
    given = {**dict(flatten(extra)), **dict(pairs)}
    dataset, dataset_tree, dataset_source = dataset_layer(dataset)
    overrides = dataset_tree.pop("OVERRIDES", None) or {}
    layers = _trainer_layers(trainer, given)

    cfg = all_defaults()
    unused = plugins.extend(cfg, (dataset, *layers))
    merge(cfg, COMMON, "COMMON in unskew/config/defaults.py")
    merge(cfg, dataset_tree, dataset_source)
    backbone = backbone or str(given.get("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME))
    if not backbone:
        flag = "MODEL.BACKBONE.NAME" if has_members(trainer) else "--backbone"
        raise ValueError(f"'{dataset}' has no default backbone: give one, such as {flag} ViT-B/16")
    merge(cfg, backbone_layer(backbone), f"configs/backbones, {backbone}")
    backbone = cfg.MODEL.BACKBONE.NAME

    shots = integer("DATASET.NUM_SHOTS", given.get("DATASET.NUM_SHOTS", cfg.DATASET.NUM_SHOTS))
    for layer in layers:
        stem = stem_of(layer)
        tree, source = trainer_layer(layer), f"configs/trainers/{stem}.yaml"
        schedules = tree.pop("SCHEDULES", None) or []
        cfg.TRAINER.CLASS = ""  # the class of a base is not that of the trainer around it
        merge(cfg, tree, source)
        _merge_schedules(cfg, schedules, shots, dataset, source)
        merge(cfg, overrides.get(layer, overrides.get(stem, {})), f"{dataset_source}, OVERRIDES")
    names = (dataset, trainer, cfg.TRAINER.CLASS, backbone)
    for (key, flag), name in zip(_FLAGS.items(), names, strict=True):
        if str(given.get(key, name)).replace("/", "-").lower() != name.replace("/", "-").lower():
            raise ValueError(f"{key} is '{given[key]}' in the overrides but '{name}' in this run; set it with {flag}")
    merge(cfg, extra, config_file)
    _merge_schedules(cfg, extra_schedules, shots, dataset, config_file)
    merge(cfg, dict(pairs), "the command line")

    for key in unused:
        node, last = node_of(cfg, key)
        del node[last]
    cfg.DATASET.NAME, cfg.TRAINER.NAME, cfg.MODEL.BACKBONE.NAME = dataset, trainer, backbone
    for node in (cfg.TRAINER.get(trainer_node(layer, cfg.TRAINER), {}) for layer in layers):
        if node.get("BASE"):
            node.BASE = check_name("trainers", node.BASE)
    check_values(cfg)
    cfg.freeze()
    return cfg


def _pairs(opts: Sequence) -> list[tuple[str, object]]:
    opts = list(opts)
    flags = [part for place, part in enumerate(opts) if str(part).startswith("--" if place % 2 else "-")]
    if flags:
        raise ValueError(f"'{flags[0]}' is not a config key: overrides are pairs of KEY VALUE")
    if len(opts) % 2:
        raise ValueError(f"config overrides come in pairs KEY VALUE; '{opts[-1]}' has no value")
    return list(zip(opts[::2], opts[1::2], strict=True))


def _trainer_layers(trainer: str, given: Mapping[str, object], above: tuple[str, ...] = ()) -> list[str]:
    """Return the trainer configs to merge, in order: a trainer's base comes before the trainer.

    Args:
        trainer: the name of the outermost trainer.
        given: values that override the trainer's base.
        above: the classes of the trainers around this one.
    """
    node, keys = _trainer_keys(trainer)
    base = given.get(f"TRAINER.{node}.BASE", keys.get("BASE"))
    if base is None:
        return [trainer]
    chain, base = (*above, class_name(trainer)), check_name("trainers", str(base))
    if class_name(base) in chain:
        raise ValueError(
            f"TRAINER.{chain[-1].upper()}.BASE cannot be {base}: {' over '.join([*chain, base])} has no end; "
            "choose another trainer"
        )
    return [*_trainer_layers(base, given, chain), trainer]


def _trainer_keys(trainer: str) -> tuple[str, dict]:
    """Return the name of a trainer's node below TRAINER and its keys, as its YAML or that of its class has them."""
    nodes: Mapping[str, dict] = trainer_nodes()
    if class_name(trainer) in plugins.names("trainers"):
        cfg = all_defaults()
        plugins.extend(cfg, (trainer,))
        nodes = cfg.TRAINER
    node = trainer_node(trainer, nodes)
    return node, {**nodes.get(node, {}), **(trainer_tree(trainer).get(node) or {})}


def read_base(trainer: str) -> str | None:
    """Return the default base of a trainer (``TRAINER.GLA.BASE``), if it has one."""
    base = _trainer_keys(trainer)[1].get("BASE")
    return None if base is None else str(base)


def has_members(trainer: str) -> bool:
    """Return whether a trainer's config names its backbones itself (``TRAINER.BACKDOOR.MEMBERS``)."""
    return "MEMBERS" in _trainer_keys(trainer)[1]


def _merge_schedules(cfg: CfgNode, rows: Sequence[dict], shots: int, dataset: str, source: str) -> None:
    for row in rows:
        if shots in row.get("shots", [shots]) and dataset in row.get("datasets", [dataset]):
            merge(cfg, row["set"], f"{source}, SCHEDULES")


def integer(key: str, value: object) -> int:
    """Return a whole number, perhaps NumPy's or a text; a ``ValueError`` names the key."""
    try:
        return int(str(value))
    except ValueError as error:
        raise ValueError(f"{key} takes a whole number, got {value!r}") from error


# Keys that are newer than the trainers they belong to, with the value that runs had without them; not the default.
_FORMERLY = {"TRAINER.LINEARPROBE.INIT": "zeros"}


def former_values(saved: Mapping[str, object]) -> dict[str, object]:
    """Return values for keys that the config of an older run, by key, lacks and whose default is not what it did."""
    return {key: value for key, value in _FORMERLY.items() if key not in saved}


def restore(path: str | Path) -> CfgNode:
    """Return the frozen config in a run's ``config.yaml``, with values for the keys that an older file lacks.

    Raises:
        ValueError: the file has an unknown key, or a value of the wrong type.
    """
    tree = read_yaml(Path(path))
    cfg = all_defaults()
    plugins.extend(cfg, ())
    for key, value in former_values(dict(flatten(tree))).items():
        set_key(cfg, key, value, str(path))
    merge(cfg, tree, str(path))
    cfg.freeze()
    return cfg


def dataset_values(dataset: str, backbone: str = "") -> dict[str, object]:
    """Return the leaves of ``INPUT``, ``DATASET`` and ``MODEL`` that runs on a dataset start from, without a trainer.

    Args:
        dataset: as in `load`.
        backbone: a backbone's name; empty: the dataset's default.
    """
    name, tree, source = dataset_layer(dataset)
    tree.pop("OVERRIDES", None)
    cfg = all_defaults()
    merge(cfg, COMMON, "COMMON in unskew/config/defaults.py")
    merge(cfg, tree, source)
    cfg.DATASET.NAME = name
    merge(cfg, backbone_layer(backbone or cfg.MODEL.BACKBONE.NAME), f"configs/backbones, {backbone}")
    return {key: value for key, value in flatten(cfg) if key.startswith(("INPUT.", "DATASET.", "MODEL."))}


def derive(cfg: CfgNode, values: Mapping[str, object]) -> CfgNode:
    """Return a frozen copy of ``cfg`` with other values, by key ("OPTIM.LR").

    Raises:
        ValueError: a key does not exist, or a value's type does not fit.
    """
    changed = copied(cfg)
    changed.defrost()
    for key, value in values.items():
        set_key(changed, key, value, "config.derive")
    changed.freeze()
    return changed


def dump(cfg: CfgNode) -> str:
    """Return the config as YAML that `read_yaml` and `load(config_file=...)` read back."""

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return list(value) if isinstance(value, tuple) else copy.deepcopy(value)

    return yaml.safe_dump(plain(cfg), sort_keys=False)
