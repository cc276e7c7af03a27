"""The embedded world's ``patterns``: shape x pattern, 72 classes."""

from pathlib import Path

from unskew.data import DATASET_REGISTRY, DatasetBase
from unskew.fewshot import select
from unskew.micro import downstream
from unskew.sources import Card


@DATASET_REGISTRY.register("patterns")
class Patterns(DatasetBase):
    dataset_dir = "patterns"
    card = Card(72, 1440, 1152, 1800, "none", "MIT", "docs/MICRO.md", {"train": 20, "val": 16, "test": 25})

    def __init__(self, cfg):
        root = Path(cfg.DATASET.ROOT) / self.dataset_dir
        super().__init__(**select(cfg, root, **downstream.files(root, "patterns")))
