"""The user's own images in class folders (torchvision's ImageFolder layout), with or without folders of splits."""

from yacs.config import CfgNode

from unskew.data.custom import read_folders, select_splits
from unskew.data.dataset import DATASET_REGISTRY, DatasetBase
from unskew.utils.files import expand


@DATASET_REGISTRY.register("folder")
class Folder(DatasetBase):
    """``ROOT/<class>/*.jpg``, or ``ROOT/{train,val,test}/<class>/*.jpg``.

    Without split folders, 50, 20 and 30% of each class are train, val and test, the same for every seed.
    """

    def __init__(self, cfg: CfgNode, check: bool = True) -> None:
        root = expand(cfg.DATASET.ROOT)
        if not cfg.DATASET.ROOT or not root.is_dir():
            fault = f"there is no folder '{cfg.DATASET.ROOT}'" if cfg.DATASET.ROOT else "DATASET.ROOT is empty"
            raise FileNotFoundError(f"{fault}: give the folder of your class folders with --root")
        super().__init__(**select_splits(cfg, root, read_folders(root, cfg.DATASET.CLASSNAMES), check))
