"""Weights whose rows are bound to classes: their checkpoints say of which, and are not loaded for others."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def digest(classnames: Sequence[str]) -> Tensor:
    """A hash of names in their order, as one integer that a checkpoint can hold."""
    return torch.tensor(int.from_bytes(hashlib.sha256("\n".join(classnames).encode()).digest()[:7], "big"))


def bind(module: nn.Module, classnames: Sequence[str]) -> None:
    """Make the classes a part of the module's state, as the buffer ``classes``.

    From now on ``load_state_dict`` raises a ``ValueError`` for weights of other classes. Those that do not say of which
    they are, as the published trainers save them, are taken.
    """
    module.register_buffer("classes", digest(classnames))
    module.register_load_state_dict_pre_hook(_check)


def _check(module: nn.Module, state: dict[str, Tensor], prefix: str, *_) -> None:
    theirs = state.setdefault(f"{prefix}classes", module.classes)
    if not torch.equal(theirs.cpu(), module.classes.cpu()):
        raise ValueError(
            "these weights were trained on other classes, and each of their rows is bound to one; train them again, or "
            "test on the classes that they are of"
        )
