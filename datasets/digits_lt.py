"""Digits-LT: real handwritten digits, 10 classes, long-tailed 50 : 1 in train (embedded world)."""

from unskew.data.dataset import DATASET_REGISTRY
from unskew.download.sources import DatasetInfo
from unskew.micro.dataset import EmbeddedDataset


@DATASET_REGISTRY.register("digits_lt")
class DigitsLT(EmbeddedDataset):
    dataset_dir = "digits_lt"
    info = DatasetInfo(10, 135, 100, 250, "none", "BSD 3-Clause", "docs/MICRO.md", {"val": 10, "test": 25})
    template = "a photo of the digit {}."
