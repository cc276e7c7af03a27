"""ImageNet-LT (Liu et al. 2019): ImageNet's images by lists, long-tailed in train, balanced in val and test."""

from pathlib import Path

from unskew.data.dataset import DATASET_REGISTRY
from unskew.data.imagenet import NAMES, VAL_LIST, image_folder, imagenet_names, lift_source
from unskew.data.published import SPLITS, PublishedDataset
from unskew.data.splits import read_list
from unskew.datasets.imagenet import ImageNet
from unskew.download.sources import DatasetInfo, Source


def _images(root: Path) -> Path:
    """The folder of train and val: below this dataset's own, or ImageNet's."""
    own, other = image_folder(root), image_folder(root.parent / ImageNet.dataset_dir)
    return own if (own / "train").is_dir() else other


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
            Source(
                split, elsewhere=(f"../imagenet/images/{split}", f"../imagenet/{split}"), page="imagenet's own folder"
            )
            for split in ("train", "val")
        ),
    )

    @classmethod
    def read(cls, cfg, root):
        names = list(imagenet_names(root).values())
        return tuple(read_list(root / f"ImageNet_LT_{split}.txt", _images(root), names) for split in SPLITS)
