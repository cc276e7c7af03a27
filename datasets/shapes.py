"""The embedded world's ``shapes``: shape x colour, 96 classes."""

from pathlib import Path

from unskew.data import DATASET_REGISTRY, DatasetBase, select
from unskew.micro import downstream


@DATASET_REGISTRY.register("shapes")
class Shapes(DatasetBase):
    dataset_dir = "shapes"

    def __init__(self, cfg):
        root = Path(cfg.DATASET.ROOT) / self.dataset_dir
        super().__init__(**select(cfg, root, **downstream.files(root, "shapes")))
