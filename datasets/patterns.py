"""The embedded world's ``patterns``: shape x pattern, 72 classes."""

from unskew.data import DATASET_REGISTRY
from unskew.micro.dataset import EmbeddedDataset
from unskew.sources import Card


@DATASET_REGISTRY.register("patterns")
class Patterns(EmbeddedDataset):
    dataset_dir = "patterns"
    card = Card(72, 1440, 1152, 1800, "none", "MIT", "docs/MICRO.md", {"train": 20, "val": 16, "test": 25})
