"""Digits: scikit-learn's real handwritten digits, the half that pre-training did not see (embedded world)."""

from unskew.data.dataset import DATASET_REGISTRY
from unskew.download.sources import DatasetInfo
from unskew.micro.dataset import EmbeddedDataset


@DATASET_REGISTRY.register("digits")
class Digits(EmbeddedDataset):
    dataset_dir = "digits"
    info = DatasetInfo(10, 200, 160, 536, "none", "BSD 3-Clause", "docs/MICRO.md", {"train": 20, "val": 16})
    template = "a photo of the digit {}."
