"""The embedded world's ``digits_lt``: real handwritten digits, 10 classes, long-tailed 50 : 1 in train."""

from pathlib import Path

from unskew.data import DATASET_REGISTRY, DatasetBase, select
from unskew.micro import downstream


@DATASET_REGISTRY.register("digits_lt")
class DigitsLT(DatasetBase):
    dataset_dir = "digits_lt"
    template = "a photo of the digit {}."

    def __init__(self, cfg):
        root = Path(cfg.DATASET.ROOT) / self.dataset_dir
        super().__init__(**select(cfg, root, **downstream.files(root, "digits_lt")))
