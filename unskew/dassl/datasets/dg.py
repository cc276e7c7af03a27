"""Datasets of domain generalisation: labelled images of the source domains only, tests on the target domains."""

import glob
import os
from collections.abc import Sequence
from typing import ClassVar

from yacs.config import CfgNode

from unskew.dassl.data import Datum
from unskew.dassl.datasets._base import (
    GENERALISATION,
    DomainDataset,
    Images,
    PublishedDataset,
    Splits,
    images_in_folders,
    listed_images,
    numbered,
)
from unskew.dassl.datasets.digit_single import DigitSingle
from unskew.dassl.datasets.wilds import Camelyon17, FMoW, IWildCam
from unskew.dassl.utils import listdir_nohidden

__all__ = [
    "AVAI_C_TYPES",
    "CIFAR10C",
    "CIFAR100C",
    "PACS",
    "VLCS",
    "Camelyon17",
    "DigitSingle",
    "DigitsDG",
    "FMoW",
    "IWildCam",
    "OfficeHomeDG",
]

# The corruptions of Hendrycks and Dietterich.
AVAI_C_TYPES = (
    "brightness contrast defocus_blur elastic_transform fog frost gaussian_blur gaussian_noise glass_blur "
    "impulse_noise jpeg_compression motion_blur pixelate saturate shot_noise snow spatter speckle_noise zoom_blur"
).split()


class PACS(DomainDataset):
    """PACS: 9,991 images of 7 classes in 4 styles (Li et al., ICCV 2017)."""

    dataset_dir = "pacs"
    domains: ClassVar[list[str]] = ["art_painting", "cartoon", "photo", "sketch"]
    data_url = "https://drive.google.com/uc?id=1m4X4fROCCXMO0lRLrr6Zz9Vb3974NWhE"
    layout = "images/DOMAIN/CLASS/IMAGE, listed in splits/DOMAIN_train_kfold.txt and splits/DOMAIN_crossval_kfold.txt"
    splits: ClassVar[Splits] = {**GENERALISATION, "val": ("source", "crossval")}
    _error_paths: ClassVar[list[str]] = ["sketch/dog/n02103406_4068-1.png"]  # a damaged image

    def _read_domain(self, domain: str, split: str) -> Images:
        damaged = {os.path.join(self.dataset_dir, "images", path) for path in self._error_paths}
        for part in ("train", "crossval") if split == "all" else (split,):
            list_file = os.path.join(self.dataset_dir, "splits", f"{domain}_{part}_kfold.txt")
            for path, label, name in listed_images(list_file, os.path.join(self.dataset_dir, "images")):
                if path not in damaged:
                    yield path, label - 1, name  # the lists count from 1


class VLCS(DomainDataset):
    """VLCS: 5 classes of Caltech101, LabelMe, PASCAL VOC and SUN09 (Torralba and Efros, CVPR 2011), without names."""

    dataset_dir = "VLCS"
    domains: ClassVar[list[str]] = ["caltech", "labelme", "pascal", "sun"]
    data_url = "https://drive.google.com/uc?id=1r0WL5DDqKfSPp9E3tRENwHaXNs1olLZd"
    layout = "DOMAIN/train, crossval or test/LABEL/IMAGE.jpg, with DOMAIN in capitals"
    splits: ClassVar[Splits] = {
        "train_x": ("source", "train"),
        "val": ("source", "crossval"),
        "test": ("target", "test"),
    }

    def _read_domain(self, domain: str, split: str) -> Images:
        images = jpgs_in_folders(os.path.join(self.dataset_dir, domain.upper(), split))
        return ((path, label, "") for path, label, _ in images)


