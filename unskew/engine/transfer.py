"""How the numbers that a run has fitted serve another trainer: as they are, fitted again, or without the classes.

They are fitted again only on the images of the run itself, never on labels of a dataset that it is evaluated on.
"""

import enum
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unskew.data.saved_run import check_can_fit
from unskew.data.transfer import same_images, saved_config
from unskew.engine import checkpoint
from unskew.engine.checkpoint import class_fingerprint
from unskew.engine.trainer import SimpleTrainer

logger = logging.getLogger("unskew")


class Use(enum.Enum):
    """The use of a checkpoint: load it, fit again, or take the numbers that suit any classes."""

    LOAD = "load"
    FIT = "fit"
    CARRY = "carry"


def may_fit(trainer: SimpleTrainer, directory: str | Path) -> bool:
    """Return whether the images of a trainer are those of the run in a folder, so that it may fit numbers again."""
    return not getattr(trainer.dm.dataset, "transfer", "") and same_images(trainer.cfg, directory)


def use_of(
    trainer: SimpleTrainer,
    name: str,
    keys: Sequence[str],
    identity: Callable[[Mapping[str, Any]], Sequence[str]],
    directory: str | Path,
    free: Sequence[str] = (),
) -> Use:
    """Decide on the use of the fitted numbers in a run's folder.

    Args:
        trainer: the trainer that needs them.
        name: its model with the numbers, whose buffer ``classes`` is a fingerprint of the classes and settings.
        keys: the settings, keys of the trainer's node.
        identity: returns the texts of the fingerprint for the trainer's classes and other values of the settings.
        directory: the run's folder.
        free: the settings that may differ from those of the run on other classes.

    Raises:
        ValueError: other settings would need a fit, and the images are not those of the run.
    """
    state = saved_state(directory, name)
    if state is None:  # loading reports the missing checkpoint
        return Use.LOAD
    found = state.get("classes")

    def has(expected: Tensor) -> bool:
        return isinstance(found, Tensor) and torch.equal(found, expected.cpu())

    if has(trainer._models[name].get_buffer("classes")):
        return Use.LOAD
    check_can_fit(trainer.dm.dataset)
    if may_fit(trainer, directory):
        return Use.FIT
    leaves = saved_config(directory)
    places = {key: f"TRAINER.{trainer.node_name}.{key}" for key in keys}
    saved = {key: leaves[place] for key, place in places.items() if place in leaves}
    same_classes = any(has(class_fingerprint(identity(node))) for node in (saved, {}))
    changed = [key for key, value in saved.items() if _plain(value) != _plain(trainer.node[key])]
    if same_classes and not changed:  # an older version had fewer settings
        return Use.LOAD
    if wrong := [key for key in changed if same_classes or key not in free]:
        there = ", ".join(f"{places[key]} {saved[key]!r}" for key in wrong)
        raise ValueError(
            f"the numbers in '{directory}' were fitted with {there}: evaluate '{trainer.cfg.DATASET.NAME}' with the "
            "same settings, as its labels must not be used to fit them again"
        )
    if not leaves:
        logger.warning(f"'{directory}' has no config.yaml: its fitted numbers are used as those of the same settings")
    return Use.CARRY


def saved_state(directory: str | Path, name: str) -> Mapping[str, Any] | None:
    """Return the state in the last checkpoint of a model below a run's folder; ``None`` without a checkpoint."""
    path = checkpoint.last_checkpoint(Path(directory) / name)
    return None if path is None else checkpoint.load_checkpoint(path).get("state_dict", {})


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
