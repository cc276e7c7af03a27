"""Shapes-shifted: test images of 48 classes of `shapes` in another style (embedded world)."""

from unskew.data.dataset import DATASET_REGISTRY
from unskew.download.sources import DatasetInfo
from unskew.micro.dataset import EmbeddedDataset


@DATASET_REGISTRY.register("shapes_shifted")
class ShapesShifted(EmbeddedDataset):
    dataset_dir = "shapes_shifted"
    info = DatasetInfo(48, 0, 0, 1200, "none", "MIT", "docs/MICRO.md", {"test": 25})
