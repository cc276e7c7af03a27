"""Places-LT (Liu et al. 2019): lists of images of Places365, long-tailed in train, balanced in val and test."""

from pathlib import Path

from yacs.config import CfgNode

from unskew.data.dataset import DATASET_REGISTRY
from unskew.data.imagenet import lift_source
from unskew.data.names import check_used, read_pairs
from unskew.data.published import PublishedDataset
from unskew.data.splits import SPLITS, Splits, read_list
from unskew.download.sources import DatasetInfo, Source

_PAGE = "http://places2.csail.mit.edu/download.html"


@DATASET_REGISTRY.register("places_lt")
class PlacesLT(PublishedDataset):
    dataset_dir = "places_lt"
    info = DatasetInfo(365, 62500, 7300, 36500, "21 GB", "research and education", _PAGE, {"val": 20, "test": 100})
    sources = (
        lift_source(
            "Places_LT/Places_LT_train.txt", "726c4871dcbf07ce2f857703bfe32e9a83ffbf52d704239f6d95c4f4f4c247f7"
        ),
        lift_source("Places_LT/Places_LT_val.txt", "719e3cf3766c09134ea28f56f1036c78def511ac1ed2c2532a6beef78f2439ba"),
        lift_source("Places_LT/Places_LT_test.txt", "44eee8441c8098c59195465abede425721bc35525d75209f9433b161a6eb37bc"),
        lift_source("Places_LT/classnames.txt", "bee03ea5431ad49d156f159d24961f8c2787d3b7ac853b962c9cf256cafe50d1"),
        Source(
            "places365standard_easyformat.tar",
            ("https://data.csail.mit.edu/places/places365/places365standard_easyformat.tar",),
            makes={"places365_standard/train": "train", "places365_standard/val": "val"},
            page=_PAGE,
        ),
    )

    @classmethod
    def read(cls, cfg: CfgNode, root: Path) -> Splits:
        names = list(read_pairs(root / "classnames.txt").values())
        train, val, test = (read_list(root / f"Places_LT_{split}.txt", root, names) for split in SPLITS)
        check_used(root / "classnames.txt", names, train, val, test)
        return train, val, test
