"""The user's own images in a CSV file with the columns path, label or classname, and perhaps split."""

from yacs.config import CfgNode

from unskew.data.custom import select_splits
from unskew.data.custom_csv import read_csv
from unskew.data.dataset import DATASET_REGISTRY, DatasetBase
from unskew.utils.files import expand


@DATASET_REGISTRY.register("csv")
class CSV(DatasetBase):
    """``ROOT`` is the file; its paths are absolute or relative to its folder.

    Without a column ``split``, 50, 20 and 30% of each class are train, val and test, the same for every seed.
    """

    def __init__(self, cfg: CfgNode, check: bool = True) -> None:
        file = expand(cfg.DATASET.ROOT)
        if not file.is_file():
            fault = f"there is no file '{cfg.DATASET.ROOT}'" if cfg.DATASET.ROOT else "DATASET.ROOT is empty"
            raise FileNotFoundError(f"{fault}: give your CSV file with --root")
        super().__init__(**select_splits(cfg, file, read_csv(file, cfg.DATASET.CLASSNAMES), check))
