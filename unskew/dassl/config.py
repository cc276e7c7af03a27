"""`dassl.config`: our default tree with the nodes of Dassl's trainers, and its seed."""

from typing import Any

from yacs.config import CfgNode

from unskew import config

__all__ = ["cfg_default", "clean_cfg", "get_cfg_default"]

# Nodes of Dassl's trainers for domain adaptation, domain generalisation and semi-supervised learning.
TRAINERS: dict[str, dict[str, Any]] = {
    "MCD": {"N_STEP_F": 4},
    "MME": {"LMDA": 0.1},
    "CDAC": {
        "CLASS_LR_MULTI": 10,
        "RAMPUP_COEF": 30,
        "RAMPUP_ITRS": 1000,
        "TOPK_MATCH": 5,
        "P_THRESH": 0.95,
        "STRONG_TRANSFORMS": (),
    },
    "SE": {"EMA_ALPHA": 0.999, "CONF_THRE": 0.95, "RAMPUP": 300},
    "M3SDA": {"LMDA": 0.5, "N_STEP_F": 4},
    "DAEL": {"WEIGHT_U": 0.5, "CONF_THRE": 0.95, "STRONG_TRANSFORMS": ()},
    "CROSSGRAD": {"EPS_F": 1.0, "EPS_D": 1.0, "ALPHA_F": 0.5, "ALPHA_D": 0.5},
    "DDAIG": {
        "G_ARCH": "",
        "LMDA": 0.3,
        "CLAMP": False,
        "CLAMP_MIN": -1.0,
        "CLAMP_MAX": 1.0,
        "WARMUP": 0,
        "ALPHA": 0.5,
    },
    "DAELDG": {"WEIGHT_U": 0.5, "CONF_THRE": 0.95, "STRONG_TRANSFORMS": ()},
    "DOMAINMIX": {"TYPE": "crossdomain", "ALPHA": 1.0, "BETA": 1.0},
    "ENTMIN": {"LMDA": 1e-3},
    "MEANTEACHER": {"WEIGHT_U": 1.0, "EMA_ALPHA": 0.999, "RAMPUP": 5},
    "MIXMATCH": {"WEIGHT_U": 100.0, "TEMP": 2.0, "MIXUP_BETA": 0.75, "RAMPUP": 20000},
    "FIXMATCH": {"WEIGHT_U": 1.0, "CONF_THRE": 0.95, "STRONG_TRANSFORMS": ()},
}


def get_cfg_default() -> CfgNode:
    """Return a config with every key of Dassl and of this package, with default values."""
    cfg = _without_trainers()
    for name, values in TRAINERS.items():
        cfg.TRAINER[name] = CfgNode(dict(values))
    return cfg


def _without_trainers() -> CfgNode:
    cfg = config.get_cfg_default()
    cfg.SEED = -1
    cfg.TRAIN.KEEP = -1  # Dassl keeps all checkpoints
    return cfg


def clean_cfg(cfg: CfgNode, trainer: str) -> None:
    """Remove the nodes of all other trainers, so that ``print(cfg)`` is short."""
    for name, value in list(cfg.TRAINER.items()):
        if isinstance(value, CfgNode) and name != trainer.upper():
            del cfg.TRAINER[name]


def complete(cfg: CfgNode) -> CfgNode:
    """Add the keys that a config tree of a script lacks, with their default values, and return the tree.

    A script's copy of Dassl's defaults lacks this package's keys, and that of an older release lacks some of Dassl's.
    Every function that takes a script's config completes it. Existing keys keep their values; no trainer's node is
    added.
    """
    add_missing(cfg, _without_trainers())
    return cfg


def add_missing(cfg: CfgNode, defaults: CfgNode) -> None:
    """Add the missing keys of another tree to ``cfg`` in place, even if it is frozen."""
    for key, value in defaults.items():
        if key not in cfg:
            if isinstance(value, CfgNode) and isinstance(cfg, CfgNode) and cfg.is_frozen():
                value.freeze()
            cfg[key] = value
        elif isinstance(cfg[key], dict) and isinstance(value, CfgNode):
            add_missing(cfg[key], value)


cfg_default = _C = get_cfg_default()  # under the names of `dassl.config` and `dassl.config.defaults`
