"""Patterns: shape x pattern, 72 classes (embedded world)."""

from unskew.data.dataset import DATASET_REGISTRY
from unskew.download.sources import DatasetInfo
from unskew.micro.dataset import EmbeddedDataset


@DATASET_REGISTRY.register("patterns")
class Patterns(EmbeddedDataset):
    dataset_dir = "patterns"
    info = DatasetInfo(72, 1440, 1152, 1800, "none", "MIT", "docs/MICRO.md", {"train": 20, "val": 16, "test": 25})
