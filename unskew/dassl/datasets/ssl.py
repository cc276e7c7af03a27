"""Datasets of semi-supervised learning: few labelled and many unlabelled training images, without class names."""

import itertools
import math
import os
import random

from yacs.config import CfgNode

from unskew.dassl.data import Datum
from unskew.dassl.datasets._base import PublishedDataset, images_in_folders, label_in_name
from unskew.dassl.utils import listdir_nohidden

__all__ = ["CIFAR10", "CIFAR100", "STL10", "SVHN"]


class CIFAR10(PublishedDataset):
    """CIFAR-10 (Krizhevsky, 2009) with ``DATASET.NUM_LABELED`` labelled training images.

    The first ``DATASET.VAL_PERCENT`` of a class's files are val (Oliver et al., NeurIPS 2018). Python's global
    generator draws the labelled images from the others. ``DATASET.ALL_AS_UNLABELED`` adds them to the unlabelled ones.
    """

    dataset_dir = "cifar10"
    page = (
        "https://github.com/KaiyangZhou/Dassl.pytorch/blob/master/datasets/ssl/cifar10_cifar100_svhn.py "
        "(run this script)"
    )
    layout = "train or test/CLASS/IMAGE"

    def _read_splits(self, cfg: CfgNode) -> dict[str, list[Datum] | None]:
        keys = cfg.DATASET
        self._check_key(keys.NUM_LABELED > 0, "NUM_LABELED", keys.NUM_LABELED, "at least 1")
        train_dir = os.path.join(self.dataset_dir, "train")
        train_x, train_u, val = self._read_data_train(train_dir, keys.NUM_LABELED, keys.VAL_PERCENT)
        test = self._read_data_test(os.path.join(self.dataset_dir, "test"))
        if keys.ALL_AS_UNLABELED:
            train_u = train_u + train_x
        return {"train_x": train_x, "train_u": train_u, "val": val or None, "test": test}

    def _read_data_train(
        self, data_dir: str, num_labeled: int, val_percent: float
    ) -> tuple[list[Datum], list[Datum], list[Datum]]:
        """Return the labelled, the unlabelled and the val images of a folder of class folders."""
        classes: dict[int, list[Datum]] = {}
        for item in self._read_data_test(data_dir):
            classes.setdefault(item.label, []).append(item)
        folders = len(listdir_nohidden(data_dir))
        self._check_key(num_labeled >= folders, "NUM_LABELED", num_labeled, f"at least {folders}, one per class")
        labelled, unlabelled, val = [], [], []
        for items in classes.values():
            count = math.floor(len(items) * val_percent)
            val += items[:count]
            rest = items[count:]
            random.shuffle(rest)
            labelled += rest[: num_labeled // folders]
            unlabelled += rest[num_labeled // folders :]
        return labelled, unlabelled, val

    def _read_data_test(self, data_dir: str) -> list[Datum]:
        return [Datum(path, label) for path, label, _ in images_in_folders(data_dir)]


class CIFAR100(CIFAR10):
    """CIFAR-100; see `CIFAR10`."""

    dataset_dir = "cifar100"


class SVHN(CIFAR10):
    """Street View House Numbers (Netzer et al., 2011); see `CIFAR10`."""

    dataset_dir = "svhn"


class STL10(PublishedDataset):
    """STL-10 (Coates et al., AISTATS 2011): one of its folds of 1,000 labelled images, and 100,000 unlabelled images.

    ``DATASET.STL10_FOLD`` is a published fold from 0 to 4. Dassl itself reads the numbers of a fold modulo 256, so it
    draws from the first 256 of the 5,000 images; here they are the published ones.
    """

    dataset_dir = "stl10"
    page = (
        "https://github.com/KaiyangZhou/Dassl.pytorch/blob/master/datasets/ssl/stl10.py (run this script) and the "
        "binary files from https://cs.stanford.edu/~acoates/stl10/"
    )
    layout = "train, test or unlabeled/NUMBER_LABEL.jpg, with stl10_binary/fold_indices.txt"

    def _read_splits(self, cfg: CfgNode) -> dict[str, list[Datum] | None]:
        keys = cfg.DATASET
        self._check_key(0 <= keys.STL10_FOLD <= 4, "STL10_FOLD", keys.STL10_FOLD, "0, 1, 2, 3 or 4")
        fold_file = os.path.join(self.dataset_dir, "stl10_binary", "fold_indices.txt")
        train_x = self._read_data_train(os.path.join(self.dataset_dir, "train"), keys.STL10_FOLD, fold_file)
        train_u = self._read_data_all(os.path.join(self.dataset_dir, "unlabeled"))
        test = self._read_data_all(os.path.join(self.dataset_dir, "test"))
        if keys.ALL_AS_UNLABELED:
            train_u = train_u + train_x
        return {"train_x": train_x, "train_u": train_u, "test": test}

    def _read_data_train(self, data_dir: str, fold: int, fold_file: str) -> list[Datum]:
        """Return the images of a fold, which are numbers of files in the order of their names."""
        paths = [os.path.join(data_dir, name) for name in listdir_nohidden(data_dir, sort=True)]
        with open(fold_file, encoding="utf-8") as lines:
            numbers = next(itertools.islice(lines, fold, None), "").split()
        if not numbers or not all(number.isdecimal() and int(number) < len(paths) for number in numbers):
            raise ValueError(
                f"line {fold + 1} of '{fold_file}' must hold numbers below {len(paths)}, the number of images in "
                f"'{data_dir}'; extract both again"
            )
        return [_item(paths[int(number)]) for number in numbers]

    def _read_data_all(self, data_dir: str) -> list[Datum]:
        return [_item(os.path.join(data_dir, name)) for name in listdir_nohidden(data_dir)]


def _item(path: str) -> Datum:
    label = label_in_name(path)
    if label != "none" and not label.isdecimal():
        raise ValueError(f"the label in the name of '{path}' must be a number or 'none' (got '{label}')")
    return Datum(path, -1 if label == "none" else int(label))
