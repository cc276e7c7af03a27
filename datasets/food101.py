"""Food-101: dishes (Bossard et al. 2014)."""

from pathlib import Path

from yacs.config import CfgNode

from unskew.data.dataset import DATASET_REGISTRY
from unskew.data.published import PublishedDataset, split_folders, split_source
from unskew.data.splits import Splits
from unskew.download.sources import DatasetInfo, Source


@DATASET_REGISTRY.register("food101")
class Food101(PublishedDataset):
    dataset_dir = "food-101"
    image_dir = "images"
    split_file = "split_zhou_Food101.json"
    template = "a photo of {}, a type of food."
    context_init = "a type of food, a photo of {}."
    info = DatasetInfo(
        101,
        50500,
        20200,
        30300,
        "5.0 GB",
        "research; the images are Foodspotting's",
        "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        {"train": 500, "val": 200, "test": 300},
    )
    sources = (
        Source(
            "food-101.tar.gz",
            ("https://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",),
            makes={"food-101/images": "images", "food-101/meta": "meta"},
            checksum="md5:85eeb15f3717b99a5da872d97d918f87",
        ),
        split_source(split_file, "1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl"),
    )

    @classmethod
    def read(cls, cfg: CfgNode, root: Path) -> Splits:
        return split_folders(root / cls.image_dir)
