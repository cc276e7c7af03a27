"""The base class of the embedded datasets, whose images are rendered at first use."""

from yacs.config import CfgNode

from unskew.data.dataset import DatasetBase
from unskew.data.fewshot import select
from unskew.download.sources import DatasetInfo
from unskew.micro import downstream
from unskew.utils.files import expand


class EmbeddedDataset(DatasetBase):
    """A dataset of an embedded world.

    Attributes:
        dataset_dir: the dataset's name in `downstream.DATASETS`, and its folder.
        info: the numbers of its images.
    """

    info: DatasetInfo

    def __init__(self, cfg: CfgNode) -> None:
        root = expand(cfg.DATASET.ROOT) / self.dataset_dir
        test_only = self.dataset_dir in downstream.TEST_ONLY
        if test_only and cfg.DATASET.SUBSAMPLE_CLASSES != "all":
            raise ValueError(f"DATASET.SUBSAMPLE_CLASSES must be all: '{cfg.DATASET.NAME}' has test images only")
        images = select(cfg, root, *downstream.files(root, self.dataset_dir))
        super().__init__(**images, classnames=downstream.classnames(self.dataset_dir) if test_only else None)
        if test_only:
            self.test_classes = sorted({item.label for item in self.test})
