"""Worlds to judge estimators on: the shipped datasets, and others that no method was designed on.

``unseen`` pictures come from a second renderer: tilted plates in perspective with a rim and a shadow over clutter, and
printed or seven-segment digits. ``corrupted`` worlds are the shipped pictures with noise, coarse pixels or fog.
``renamed`` worlds are the shipped pictures with other names for half of the classes. The backbones are the shipped
ones and have seen none of these pictures and names. Each world is a registered dataset: `load_config` returns its
config.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from second_renderer import Pictures, draw_corrupted, draw_unseen, fog, noise, pixelate
from torch import Tensor
from yacs.config import CfgNode

from unskew import config
from unskew.data.dataset import DATASET_REGISTRY, DatasetBase, Datum
from unskew.data.fewshot import select
from unskew.data.splits import read_split
from unskew.micro import downstream, drawn_datasets
from unskew.utils.files import cached_folder, expand

VERSION = 1  # part of a folder's name; raise it whenever a picture changes


@dataclass(frozen=True)
class World:
    """A dataset that estimators are judged on.

    Attributes:
        family: ``shipped``, ``unseen``, ``corrupted``, ``renamed`` or ``emoji``.
        base: the shipped dataset with the same classes, whose config and schedules are used.
        draw: returns the pictures; None for those of ``base``.
        rename: returns other class names; None for those of ``base``.
        backbones: the models whose prior is known.
    """

    family: str
    base: str
    draw: Callable[[], Pictures] | None = None
    rename: Callable[[Sequence[str]], list[str]] | None = None
    backbones: tuple[str, ...] = ("micro", "micro-vit")


def _rename(names: Sequence[str]) -> list[str]:
    """Return other names for half of the classes: reversed words, more words, or a synonym of the digit's kind."""
    rng = np.random.default_rng(33)
    forms = ("small {}", "{} thing", "old {} on snow", "one {} here")
    renamed = list(names)
    for label in rng.permutation(len(names))[: len(names) // 2]:
        renamed[label] = forms[rng.integers(len(forms))].format(" ".join(names[label].split()[::-1]))
    return renamed


WORLDS = {
    **{name: World("shipped", name) for name in drawn_datasets.DATASETS if name not in drawn_datasets.TEST_ONLY},
    "unseen_shapes": World("unseen", "shapes", lambda: draw_unseen("shapes")),
    "unseen_patterns": World("unseen", "patterns", lambda: draw_unseen("patterns")),
    "unseen_digits": World("unseen", "digits", lambda: draw_unseen("digits")),
    "noisy_shapes": World("corrupted", "shapes", lambda: draw_corrupted("shapes", noise)),
    "foggy_patterns": World("corrupted", "patterns", lambda: draw_corrupted("patterns", fog)),
    "coarse_digits": World("corrupted", "digits", lambda: draw_corrupted("digits", pixelate)),
    "renamed_shapes": World("renamed", "shapes", rename=_rename),
    "renamed_patterns": World("renamed", "patterns", rename=_rename),
    "renamed_digits": World("renamed", "digits", rename=_rename),
    "unseen_shapes_lt": World("unseen", "shapes_lt", lambda: draw_unseen("shapes_lt")),
    "emoji": World("emoji", "emoji", backbones=("micro-emoji", "micro-emoji-vit")),
    "unseen_digits_lt": World("unseen", "digits_lt", lambda: draw_unseen("digits_lt")),
}


# --- exact worlds -------------------------------------------------------------------------------------


def exact(classes: int, imbalance: float, shots: int, seed: int) -> dict[str, dict[str, Tensor] | Tensor]:
    """Draw a world in which GLA's theorem holds: Gaussian classes in two independent views, with their exact scores.

    The zero-shot model knows the first view and saw the classes with a prior of the given imbalance; the fine-tuned
    model knows the second view without a prior. Both temperatures are 1.

    Returns:
        Labels ``y``, logits ``zs`` and ``ft`` by split, and the log prior ``truth``.
    """
    rng = np.random.default_rng([34, classes, int(imbalance), shots, seed])
    log_q = -np.linspace(0, np.log(imbalance), classes)
    log_q = rng.permutation(log_q - np.log(np.exp(log_q).sum()))
    means = {"zs": rng.normal(size=(classes, 6)), "ft": 1.2 * rng.normal(size=(classes, 6))}
    drawn: dict = {"truth": torch.tensor(log_q)}
    for split, per_class in (("train", shots), ("val", min(shots, 4)), ("test", max(20, 2000 // classes))):
        labels = np.repeat(np.arange(classes), per_class)
        drawn[split] = {"y": torch.tensor(labels)}
        for name, centres in means.items():
            features = centres[labels] + rng.normal(size=(len(labels), 6))
            scores = features @ centres.T - 0.5 * (centres**2).sum(1)
            drawn[split][name] = torch.tensor(scores + log_q if name == "zs" else scores)
    return drawn


# --- the registered datasets ----------------------------------------------------------------------------


@cache
def _dataset_class(name: str) -> type[DatasetBase]:
    this, base = WORLDS[name], DATASET_REGISTRY.get(WORLDS[name].base)

    class Dataset(base):
        def __init__(self, cfg: CfgNode) -> None:
            root = expand(cfg.DATASET.ROOT) / (name if this.draw else this.base)
            splits = downstream.files(root, this.base) if this.draw is None else _files(root, this)
            if this.rename:
                names = this.rename(downstream.classnames(this.base))
                splits = tuple([Datum(d.impath, d.label, d.domain, names[d.label]) for d in split] for split in splits)
            DatasetBase.__init__(self, **select(cfg, root, *splits))

    return DATASET_REGISTRY.register(name)(Dataset)


def _files(root: Path, this: World) -> tuple[list[Datum], list[Datum], list[Datum]]:
    def fill(path: Path) -> None:
        downstream.write_pictures(path, this.base, this.draw())

    folder = cached_folder(root, f"pictures-{VERSION}", fill)
    return read_split(folder / "split.json", folder)


def load_config(name: str, trainer: str, backbone: str, opts: Sequence) -> CfgNode:
    """Return the config of a run on a world: that of the shipped dataset with the same classes."""
    cfg = config.load(WORLDS[name].base, trainer=trainer, backbone=backbone, opts=opts)
    if WORLDS[name].draw is None and WORLDS[name].rename is None:
        return cfg
    _dataset_class(name)
    return config.derive(cfg, {"DATASET.NAME": name})


def draw(name: str, root: str) -> None:
    """Draw the pictures of a world below ``root`` if they are missing."""
    load_config(name, "ZeroshotCLIP", WORLDS[name].backbones[0], ("DATASET.ROOT", root))
    folder = expand(root) / (name if WORLDS[name].draw else WORLDS[name].base)
    if WORLDS[name].draw is None:
        downstream.files(folder, WORLDS[name].base)
    else:
        _files(folder, WORLDS[name])
