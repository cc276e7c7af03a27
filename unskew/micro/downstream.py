"""The downstream datasets on the embedded world, in another style than the pre-training's, as image files.

Val and test are balanced; so is train, but for the long-tailed datasets.
"""

import itertools
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from unskew.data.dataset import Datum
from unskew.data.sampling import longtail_counts
from unskew.data.splits import read_split, save_split
from unskew.micro import world
from unskew.utils.files import cache_folder, make_folder

# The factors that the classes of a dataset name. The classes are all their combinations, row by row.
DATASETS = {
    "shapes": ("shape", "colour"),
    "patterns": ("shape", "pattern"),
    "digits": ("digit",),
    "shapes_lt": ("shape", "colour", "pattern"),
    "digits_lt": ("digit",),
}
# The values of a factor that a dataset has; all where nothing is said. Of all sets of four shapes or patterns these
# are the ones whose pre-training frequencies are the furthest apart: their most : fewest is the largest in whichever
# of micro-a, micro-b and micro-c has it smallest, and among equals in whichever of all five. The colours are
# neighbours in hue: on val, models that learned no names of colours tell distant hues apart as well.
VALUES = {
    "shapes_lt": {
        "shape": ("circle", "square", "cross", "drop"),
        "colour": ("red", "orange", "yellow", "pink"),
        "pattern": ("solid", "striped", "checkered", "faded"),
    }
}
COUNTS = {"train": 20, "val": 16, "test": 25}  # images per class; digits: all that remain are test
# Training images of the most and of the least frequent class. Val and test leave 52 of the rarest digit, so 50 : 1 is
# about the steepest tail that the real digits allow.
LONGTAILED = {"shapes_lt": (200, 2), "digits_lt": (50, 1)}
LONGTAILED_COUNTS = {"val": 10, "test": 25}
# Blurred, paler, darker, turned: a shift that 16 shots can learn, with the prior's effect left in place.
_DRAWN = world.Style(
    morph=0.2, saturation=(0.3, 0.8), value=(0.4, 0.8), contrast=(0.45, 0.8), noise=(0.02, 0.1), blur=0.5
)
_WRITTEN = world.Style(turn=0.2, noise=(0.02, 0.06), blur=1.0)
STYLES = {"shapes": _DRAWN, "patterns": _DRAWN, "digits": _WRITTEN, "shapes_lt": _DRAWN, "digits_lt": _WRITTEN}
VERSION = 2  # part of the folder's name; raise it whenever an image changes


def factor_values(dataset: str) -> dict[str, np.ndarray]:
    """For each factor that the classes name, the indices into ``world.FACTORS`` of the values that they have."""
    named = {f: VALUES.get(dataset, {}).get(f, world.FACTORS[f]) for f in DATASETS[dataset]}
    return {f: np.array([world.FACTORS[f].index(name) for name in names]) for f, names in named.items()}


def classnames(dataset: str) -> list[str]:
    """The class names in label order: "red circle", "striped circle", "zero", "red solid circle"."""
    values = factor_values(dataset)
    names = itertools.product(*([world.FACTORS[f][v] for v in values[f]] for f in values))
    return [world.phrase(dict(zip(values, combination, strict=True))) for combination in names]


def _counts(dataset: str, classes: int, rng) -> dict[str, np.ndarray]:
    """Images of each class, [C], by split. ``rng`` orders a long tail: it owes nothing to any pre-training's."""
    if dataset not in LONGTAILED:
        return {split: np.full(classes, n) for split, n in COUNTS.items()}
    most, fewest = LONGTAILED[dataset]
    balanced = {split: np.full(classes, n) for split, n in LONGTAILED_COUNTS.items()}
    return {"train": rng.permutation(longtail_counts(most, classes, most / fewest)), **balanced}


