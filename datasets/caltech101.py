"""Caltech101: objects, 100 classes (Fei-Fei et al. 2004)."""

from pathlib import Path

from yacs.config import CfgNode

from unskew.data.dataset import DATASET_REGISTRY
from unskew.data.published import PublishedDataset, split_folders, split_source
from unskew.data.splits import Splits
from unskew.download.sources import DatasetInfo, Source

IGNORED = ("BACKGROUND_Google", "Faces_easy")
CLASSNAMES = {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"}


@DATASET_REGISTRY.register("caltech101")
class Caltech101(PublishedDataset):
    dataset_dir = "caltech-101"
    image_dir = "101_ObjectCategories"
    split_file = "split_zhou_Caltech101.json"
    imagenet_templates = True
    info = DatasetInfo(100, 4128, 1649, 2465, "0.1 GB", "CC BY 4.0", "https://data.caltech.edu/records/20086")
    sources = (
        Source(
            "101_ObjectCategories.tar.gz",
            (
                "https://www.vision.caltech.edu/Image_Datasets/Caltech101/101_ObjectCategories.tar.gz",
                "drive:137RyRjvTBkBiIfeYBNZBtViDHQ6_Ewsp",
            ),
            makes={"101_ObjectCategories": "101_ObjectCategories"},
            checksum="md5:b224c7392d521a49829488ab0f1120d9",
            page="https://data.caltech.edu/records/20086 (in caltech-101.zip)",
        ),
        split_source(
            split_file,
            "1hyarUivQE36mY6jSomru6Fjd-JzwcCzN",
            "52ce83205ff8ff8a1a18119aad6376120ae35c36e783a984bc560cbf10e73fa5",
        ),
    )

    @classmethod
    def read(cls, cfg: CfgNode, root: Path) -> Splits:
        return split_folders(root / cls.image_dir, CLASSNAMES, IGNORED)
