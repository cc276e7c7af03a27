"""`DigitSingle`, digits for domain generalisation from one source, with the names of Dassl's module."""

import os
from typing import ClassVar

from unskew.dassl.datasets._base import DomainDataset, Images, Splits
from unskew.dassl.datasets.digit5 import MNIST, MNIST_M, SVHN, SYN, USPS, Digit5, LabelledPaths, labelled_paths

FIRST = 10_000  # training images of each domain but USPS

__all__ = [
    "MNIST",
    "MNIST_M",
    "SVHN",
    "SYN",
    "USPS",
    "DigitSingle",
    "load_mnist",
    "load_mnist_m",
    "load_svhn",
    "load_syn",
    "load_usps",
    "read_image_list",
]


def read_image_list(im_dir: str, n_max: int | None = None, n_repeat: int | None = None) -> LabelledPaths:
    """Return the first ``n_max`` images of a folder (default all), repeated ``n_repeat`` times."""
    return labelled_paths(im_dir)[:n_max] * (1 if n_repeat is None else n_repeat)


def load_mnist(dataset_dir: str, split: str = "train") -> LabelledPaths:
    """Return the first 10,000 training images or all test images of one domain."""
    return read_image_list(os.path.join(dataset_dir, MNIST[split]), n_max=FIRST if split == "train" else None)


load_mnist_m = load_svhn = load_syn = load_mnist


def load_usps(dataset_dir: str, split: str = "train") -> LabelledPaths:
    """Return all images of USPS."""
    return read_image_list(os.path.join(dataset_dir, USPS[split]))


class DigitSingle(DomainDataset):
    """Training on 10,000 images of one set of digits, tests on others (Volpi et al., NeurIPS 2018).

    The folder is that of `Digit5`. No image has a class name, and val is the test part of the source.
    """

    dataset_dir, page, layout = Digit5.dataset_dir, Digit5.page, Digit5.layout
    domains: ClassVar[list[str]] = list(Digit5.domains)
    splits: ClassVar[Splits] = {"train_x": ("source", "train"), "val": ("source", "test"), "test": ("target", "test")}

    def _read_domain(self, domain: str, split: str) -> Images:
        load = load_usps if domain == "usps" else load_mnist
        return ((path, label, "") for path, label in load(os.path.join(self.dataset_dir, domain), split))
