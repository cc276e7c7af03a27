"""The downstream datasets of the drawn world, in another style than the pre-training images.

Val and test are balanced. Train is balanced too, except in the long-tailed datasets. ``shapes_shifted`` has test images
of some classes of ``shapes`` only, as ImageNet-A has of ImageNet's.
"""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from unskew.data.sampling import longtail_counts
from unskew.micro import world

# The factors in the class names of a dataset. The classes are all combinations of values in row-major order. The place
# of a dataset seeds its images: add new ones at the end.
DATASETS = {
    "shapes": ("shape", "colour"),
    "patterns": ("shape", "pattern"),
    "digits": ("digit",),
    "shapes_lt": ("shape", "colour", "pattern"),
    "digits_lt": ("digit",),
    "shapes_shifted": ("shape", "colour"),
}
# The values of the factors in a dataset; by default all values. The four shapes and patterns have the most unequal
# pre-training frequencies: they maximise the smallest most : fewest ratio over micro-a, micro-b and micro-c, then over
# all five models. The colours are neighbours in hue, because on val even models without colour names tell distant hues
# apart.
VALUES = {
    "shapes_lt": {
        "shape": ("circle", "square", "cross", "drop"),
        "colour": ("red", "orange", "yellow", "pink"),
        "pattern": ("solid", "striped", "checkered", "faded"),
    }
}
COUNTS = {"train": 20, "val": 16, "test": 25}  # images per class; digits: all remaining images are test
# Training images of the most and the least frequent class. Val and test leave 52 images of the rarest digit, so 50 : 1
# is about the longest tail that the real digits allow.
LONGTAILED = {"shapes_lt": (200, 2), "digits_lt": (50, 1)}
LONGTAILED_COUNTS = {"val": 10, "test": 25}
# Test-only datasets: the number of values of each factor, the first ones, whose classes have images.
TEST_ONLY = {"shapes_shifted": (8, 6)}
# Blurred, paler, darker, turned: a shift that 16 shots can learn and that keeps the effect of the prior.
_DRAWN = world.Style(
    morph=0.2, saturation=(0.3, 0.8), value=(0.4, 0.8), contrast=(0.45, 0.8), noise=(0.02, 0.1), blur=0.5
)
# Paler, noisier, more blurred and more turned still: zero-shot accuracy falls by more than a third.
_SHIFTED = replace(_DRAWN, saturation=(0.2, 0.6), noise=(0.05, 0.16), turn=0.3, blur=0.7)
_WRITTEN = world.Style(turn=0.2, noise=(0.02, 0.06), blur=1.0)
STYLES = {
    "shapes": _DRAWN,
    "patterns": _DRAWN,
    "digits": _WRITTEN,
    "shapes_lt": _DRAWN,
    "digits_lt": _WRITTEN,
    "shapes_shifted": _SHIFTED,
}
VERSION = 2  # part of the folder's name; raise it whenever an image changes


def factor_values(dataset: str) -> dict[str, np.ndarray]:
    """Return the indices into ``world.FACTORS`` of the values in a dataset, for each factor in its class names."""
    named = {f: VALUES.get(dataset, {}).get(f, world.FACTORS[f]) for f in DATASETS[dataset]}
    return {f: np.array([world.FACTORS[f].index(name) for name in names]) for f, names in named.items()}


def classnames(dataset: str) -> list[str]:
    """Return the class names in label order, such as "red circle", "striped circle", "zero", "red solid circle"."""
    values = factor_values(dataset)
    names = itertools.product(*([world.FACTORS[f][v] for v in values[f]] for f in values))
    return [world.phrase(dict(zip(values, combination, strict=True))) for combination in names]


def prompt(dataset: str) -> str:
    """Return the zero-shot prompt."""
    return (world.DIGIT_TEMPLATES if DATASETS[dataset] == ("digit",) else world.TEMPLATES)[0]


