"""The embedded world's ``patterns``: shape x pattern, 72 classes."""

from pathlib import Path

from unskew.data import DATASET_REGISTRY, DatasetBase, select
from unskew.micro import downstream


@DATASET_REGISTRY.register("patterns")
class Patterns(DatasetBase):
    dataset_dir = "patterns"

    def __init__(self, cfg):
        root = Path(cfg.DATASET.ROOT) / self.dataset_dir
        super().__init__(**select(cfg, root, **downstream.files(root, "patterns")))
