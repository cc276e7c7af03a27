"""The embedded world's ``shapes``: shape x colour, 96 classes."""

from pathlib import Path

from unskew.data import DATASET_REGISTRY, DatasetBase
from unskew.fewshot import select
from unskew.micro import downstream
from unskew.sources import Card


@DATASET_REGISTRY.register("shapes")
class Shapes(DatasetBase):
    dataset_dir = "shapes"
    card = Card(96, 1920, 1536, 2400, "none", "MIT", "docs/MICRO.md", {"train": 20, "val": 16, "test": 25})

    def __init__(self, cfg):
        root = Path(cfg.DATASET.ROOT) / self.dataset_dir
        super().__init__(**select(cfg, root, **downstream.files(root, "shapes")))
