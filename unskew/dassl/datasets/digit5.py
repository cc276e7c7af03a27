"""`Digit5`, five sets of digits for domain adaptation, with the names of Dassl's module."""

import os
import random
from typing import ClassVar

from unskew.dassl.datasets._base import DomainDataset, Images, label_in_name
from unskew.dassl.utils import listdir_nohidden

__all__ = [
    "MNIST",
    "MNIST_M",
    "SVHN",
    "SYN",
    "USPS",
    "Digit5",
    "load_mnist",
    "load_mnist_m",
    "load_svhn",
    "load_syn",
    "load_usps",
    "read_image_list",
]

# The folder of each split.
MNIST = MNIST_M = SVHN = SYN = USPS = {"train": "train_images", "test": "test_images"}

# Images that are drawn of each domain but USPS.
DRAWN = {"train": 25_000, "test": 9_000}

LabelledPaths = list[tuple[str, int]]


def labelled_paths(folder: str) -> LabelledPaths:
    """Return the path and the label of each image, such as ("/data/000012_7.png", 7)."""
    paths = [os.path.join(folder, name) for name in listdir_nohidden(folder)]
    labels = [label_in_name(path) for path in paths]
    for path, label in zip(paths, labels, strict=True):
        if not label.isdecimal():
            raise ValueError(f"the label in the name of '{path}' must be a number (got '{label}')")
    return list(zip(paths, map(int, labels), strict=True))


def read_image_list(im_dir: str, n_max: int | None = None, n_repeat: int | None = None) -> LabelledPaths:
    """Return ``n_max`` images that Python's global generator draws (default all), repeated ``n_repeat`` times.

    Raises:
        ValueError: the folder has fewer images, or a file's name has no label.
    """
    items = labelled_paths(im_dir)
    if n_max is not None:
        if len(items) < n_max:
            raise ValueError(f"'{im_dir}' has {len(items)} images; {n_max} are needed: extract the dataset again")
        items = random.sample(items, n_max)
    return items if n_repeat is None else items * n_repeat


def load_mnist(dataset_dir: str, split: str = "train") -> LabelledPaths:
    """Return the sample of one domain's split."""
    return read_image_list(os.path.join(dataset_dir, MNIST[split]), n_max=DRAWN[split])


load_mnist_m = load_svhn = load_syn = load_mnist


def load_usps(dataset_dir: str, split: str = "train") -> LabelledPaths:
    """Return all images of USPS; the training images are repeated three times to match the other domains."""
    return read_image_list(os.path.join(dataset_dir, USPS[split]), n_repeat=3 if split == "train" else None)


class Digit5(DomainDataset):
    """MNIST, MNIST-M, SVHN, synthetic digits and USPS (Ganin et al., JMLR 2016; Peng et al., ICCV 2019).

    Python's global generator draws 25,000 training and 9,000 test images of each domain but USPS.
    """

    dataset_dir = "digit5"
    domains: ClassVar[list[str]] = ["mnist", "mnist_m", "svhn", "syn", "usps"]
    page = "https://github.com/KaiyangZhou/Dassl.pytorch/blob/master/DATASETS.md (Digit-5)"
    layout = "DOMAIN/train_images or test_images/NUMBER_LABEL.jpg"

    def _read_domain(self, domain: str, split: str) -> Images:
        load = load_usps if domain == "usps" else load_mnist
        for path, label in load(os.path.join(self.dataset_dir, domain), split):
            yield path, label, str(label)
