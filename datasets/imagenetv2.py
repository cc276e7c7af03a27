"""ImageNetV2, matched frequency (Recht et al. 2019): ten new images of each class of ImageNet."""

from pathlib import Path

from yacs.config import CfgNode

from unskew.data.dataset import DATASET_REGISTRY
from unskew.data.image_folders import class_folders, folder_items
from unskew.data.imagenet import NAMES, ImageNetVariant, imagenet_names, names_file
from unskew.data.names import listed
from unskew.data.splits import PREPARE_AGAIN, Splits
from unskew.download.sources import DatasetInfo, Source

_FILE = "imagenetv2-matched-frequency.tar.gz"


@DATASET_REGISTRY.register("imagenetv2")
class ImageNetV2(ImageNetVariant):
    dataset_dir = "imagenetv2"
    image_dir = "imagenetv2-matched-frequency-format-val"
    info = DatasetInfo(1000, 0, 0, 10000, "1.3 GB", "MIT", "https://github.com/modestyachts/ImageNetV2", {"test": 10})
    sources = (
        Source(
            _FILE,
            (
                f"https://s3-us-west-2.amazonaws.com/imagenetv2public/{_FILE}",
                f"https://huggingface.co/datasets/vaishaal/ImageNetV2/resolve/main/{_FILE}",
            ),
            makes={image_dir: image_dir},
        ),
        NAMES,
    )

    @classmethod
    def read(cls, cfg: CfgNode, root: Path) -> Splits:
        names = imagenet_names(root).values()
        classes = {str(label): (label, name) for label, name in enumerate(names)}  # the folders are named 0 to 999
        unnamed = [name for name in class_folders(root / cls.image_dir) if name not in classes]
        if unnamed:
            raise ValueError(
                f"'{names_file(root)}' has {len(names)} names, and none for the folder(s) {listed(unnamed)}; "
                f"{PREPARE_AGAIN}"
            )
        return [], [], folder_items(root / cls.image_dir, classes)