def image_counts(dataset: str, classes: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return the images of each class [C] by split; ``rng`` shuffles a long tail, independent of any pre-training."""
    if dataset in TEST_ONLY:
        sizes = [len(values) for values in factor_values(dataset).values()]
        shown = np.zeros(sizes, bool)
        shown[tuple(map(slice, TEST_ONLY[dataset]))] = True
        return {"test": np.where(shown.ravel(), COUNTS["test"], 0)}
    if dataset not in LONGTAILED:
        return {split: np.full(classes, n) for split, n in COUNTS.items()}
    most, fewest = LONGTAILED[dataset]
    balanced = {split: np.full(classes, n) for split, n in LONGTAILED_COUNTS.items()}
    return {"train": rng.permutation(longtail_counts(most, classes, most / fewest)), **balanced}


def splits(dataset: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Render the images of a dataset, see `unskew.micro.downstream.splits`."""
    rng = np.random.default_rng([2023, list(DATASETS).index(dataset)])
    if DATASETS[dataset] == ("digit",):
        return _digits(dataset, rng)
    values = factor_values(dataset)
    sizes = [len(v) for v in values.values()]
    classes = math.prod(sizes)
    result = {}
    for split, per_class in image_counts(dataset, classes, rng).items():
        labels = np.repeat(np.arange(classes), per_class)
        factors = {f: rng.integers(len(world.FACTORS[f]), size=len(labels)) for f in world.VISUAL}
        named = zip(values, np.unravel_index(labels, sizes), strict=True)
        factors |= {f: values[f][indices] for f, indices in named}
        result[split] = world.render(factors, rng=rng, style=STYLES[dataset]), labels
    return result


def _digits(dataset: str, rng: np.random.Generator) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Render the half of scikit-learn's digits that was not used in pre-training."""
    images, labels = world.digits(pretraining=False)
    counts = image_counts(dataset, 10, rng)
    if dataset == "digits":
        counts["test"][:] = len(labels)
    result, start = {}, 0
    for split, per_class in counts.items():
        rows = np.concatenate([np.flatnonzero(labels == d)[start : start + per_class[d]] for d in range(10)])
        result[split] = world.render_digits(images[rows], rng, STYLES[dataset]), labels[rows]
        start += per_class.max()  # the same start for all classes: all are tested on the same part of the file
    return result


def log_prior(seed: int, dataset: str) -> np.ndarray:
    """Return the log prior [C] of the classes in the pre-training of the model with this seed, up to a constant.

    The factors of an image are independent, so the prior of a class is the product of the frequencies of its values.
    """
    frequency = world.frequencies(seed)
    result = np.zeros(1)
    for factor, values in factor_values(dataset).items():
        result = (result[:, None] + np.log(frequency[factor][values])).ravel()
    return result


def sheet(path: str | Path) -> None:
    """Draw docs/micro_world.png: samples in the pre-training style (left) and the downstream style (right)."""
    panels = []
    for before in (True, False):
        rng = np.random.default_rng(0)
        rows: list[tuple] = [(s, c, rng.integers(6), rng.integers(6)) for s in range(12) for c in range(8)]
        rows += [(s, rng.integers(8), p, rng.integers(6)) for p in range(6) for s in range(8)]
        factors = dict(zip(world.VISUAL, np.array(rows).T, strict=True))
        drawn = world.render(factors, rng=rng, style=world.PRETRAINING if before else STYLES["shapes"])
        images, labels = world.digits(pretraining=before)
        chosen = np.stack([np.flatnonzero(labels == d)[:4] for d in (0, 1, 2, 3, 4, 5, 7, 9)], 1).ravel()
        numerals = world.render_digits(images[chosen], rng, world.PRETRAINING if before else STYLES["digits"])
        tiles = np.concatenate([drawn, numerals]).reshape(-1, 8, world.SIZE, world.SIZE, 3)
        panels.append(np.pad(tiles.transpose(0, 2, 1, 3, 4).reshape(-1, 8 * world.SIZE, 3), ((0, 0), (4, 4), (0, 0))))
    Image.fromarray(np.concatenate(panels, axis=1)).save(path, optimize=True)