def splits(dataset: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The images of ``dataset``, the same on every call.

    Returns:
        ``{"train" | "val" | "test": (images uint8 [N,32,32,3], labels [N])}``, sorted by label.
    """
    rng = np.random.default_rng([2023, list(DATASETS).index(dataset)])
    if DATASETS[dataset] == ("digit",):
        return _digits(dataset, rng)
    values = factor_values(dataset)
    sizes = [len(v) for v in values.values()]
    found = {}
    for split, per_class in _counts(dataset, np.prod(sizes), rng).items():
        labels = np.repeat(np.arange(np.prod(sizes)), per_class)
        factors = {f: rng.integers(len(world.FACTORS[f]), size=len(labels)) for f in world.VISUAL}
        named = zip(values, np.unravel_index(labels, sizes), strict=True)
        factors |= {f: values[f][which] for f, which in named}
        found[split] = world.render(**factors, rng=rng, style=STYLES[dataset]), labels
    return found


def _digits(dataset: str, rng) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The half of scikit-learn's digits that the pre-training never saw."""
    images, labels = world.digits(pretraining=False)
    counts = _counts(dataset, 10, rng)
    if dataset == "digits":
        counts["test"][:] = len(labels)
    found, start = {}, 0
    for split, per_class in counts.items():
        rows = np.concatenate([np.flatnonzero(labels == d)[start : start + per_class[d]] for d in range(10)])
        found[split] = world.render_digits(images[rows], rng, STYLES[dataset]), labels[rows]
        start += per_class.max()  # past the longest, so that all classes are tested on the same part of the file
    return found


def files(root: str | Path, dataset: str) -> dict[str, list[Datum]]:
    """The splits as image files below ``root``, rendered if they are not there yet.

    Returns:
        ``{"train" | "val" | "test": [Datum, ...]}``.
    """
    folder = Path(root) / f"images-{VERSION}"
    if not folder.is_dir():
        folder = cache_folder(root) / folder.name
    if not folder.is_dir():
        make_folder(folder, lambda work: _write(work, dataset))
    return dict(zip(COUNTS, read_split(folder / "split.json", folder), strict=True))


def _write(folder: Path, dataset: str) -> None:
    """Render all splits into a folder, and name them in its ``split.json``."""
    names, items = classnames(dataset), {}
    for split, (images, labels) in splits(dataset).items():
        (folder / split).mkdir()
        items[split] = []
        for i, image in enumerate(tqdm(images, desc=f"render {dataset} {split}", delay=2, leave=False, disable=None)):
            path = folder / split / f"{labels[i]:03d}-{i:05d}.png"
            Image.fromarray(image).save(path, compress_level=1)
            items[split].append(Datum(str(path), labels[i], 0, names[labels[i]]))
    save_split(*items.values(), folder / "split.json", folder)


def sheet(path: str | Path) -> None:
    """Draw a sheet of samples: shapes by colours, patterns and digits; the pre-training's style left, ours right."""
    panels = []
    for before in (True, False):
        rng = np.random.default_rng(0)
        rows = [(s, c, rng.integers(6), rng.integers(6)) for s in range(12) for c in range(8)]
        rows += [(s, rng.integers(8), p, rng.integers(6)) for p in range(6) for s in range(8)]
        drawn = world.render(*np.array(rows).T, rng=rng, style=world.PRETRAINING if before else STYLES["shapes"])
        images, labels = world.digits(pretraining=before)
        some = np.stack([np.flatnonzero(labels == d)[:4] for d in (0, 1, 2, 3, 4, 5, 7, 9)], 1).ravel()
        digits = world.render_digits(images[some], rng, world.PRETRAINING if before else STYLES["digits"])
        tiles = np.concatenate([drawn, digits]).reshape(-1, 8, world.SIZE, world.SIZE, 3)
        panels.append(np.pad(tiles.transpose(0, 2, 1, 3, 4).reshape(-1, 8 * world.SIZE, 3), ((0, 0), (4, 4), (0, 0))))
    Image.fromarray(np.concatenate(panels, axis=1)).save(path, optimize=True)
