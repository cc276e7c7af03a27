"""Images of your own in class folders, torchvision's ImageFolder layout, with or without folders of splits."""

import logging
import random
from pathlib import Path

from unskew.data.custom import read_names, selected, split_name
from unskew.data.dataset import DATASET_REGISTRY, DatasetBase, Datum
from unskew.data.image_folders import class_folders, list_images
from unskew.data.published import SPLITS, folder_items
from unskew.data.sampling import split_in_three
from unskew.utils.files import expand, user_cache

logger = logging.getLogger("unskew")


@DATASET_REGISTRY.register("folder")
class Folder(DatasetBase):
    """``ROOT/<class>/*.jpg``, or ``ROOT/{train,val,test}/<class>/*.jpg``; names from the folders or a file.

    Without split folders 50, 20 and 30% of each class are train, val and test, the same for every seed.
    """

    def __init__(self, cfg):
        root = expand(cfg.DATASET.ROOT)
        if not cfg.DATASET.ROOT or not root.is_dir():
            raise FileNotFoundError(
                f"there is no folder '{cfg.DATASET.ROOT}': give that of your class folders with --root"
            )
        super().__init__(**selected(cfg, root, read(root, cfg.DATASET.CLASSNAMES)))


def _split_folders(root: Path) -> dict[str, Path]:
    """The folders of the splits in the order of ``SPLITS``; none where the folders are those of classes.

    Raises:
        ValueError: two folders are the same split, or there are others beside them.
    """
    names, folders = class_folders(root), {}
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
        return {}  # beside other classes one may be called "train"
    return {split: folders[split] for split in SPLITS if split in folders}


def read(root: Path, names_file: str = "") -> dict[str, list[Datum]]:
    """All images by split.

    Raises:
        ValueError: there are no class folders with images.
    """
    folders = _split_folders(root) or {"": root}
    listed = {split: list_images(folder, user_cache(folder)) for split, folder in folders.items()}
    classes = sorted({name for found in listed.values() for name, images in found.items() if images})
    if len(classes) < 2:
        found = f"only the class folder '{classes[0]}'" if classes else "no class folders with images"
        raise ValueError(f"'{root}' has {found}: give the folder that holds a folder of images for each class")
    for name in classes:
        if not name.isprintable():
            raise ValueError(f"the folder {name!r} in '{root}' has no name in UTF-8 that can be printed: rename it")
    names = read_names(names_file)
    if set(names) == set(map(str, range(len(classes)))) != set(classes):  # a list, in the folders' order
        names = dict(zip(classes, names.values(), strict=True))
    labels = {name: (label, names.get(name, name)) for label, name in enumerate(classes)}
    unknown = sorted(set(classes) - set(names)) if names else []
    if unknown:
        raise ValueError(f"DATASET.CLASSNAMES '{names_file}' has no name for the folder '{unknown[0]}'")
    empty = sorted({name for found in listed.values() for name in found} - set(classes))
    if empty:
        logger.warning(f"{len(empty)} folder(s) in '{root}' have no images and are left out, '{empty[0]}' the first")
    splits = {}
    for split, folder in folders.items():
        present = {name: labels[name] for name in classes if name in listed[split]}
        splits[split] = folder_items(folder, present, user_cache(folder))
    if list(splits) in ([""], ["train"]):
        return dict(zip(SPLITS, split_in_three(*splits.values(), random.Random(0)), strict=True))
    return splits