class DigitsDG(DomainDataset):
    """Digits-DG: MNIST, MNIST-M, SVHN and synthetic digits, 600 images per class (Zhou et al., AAAI 2020)."""

    dataset_dir = "digits_dg"
    domains: ClassVar[list[str]] = ["mnist", "mnist_m", "svhn", "syn"]
    data_url = "https://drive.google.com/uc?id=15V7EsHfCcfbKgsDmzQKj_DfXt_XYp_P7"
    layout = "DOMAIN/train or val/CLASS/IMAGE.jpg"
    splits = GENERALISATION

    def _read_data(self, input_domains: Sequence[str], split: str = "train") -> list[Datum]:
        return self.read_data(self.dataset_dir, input_domains, split)

    @staticmethod
    def read_data(dataset_dir: str, input_domains: Sequence[str], split: str) -> list[Datum]:
        """Return the images of some domains in any folder of this layout.

        Args:
            dataset_dir: the folder of the domains' folders.
            input_domains: the domains, which are numbered in this order.
            split: "train", "val", or "all" for both.
        """
        parts = ("train", "val") if split == "all" else (split,)
        return numbered(
            [
                (path, label, name.lower())
                for part in parts
                for path, label, name in jpgs_in_folders(os.path.join(dataset_dir, domain, part))
            ]
            for domain in input_domains
        )


class OfficeHomeDG(DigitsDG):
    """Office-Home with a train and a val split of each domain."""

    dataset_dir = "office_home_dg"
    domains: ClassVar[list[str]] = ["art", "clipart", "product", "real_world"]
    data_url = "https://drive.google.com/uc?id=1gkbf_KaxoBws-GWT3XIPZ7BnkqbAxIFa"


def jpgs_in_folders(folder: str) -> Images:
    """Yield the .jpg files of a folder of class folders; the labels follow the sorted names of the folders."""
    for label, name in enumerate(listdir_nohidden(folder, sort=True)):
        class_folder = os.path.join(folder, name)
        for file in glob.glob("*.jpg", root_dir=class_folder):
            yield os.path.join(class_folder, file), label, name


class CIFAR10C(PublishedDataset):
    """CIFAR-10 to train, one corruption of CIFAR-10-C to test (Hendrycks and Dietterich, ICLR 2019); no class names.

    ``DATASET.CIFAR_C_TYPE`` is the corruption, ``DATASET.CIFAR_C_LEVEL`` its severity from 1 to 5.
    """

    domains: ClassVar[list[str]] = ["cifar10", "cifar10_c"]
    page = "https://zenodo.org/records/2535967 (extract them with Dassl's datasets/dg/cifar_c.py)"
    layout = "cifar10/train/CLASS/IMAGE and cifar10_c/CORRUPTION/LEVEL/CLASS/IMAGE"

    def _read_splits(self, cfg: CfgNode) -> dict[str, list[Datum] | None]:
        keys = cfg.DATASET
        self.check_input_domains(keys.SOURCE_DOMAINS, keys.TARGET_DOMAINS)
        clean, corrupted = self.domains
        self._check_key(keys.SOURCE_DOMAINS[0] == clean, "SOURCE_DOMAINS", keys.SOURCE_DOMAINS, f"['{clean}']")
        self._check_key(keys.TARGET_DOMAINS[0] == corrupted, "TARGET_DOMAINS", keys.TARGET_DOMAINS, f"['{corrupted}']")
        kind, level = keys.CIFAR_C_TYPE, keys.CIFAR_C_LEVEL
        self._check_key(kind in AVAI_C_TYPES, "CIFAR_C_TYPE", kind, f"one of {', '.join(AVAI_C_TYPES)}")
        self._check_key(1 <= level <= 5, "CIFAR_C_LEVEL", level, "1, 2, 3, 4 or 5")
        return {
            "train_x": self._read_data(os.path.join(self.dataset_dir, clean, "train")),
            "test": self._read_data(os.path.join(self.dataset_dir, corrupted, kind, str(level))),
        }

    def _read_data(self, data_dir: str) -> list[Datum]:
        return [Datum(path, label) for path, label, _ in images_in_folders(data_dir)]


class CIFAR100C(CIFAR10C):
    """CIFAR-100 to train, one corruption of CIFAR-100-C to test; see `CIFAR10C`."""

    domains: ClassVar[list[str]] = ["cifar100", "cifar100_c"]
    page = "https://zenodo.org/records/3555552 (extract them with Dassl's datasets/dg/cifar_c.py)"
    layout = "cifar100/train/CLASS/IMAGE and cifar100_c/CORRUPTION/LEVEL/CLASS/IMAGE"
