"""The embedded world's ``shapes_lt``: shape x colour x pattern, 64 classes, long-tailed 100 : 1 in train."""

from pathlib import Path

from unskew.data import DATASET_REGISTRY, DatasetBase
from unskew.fewshot import select
from unskew.micro import downstream
from unskew.sources import Card


@DATASET_REGISTRY.register("shapes_lt")
class ShapesLT(DatasetBase):
    dataset_dir = "shapes_lt"
    card = Card(64, 2778, 640, 1600, "none", "MIT", "docs/MICRO.md", {"val": 10, "test": 25})

    def __init__(self, cfg):
        root = Path(cfg.DATASET.ROOT) / self.dataset_dir
        super().__init__(**select(cfg, root, **downstream.files(root, "shapes_lt")))
