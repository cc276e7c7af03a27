"""The downstream datasets of the embedded worlds, as image files that are rendered at first use.

A world's module says which datasets it has (``DATASETS``, ``TEST_ONLY``), the names of their classes, and their images.
"""

from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image
from tqdm import tqdm

from unskew.data.dataset import Datum
from unskew.data.splits import Splits, read_once, read_split, save_split
from unskew.micro import drawn_datasets, emoji_datasets
from unskew.utils.files import cached_folder

_WORLDS: dict[str, ModuleType] = {
    name: module for module in (drawn_datasets, emoji_datasets) for name in module.DATASETS
}
NAMES = tuple(_WORLDS)
TEST_ONLY = frozenset((*drawn_datasets.TEST_ONLY, *emoji_datasets.TEST_ONLY))


def world_of(dataset: str) -> ModuleType:
    """Return the module of the world that a dataset belongs to."""
    return _WORLDS[dataset]


def classnames(dataset: str) -> list[str]:
    """Return the class names in label order, such as "red circle", "zero", "mammal"."""
    return world_of(dataset).classnames(dataset)


def splits(dataset: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Render the images of a dataset, the same on every call.

    Returns:
        ``{"train" | "val" | "test": (images uint8 [N, 32, 32, 3], labels [N])}``, sorted by label; only "test" for the
        datasets in `TEST_ONLY`.
    """
    return world_of(dataset).splits(dataset)


def files(root: str | Path, dataset: str) -> Splits:
    """Return train, val and test as image files below ``root``; render the files at first use."""
    name = f"images-{world_of(dataset).VERSION}"
    folder = cached_folder(root, name, lambda path: write_pictures(path, dataset, splits(dataset)))
    return read_once(("split file", folder), lambda: read_split(folder / "split.json", folder))


def write_pictures(folder: Path, dataset: str, pictures: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Write the images of all splits with a dataset's class names to a folder, and list them in its ``split.json``."""
    names = classnames(dataset)
    items: dict[str, list[Datum]] = {"train": [], "val": []}
    for split, (images, labels) in pictures.items():
        (folder / split).mkdir()
        items[split] = []
        for i, image in enumerate(tqdm(images, desc=f"render {dataset} {split}", delay=2, leave=False, disable=None)):
            path = folder / split / f"{labels[i]:03d}-{i:05d}.png"
            Image.fromarray(image).save(path, compress_level=1)
            items[split].append(Datum(str(path), int(labels[i]), 0, names[labels[i]]))
    save_split(items["train"], items["val"], items["test"], folder / "split.json", folder)
