"""What the embedded world's datasets share: their images are rendered where they are first asked for."""

from unskew.data.dataset import DatasetBase
from unskew.data.fewshot import select
from unskew.micro import downstream
from unskew.utils.files import expand


class EmbeddedDataset(DatasetBase):
    """A subclass says its name in the world, which is its folder's too, and the numbers of its images (``info``)."""

    def __init__(self, cfg):
        root = expand(cfg.DATASET.ROOT) / self.dataset_dir
        super().__init__(**select(cfg, root, **downstream.files(root, self.dataset_dir)))
