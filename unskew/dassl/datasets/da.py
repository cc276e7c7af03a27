"""Datasets of domain adaptation: labelled images of the source domains, unlabelled ones of the target domains."""

import os
from collections.abc import Sequence
from typing import ClassVar

from unskew.dassl.data import Datum
from unskew.dassl.datasets._base import ADAPTATION, DomainDataset, Images, Splits, images_in_folders, listed_images
from unskew.dassl.datasets.digit5 import Digit5
from unskew.dassl.utils import listdir_nohidden

__all__ = ["CIFARSTL", "Digit5", "DomainNet", "Office31", "OfficeHome", "VisDA17", "miniDomainNet"]


class Office31(DomainDataset):
    """Office-31: 4,110 images of 31 office objects (Saenko et al., ECCV 2010). Test images are the unlabelled ones."""

    dataset_dir = "office31"
    domains: ClassVar[list[str]] = ["amazon", "webcam", "dslr"]
    page = "https://faculty.cc.gatech.edu/~judy/domainadapt/"
    layout = "DOMAIN/CLASS/IMAGE"

    def _read_domain(self, domain: str, split: str) -> Images:
        return images_in_folders(os.path.join(self.dataset_dir, domain))


class OfficeHome(Office31):
    """Office-Home: 15,500 images of 65 objects (Venkateswara et al., CVPR 2017). Class names are in lower case."""

    dataset_dir = "office_home"
    domains: ClassVar[list[str]] = ["art", "clipart", "product", "real_world"]
    page = "https://www.hemanthdv.org/officeHomeDataset.html"

    def _read_domain(self, domain: str, split: str) -> Images:
        return ((path, label, name.lower()) for path, label, name in super()._read_domain(domain, split))


class VisDA17(DomainDataset):
    """VisDA-2017: 12 classes (Peng et al., 2017); synthetic images are the source, whichever domains the config has."""

    dataset_dir = "visda17"
    domains: ClassVar[list[str]] = ["synthetic", "real"]
    page = "https://ai.bu.edu/visda-2017/"
    layout = "train or validation/CLASS/IMAGE, listed in train/image_list.txt or validation/image_list.txt"
    splits: ClassVar[Splits] = {
        "train_x": ("source", "synthetic"),
        "train_u": ("target", "real"),
        "test": ("target", "real"),
    }

    def _read_data(self, input_domains: Sequence[str], split: str = "synthetic") -> list[Datum]:
        return super()._read_data([split], split)

    def _read_domain(self, domain: str, split: str) -> Images:
        folder = os.path.join(self.dataset_dir, "train" if domain == "synthetic" else "validation")
        return listed_images(os.path.join(folder, "image_list.txt"), folder)


class DomainNet(DomainDataset):
    """DomainNet: 0.6 million images of 345 classes (Peng et al., ICCV 2019); val is the test part of the source."""

    dataset_dir = "domainnet"
    domains: ClassVar[list[str]] = ["clipart", "infograph", "painting", "quickdraw", "real", "sketch"]
    page = "https://ai.bu.edu/M3SDA/ (cleaned version)"
    layout = "DOMAIN/CLASS/IMAGE, listed in splits/DOMAIN_train.txt and splits/DOMAIN_test.txt"
    list_dir = "splits"
    splits: ClassVar[Splits] = {**ADAPTATION, "val": ("source", "test")}

    def _read_domain(self, domain: str, split: str) -> Images:
        return listed_images(os.path.join(self.dataset_dir, self.list_dir, f"{domain}_{split}.txt"), self.dataset_dir)


class miniDomainNet(DomainNet):
    """DomainNet's 126 classes of Zhou et al. ("Domain Adaptive Ensemble Learning", TIP 2021)."""

    domains: ClassVar[list[str]] = ["clipart", "painting", "real", "sketch"]
    page = (
        "https://ai.bu.edu/M3SDA/ and their lists from "
        "https://drive.google.com/file/d/15rrLDCrzyi6ZY-1vJar3u7plgLe4COL7/view"
    )
    layout = "DOMAIN/CLASS/IMAGE, listed in splits_mini/DOMAIN_train.txt and splits_mini/DOMAIN_test.txt"
    list_dir = "splits_mini"
    splits = ADAPTATION


class CIFARSTL(DomainDataset):
    """The 9 classes that CIFAR-10 and STL-10 share; no image has a class name."""

    dataset_dir = "cifar_stl"
    domains: ClassVar[list[str]] = ["cifar", "stl"]
    page = "https://github.com/KaiyangZhou/Dassl.pytorch/blob/master/datasets/da/cifar_stl.py (run this script)"
    layout = "DOMAIN/train or test/LABEL_CLASS/IMAGE"

    def _read_domain(self, domain: str, split: str) -> Images:
        folder = os.path.join(self.dataset_dir, domain, split)
        for name in listdir_nohidden(folder):
            class_folder = os.path.join(folder, name)
            label = name.split("_")[0]
            if not label.isdecimal():
                raise ValueError(f"'{class_folder}' has no label in its name; expected a name such as '3_cat'")
            for file in listdir_nohidden(class_folder):
                yield os.path.join(class_folder, file), int(label), ""
