"""The embedded world's ``digits``: scikit-learn's real handwritten digits, the half that no pre-training saw."""

from pathlib import Path

from unskew.data import DATASET_REGISTRY, DatasetBase, select
from unskew.micro import downstream


@DATASET_REGISTRY.register("digits")
class Digits(DatasetBase):
    dataset_dir = "digits"
    template = "a photo of the digit {}."

    def __init__(self, cfg):
        root = Path(cfg.DATASET.ROOT) / self.dataset_dir
        super().__init__(**select(cfg, root, **downstream.files(root, "digits")))
