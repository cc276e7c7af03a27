"""Shapes-LT: shape x colour x pattern, 64 classes, long-tailed 100 : 1 in train (embedded world)."""

from unskew.data.dataset import DATASET_REGISTRY
from unskew.download.sources import DatasetInfo
from unskew.micro.dataset import EmbeddedDataset


@DATASET_REGISTRY.register("shapes_lt")
class ShapesLT(EmbeddedDataset):
    dataset_dir = "shapes_lt"
    info = DatasetInfo(64, 2778, 640, 1600, "none", "MIT", "docs/MICRO.md", {"val": 10, "test": 25})
