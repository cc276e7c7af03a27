"""Shapes: shape x colour, 96 classes (embedded world)."""

from unskew.data.dataset import DATASET_REGISTRY
from unskew.download.sources import DatasetInfo
from unskew.micro.dataset import EmbeddedDataset


@DATASET_REGISTRY.register("shapes")
class Shapes(EmbeddedDataset):
    dataset_dir = "shapes"
    info = DatasetInfo(96, 1920, 1536, 2400, "none", "MIT", "docs/MICRO.md", {"train": 20, "val": 16, "test": 25})
