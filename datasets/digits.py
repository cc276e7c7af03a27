"""The embedded world's ``digits``: scikit-learn's real handwritten digits, the half that no pre-training saw."""

from pathlib import Path

from unskew.data import DATASET_REGISTRY, DatasetBase
from unskew.fewshot import select
from unskew.micro import downstream
from unskew.sources import Card


@DATASET_REGISTRY.register("digits")
class Digits(DatasetBase):
    dataset_dir = "digits"
    card = Card(10, 200, 160, 536, "none", "BSD 3-Clause", "docs/MICRO.md", {"train": 20, "val": 16})
    template = "a photo of the digit {}."

    def __init__(self, cfg):
        root = Path(cfg.DATASET.ROOT) / self.dataset_dir
        super().__init__(**select(cfg, root, **downstream.files(root, "digits")))
