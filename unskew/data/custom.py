"""Reading of the user's own images: the selection of a run, and class folders. No file is written among the images."""

import logging
import random
from collections.abc import Mapping
from pathlib import Path

from yacs.config import CfgNode

from unskew.data.copies import warn_of_copies
from unskew.data.dataset import Datum, class_names
from unskew.data.fewshot import select
from unskew.data.image_folders import OWN_NAMES, class_folders, list_subfolder, listed_items, user_images
from unskew.data.names import class_order, composed, read_names, warn_of_equal_prompts
from unskew.data.readable import ReadableSelection, select_readable
from unskew.data.sampling import split_in_three
from unskew.data.snapshot import remember
from unskew.data.splits import SPLITS
from unskew.utils.files import user_cache

logger = logging.getLogger("unskew")

_ALIASES = {"valid": "val", "validation": "val", "dev": "val", "training": "train", "testing": "test"}


class NamedSelection(ReadableSelection):
    """The images of a run and the names of all classes: arguments of `DatasetBase`."""

    classnames: list[str]


def select_splits(cfg: CfgNode, root: Path, splits: Mapping[str, list[Datum]], check: bool = True) -> NamedSelection:
    """Select a run's images; without test images, the images of val are tested, as with ImageNet.

    Args:
        cfg: the run's config, see `select`.
        root: the folder or CSV file; it identifies the cache.
        splits: the images by split.
        check: open the images to find unreadable ones.

    Raises:
        ValueError: there are training images only, one class only, or unreadable images, see `select_readable`.
    """
    train, val, test = (splits.get(split, []) for split in SPLITS)
    if not test:
        val, test = [], val
    if not test:
        raise ValueError(f"'{root}' has training images only: add a split 'test' or 'val', or give no splits at all")
    names = class_names(f"'{root}'", (train, val, test))
    if len(names) == 1:
        raise ValueError(f"'{root}' has only the class '{names[0]}': give images of two classes or more")
    unseen = sorted(set(names) - {item.label for item in train}) if train else []
    if unseen:
        logger.warning(f"{len(unseen)} class(es) have no training images, for instance '{names[unseen[0]]}'")
    warn_of_equal_prompts(names)
    if check:
        warn_of_copies(cfg.DATASET.NAME, root, train, test)
        chosen = select_readable(cfg, root, train, val, test)
    else:
        chosen = ReadableSelection(**select(cfg, root, train, val, test, cache=user_cache(root)), unreadable_test=[])
    classnames = list(names.values()) if cfg.DATASET.SUBSAMPLE_CLASSES == "all" else []
    return NamedSelection(**chosen, classnames=classnames)


def split_name(text: str) -> str | None:
    """Return ``train``, ``val`` or ``test`` for a common name of a split, ``None`` for any other word."""
    name = text.strip().lower()
    name = _ALIASES.get(name, name)
    return name if name in SPLITS else None


def divided(items: list[Datum]) -> dict[str, list[Datum]]:
    """Return images without splits by split, the same for every seed."""
    return dict(zip(SPLITS, split_in_three(items, random.Random(0)), strict=True))


# --- class folders -------------------------------------------------------------------------------------


def read_folders(root: Path, names_file: str = "") -> dict[str, list[Datum]]:
    """Read ``root/<class>/*.jpg`` or ``root/{train,val,test}/<class>/*.jpg``.

    Args:
        root: the folder.
        names_file: a file of class names; default ``root/classnames.json`` if it exists, else the folders' names.

    Returns:
        All images by split.

    Raises:
        ValueError: there are fewer than two class folders with images, two of them are the same number, or the names
            do not fit the folders.
    """
    if not names_file and (root / OWN_NAMES).is_file():
        names_file = str(root / OWN_NAMES)
    splits, empty = remember(("folders", root, names_file), lambda: _read_folders(root, names_file))
    if empty:
        logger.warning(f"{len(empty)} folder(s) in '{root}' have no images and are skipped, for instance '{empty[0]}'")
    return {split: list(items) for split, items in splits.items()}


def _read_folders(root: Path, names_file: str) -> tuple[dict[str, list[Datum]], list[str]]:
    """Return all images by split, and the class folders without images."""
    folders = _split_folders(root)
    images = user_images(root)
    listed = {
        split: list_subfolder(folder, images.get(folder.name, ()), user_cache(folder))
        for split, folder in folders.items()
    }
    if not folders:
        folders, listed = {"": root}, {"": images}
    known = sorted({composed(name) for images in listed.values() for name in images})
    filled = {composed(name) for images in listed.values() for name, paths in images.items() if paths}
    _check_classes(root, sorted(filled))
    classes = class_order(filled, f"'{root}'")
    names = read_names(names_file, classes, known)
    labels = {key: (label, name) for label, (key, name) in enumerate(zip(classes, names, strict=True))}
    splits: dict[str, list[Datum]] = {}
    for split, folder in folders.items():
        present = {name: labels[composed(name)] for name in listed[split] if composed(name) in labels}
        present = dict(sorted(present.items(), key=lambda entry: entry[1][0]))
        splits[split] = listed_items(folder, listed[split], present)
    if list(splits) in ([""], ["train"]):
        splits = divided(next(iter(splits.values())))
    return splits, sorted(set(known) - filled)


def _check_classes(root: Path, classes: list[str]) -> None:
    if len(classes) < 2:
        content = f"only the class folder '{classes[0]}'" if classes else "no class folders with images"
        raise ValueError(f"'{root}' has {content}: give the folder that holds a folder of images for each class")
    for name in classes:
        if not name.isprintable():
            raise ValueError(f"the name of the folder {name!r} in '{root}' is not printable UTF-8: rename it")


def _split_folders(root: Path) -> dict[str, Path]:
    """Return the folders of the splits in the order of ``SPLITS``, or none if ``root`` holds class folders.

    Raises:
        ValueError: two folders are the same split, or there are other folders beside the splits.
    """
    names = class_folders(root)
    folders: dict[str, Path] = {}
    for name in names:
        split = split_name(name)
        if split in folders:
            raise ValueError(f"'{root}' has two folders for {split}, '{folders[split].name}' and '{name}': keep one")
        if split:
            folders[split] = root / name
    others = [name for name in names if not split_name(name)]
    if others and folders:
        if any(map(class_folders, folders.values())):
            raise ValueError(
                f"'{root}' has folders of splits ('{next(iter(folders.values())).name}') and others ('{others[0]}'): "
                "keep either splits or classes in it"
            )
        return {}  # a class may be called "train"
    return {split: folders[split] for split in SPLITS if split in folders}
