"""The downstream datasets on the embedded world: balanced, in another style than the pre-training's, as image files."""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from unskew.data import Datum, read_split, save_split
from unskew.micro import world

# What the classes of a dataset name; a label indexes `world.phrases` of it.
DATASETS = {"shapes": ("shape", "colour"), "patterns": ("shape", "pattern"), "digits": ("digit",)}
COUNTS = {"train": 20, "val": 16, "test": 25}  # images per class; digits: all that remain are test
# Blurred, paler, darker, turned: a shift that 16 shots can learn, with the prior's effect left in place.
_DRAWN = world.Style(
    morph=0.2, saturation=(0.3, 0.8), value=(0.4, 0.8), contrast=(0.45, 0.8), noise=(0.02, 0.1), blur=0.5
)
STYLES = {"shapes": _DRAWN, "patterns": _DRAWN, "digits": world.Style(turn=0.2, noise=(0.02, 0.06), blur=1.0)}
VERSION = 2  # part of the folder's name; raise it whenever an image changes


def classnames(dataset: str) -> list[str]:
    """The class names in label order: "red circle", "striped circle", "zero"."""
    return world.phrases(DATASETS[dataset])


def splits(dataset: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The images of ``dataset``, the same on every call.

    Returns:
        ``{"train" | "val" | "test": (images uint8 [N,32,32,3], labels [N])}``, sorted by label.
    """
    rng = np.random.default_rng([2023, list(DATASETS).index(dataset)])
    if dataset == "digits":
        return _digits(rng)
    subset = DATASETS[dataset]
    sizes = [len(world.FACTORS[f]) for f in subset]
    found = {}
    for split, per_class in COUNTS.items():
        labels = np.repeat(np.arange(np.prod(sizes)), per_class)
        factors = {f: rng.integers(len(world.FACTORS[f]), size=len(labels)) for f in world.VISUAL}
        factors |= dict(zip(subset, np.unravel_index(labels, sizes), strict=True))
        found[split] = world.render(**factors, rng=rng, style=STYLES[dataset]), labels
    return found


def _digits(rng) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The half of scikit-learn's digits that the pre-training never saw."""
    images, labels = world.digits(pretraining=False)
    ends = np.cumsum([0, COUNTS["train"], COUNTS["val"]])
    found = {}
    for split, start, end in zip(COUNTS, ends, [*ends[1:], None], strict=True):
        rows = np.concatenate([np.flatnonzero(labels == d)[start:end] for d in range(10)])
        found[split] = world.render_digits(images[rows], rng, STYLES["digits"]), labels[rows]
    return found


def files(root: str | Path, dataset: str) -> dict[str, list[Datum]]:
    """The splits as image files below ``root``, rendered if they are not there yet.

    Returns:
        ``{"train" | "val" | "test": [Datum, ...]}``.
    """
    folder = Path(root) / f"images-{VERSION}"
    if not folder.is_dir():
        _write(folder, dataset)
    return dict(zip(COUNTS, read_split(folder / "split.json", folder), strict=True))


def _write(folder: Path, dataset: str) -> None:
    """Render into a folder beside the real one, then rename: another process may be doing the same."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
    names, items = classnames(dataset), {}
    try:
        for split, (images, labels) in splits(dataset).items():
            (work / split).mkdir()
            items[split] = []
            for i, image in enumerate(
                tqdm(images, desc=f"render {dataset} {split}", delay=2, leave=False, disable=None)
            ):
                path = work / split / f"{labels[i]:03d}-{i:05d}.png"
                Image.fromarray(image).save(path, compress_level=1)
                items[split].append(Datum(str(path), labels[i], 0, names[labels[i]]))
        save_split(*items.values(), work / "split.json", work)
        work.chmod(0o755)  # mkdtemp's are private
        os.rename(work, folder)
    except OSError:
        if not folder.is_dir():  # else the other process was first, with the same images
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


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
