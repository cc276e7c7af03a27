"""ImageNet-LT (Liu et al. 2019): lists of ImageNet's images, long-tailed in train, balanced in val and test."""

import os
from collections.abc import Sequence
from pathlib import Path

from yacs.config import CfgNode

from unskew.data.dataset import DATASET_REGISTRY, Datum
from unskew.data.imagenet import NAMES, VAL_LIST, image_folder, imagenet_names, known_folders, lift_source, names_file
from unskew.data.published import PublishedDataset
from unskew.data.splits import PREPARE_AGAIN, SPLITS, Splits, read_list
from unskew.datasets.imagenet import ImageNet
from unskew.download.sources import DatasetInfo, Source


def _images(root: Path) -> Path:
    """Return the folder that holds train and val, in this dataset's folder or in ImageNet's."""
    here = image_folder(root)
    return here if (here / "train").is_dir() else image_folder(root.parent / ImageNet.dataset_dir)


@DATASET_REGISTRY.register("imagenet_lt")
class ImageNetLT(PublishedDataset):
    dataset_dir = "imagenet_lt"
    imagenet_templates = True
    info = DatasetInfo(
        1000,
        115846,
        20000,
        50000,
        "4 MB and ImageNet",
        "as ImageNet",
        "https://liuziwei7.github.io/projects/LongTail.html",
        {"val": 20, "test": 50},
    )
    sources = (
        lift_source("ImageNet_LT/ImageNet_LT_train.txt"),
        lift_source(
            "ImageNet_LT/ImageNet_LT_val.txt", "9af7ba688acf9532ff5845a8fb14a1e97fdc4c51ac48bc72c08ea9c3f7ff142e"
        ),
        VAL_LIST,
        NAMES,
        *(
            Source(split, elsewhere=(f"../imagenet/images/{split}", f"../imagenet/{split}"), page="imagenet's folder")
            for split in ("train", "val")
        ),
    )

    @classmethod
    def read(cls, cfg: CfgNode, root: Path) -> Splits:
        images, names = _images(root), imagenet_names(root)
        if (images / "train").is_dir():
            known_folders(root, images / "train", names)
        labels = list(names.values())
        train, val, test = (read_list(root / f"ImageNet_LT_{split}.txt", images, labels) for split in SPLITS)
        _check_folders(names_file(root), list(names), [*train, *val, *test])
        return train, val, test


def _check_folders(path: Path, folders: Sequence[str], items: Sequence[Datum]) -> None:
    """Raise ``ValueError`` unless each label of the lists is that of its image's folder among the names."""
    for item in items:
        folder = os.path.basename(os.path.dirname(item.impath))
        if folder != folders[item.label]:
            raise ValueError(
                f"'{path}' has '{folders[item.label]}' as class {item.label}, but the lists have '{folder}'; "
                f"{PREPARE_AGAIN}"
            )
