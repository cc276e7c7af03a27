"""The embedded world's ``shapes``: shape x colour, 96 classes."""

from unskew.data import DATASET_REGISTRY
from unskew.micro.dataset import EmbeddedDataset
from unskew.sources import Card


@DATASET_REGISTRY.register("shapes")
class Shapes(EmbeddedDataset):
    dataset_dir = "shapes"
    card = Card(96, 1920, 1536, 2400, "none", "MIT", "docs/MICRO.md", {"train": 20, "val": 16, "test": 25})
