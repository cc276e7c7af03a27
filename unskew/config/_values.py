"""Checks of a config's values, before any data is read: the errors name the key, unlike those of PyTorch."""

import math
from collections.abc import Mapping

from yacs.config import CfgNode

from unskew.config import plugins
from unskew.config._keys import flatten
from unskew.utils.registry import unknown_name

OPTIMIZERS: tuple[str, ...] = ("adam", "amsgrad", "sgd", "rmsprop", "radam", "adamw")
SCHEDULERS: tuple[str, ...] = ("single_step", "multi_step", "cosine")
WARMUPS: tuple[str, ...] = ("constant", "linear")

_CHOICES = {
    **{"TEST.FINAL_MODEL": ("last_step", "best_val"), "TEST.SPLIT": ("test", "val"), "TEST.CROPS": (1, 5, 10)},
    "TEST.PARTS_DTYPE": ("float32", "float16"),
}

_LEAST = {
    **dict.fromkeys(("OPTIM.LR", "OPTIM.WARMUP_CONS_LR", "OPTIM.WARMUP_MIN_LR", "OPTIM.WEIGHT_DECAY"), 0),
    **dict.fromkeys(("OPTIM.MOMENTUM", "OPTIM.RMSPROP_ALPHA", "OPTIM.GAMMA", "OPTIM.MAX_EPOCH"), 0),
    **{f"DATALOADER.{loader}.BATCH_SIZE": 1 for loader in ("TRAIN_X", "TRAIN_U", "TEST")},
    "DATALOADER.NUM_WORKERS": 0,
}


def check_values(cfg: CfgNode) -> None:
    """Raise ``ValueError``, with the key, for a value with which no run can end well."""
    leaves = dict(flatten(cfg))
    if cfg.SEED >= 2**63:
        raise ValueError(f"SEED must be below 2**63, got {cfg.SEED}")
    for key, known in _CHOICES.items():
        if leaves[key] not in known:
            raise ValueError(unknown_name(key, leaves[key], map(str, known)))
    for key, least in _LEAST.items():
        if not least <= leaves[key] < math.inf:  # neither is NaN
            raise ValueError(f"{key} must be {least} or more, got {leaves[key]}")
    shots = cfg.DATASET.NUM_SHOTS
    if shots != -1 and shots < 1:
        raise ValueError(f"DATASET.NUM_SHOTS: shots must be 1 or more (or -1 for all images); got {shots}")
    if cfg.TRAIN.KEEP < 1 and cfg.TRAIN.KEEP != -1:
        raise ValueError(f"TRAIN.KEEP must be 1 or more (or -1 for all checkpoints); got {cfg.TRAIN.KEEP}")
    if (cfg.TRAINER.CLASS or cfg.TRAINER.NAME) not in plugins.names("trainers"):  # which may build their own optimizer
        check_optimizer(cfg.OPTIM)
        check_schedule(cfg.OPTIM)


def check_optimizer(node: Mapping) -> None:
    """Raise ``ValueError`` for keys of ``OPTIM`` with which no optimizer can be built."""
    if node["NAME"] not in OPTIMIZERS:
        raise ValueError(unknown_name("optimizer in OPTIM.NAME", node["NAME"], OPTIMIZERS))
    for key in ("ADAM_BETA1", "ADAM_BETA2"):
        if not 0 <= node[key] < 1:
            raise ValueError(f"OPTIM.{key} must be 0 or more and below 1, got {node[key]}")
    if node["NAME"] == "sgd" and node["SGD_NESTEROV"] and (node["MOMENTUM"] <= 0 or node["SGD_DAMPNING"] != 0):
        raise ValueError(
            "OPTIM.SGD_NESTEROV needs OPTIM.MOMENTUM above 0 and OPTIM.SGD_DAMPNING 0 "
            f"(got {node['MOMENTUM']} and {node['SGD_DAMPNING']})"
        )


def check_schedule(node: Mapping) -> None:
    """Raise ``ValueError`` for an unknown schedule or warm-up, or a ``STEPSIZE`` that does not fit the schedule."""
    name, stepsize = node["LR_SCHEDULER"], node["STEPSIZE"]
    if name not in SCHEDULERS:
        raise ValueError(unknown_name("schedule in OPTIM.LR_SCHEDULER", name, SCHEDULERS))
    steps = stepsize if isinstance(stepsize, list | tuple) else [stepsize]
    if name == "multi_step" and not isinstance(stepsize, list | tuple):
        raise ValueError(f"OPTIM.STEPSIZE must be a list of epochs for multi_step, got {stepsize!r}")
    if name != "cosine" and not (steps and all(isinstance(step, int) for step in steps)):
        raise ValueError(f"OPTIM.STEPSIZE must hold whole epochs, got {stepsize!r}")
    if node["WARMUP_EPOCH"] > 0 and node["WARMUP_TYPE"] not in WARMUPS:
        raise ValueError(unknown_name("warm-up in OPTIM.WARMUP_TYPE", node["WARMUP_TYPE"], WARMUPS))
