"""The embedded world's ``shapes_lt``: shape x colour x pattern, 64 classes, long-tailed 100 : 1 in train."""

from pathlib import Path

from unskew.data import DATASET_REGISTRY, DatasetBase, select
from unskew.micro import downstream


@DATASET_REGISTRY.register("shapes_lt")
class ShapesLT(DatasetBase):
    dataset_dir = "shapes_lt"

    def __init__(self, cfg):
        root = Path(cfg.DATASET.ROOT) / self.dataset_dir
        super().__init__(**select(cfg, root, **downstream.files(root, "shapes_lt")))
