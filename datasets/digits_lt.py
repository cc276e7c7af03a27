"""The embedded world's ``digits_lt``: real handwritten digits, 10 classes, long-tailed 50 : 1 in train."""

from pathlib import Path

from unskew.data import DATASET_REGISTRY, DatasetBase
from unskew.fewshot import select
from unskew.micro import downstream
from unskew.sources import Card


@DATASET_REGISTRY.register("digits_lt")
class DigitsLT(DatasetBase):
    dataset_dir = "digits_lt"
    card = Card(10, 135, 100, 250, "none", "BSD 3-Clause", "docs/MICRO.md", {"val": 10, "test": 25})
    template = "a photo of the digit {}."

    def __init__(self, cfg):
        root = Path(cfg.DATASET.ROOT) / self.dataset_dir
        super().__init__(**select(cfg, root, **downstream.files(root, "digits_lt")))
