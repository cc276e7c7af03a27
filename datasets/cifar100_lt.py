"""CIFAR-100-LT (Cao et al. 2019, arXiv 1906.07413): CIFAR-100 with an exponential profile, imbalance 10, 50 or 100."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm
from yacs.config import CfgNode

from unskew.data.dataset import DATASET_REGISTRY, Datum
from unskew.data.published import PublishedDataset
from unskew.data.sampling import group, longtail_counts
from unskew.data.splits import PREPARE_AGAIN, Splits, read_lines
from unskew.download.sources import DatasetInfo, Source
from unskew.utils.files import cached_folder
from unskew.utils.safe_pickle import read_arrays

_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
IMBALANCES = (10, 50, 100)


@DATASET_REGISTRY.register("cifar100_lt")
class CIFAR100LT(PublishedDataset):
    """CIFAR-100-LT from the "python" or the "binary" edition of CIFAR-100; the images are written once as files."""

    dataset_dir = "cifar100"
    info = DatasetInfo(100, 10847, 0, 10000, "0.2 GB", "none stated", _PAGE, {"test": 100})
    sources = (
        Source(
            "cifar-100-python.tar.gz",
            ("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",),
            makes={"cifar-100-python": "cifar-100-python"},
            checksum="md5:eb9058c3a382ffc7106e4002c42a8d85",
        ),
    )

    @classmethod
    def info_of(cls, cfg: CfgNode) -> DatasetInfo:
        return replace(cls.info, train=sum(longtail_counts(500, cls.info.classes, cfg.DATASET.IMBALANCE)))

    @classmethod
    def read(cls, cfg: CfgNode, root: Path) -> Splits:
        imbalance = cfg.DATASET.IMBALANCE
        if imbalance not in IMBALANCES:
            raise ValueError(f"DATASET.IMBALANCE must be one of {', '.join(map(str, IMBALANCES))}; got {imbalance}")
        train, test = (_items(root, split) for split in ("train", "test"))
        return longtail(train, imbalance), [], test


def longtail(train: list[Datum], imbalance: int) -> list[Datum]:
    """Return the published sample: all images of the first class; NumPy's seed 0 shuffles each class in turn."""
    rng = np.random.RandomState(0)
    sample: list[Datum] = []
    classes = [images for _, images in sorted(group(train).items())]
    for images, count in zip(classes, longtail_counts(len(classes[0]), len(classes), imbalance), strict=True):
        order = np.arange(len(images))
        rng.shuffle(order)
        sample += [images[index] for index in order[:count]]
    return sample


def _items(root: Path, split: str) -> list[Datum]:
    """Return all images of a split in CIFAR-100's order, as files below the dataset's folder or its cache."""
    images, labels, names = _read(root, split)
    folder = cached_folder(root, f"images-{split}", partial(_write, images))
    return [Datum(f"{folder}/{i:05d}.png", label, 0, names[label]) for i, label in enumerate(labels)]


def _write(images: np.ndarray, folder: Path) -> None:
    for i, image in enumerate(tqdm(images, desc="writing CIFAR-100's images", delay=2, leave=False, disable=None)):
        Image.fromarray(image).save(folder / f"{i:05d}.png", compress_level=1)


def _read(root: Path, split: str) -> tuple[np.ndarray, list[int], list[str]]:
    """Return images uint8 [N, 32, 32, 3], labels [N] and class names from the edition that exists."""
    python, binary = root / "cifar-100-python", root / "cifar-100-binary"
    if python.is_dir():
        content, names = read_arrays(python / split), read_arrays(python / "meta").get("fine_label_names")
        pixels, labels = content.get("data"), content.get("fine_labels")
    elif binary.is_dir():
        rows = np.fromfile(binary / f"{split}.bin", np.uint8)
        if len(rows) % 3074:
            raise ValueError(f"'{binary / split}.bin' is cut short; {PREPARE_AGAIN}")
        rows = rows.reshape(-1, 3074)  # coarse label, fine label, pixels
        pixels, labels, names = rows[:, 2:], rows[:, 1].tolist(), read_lines(binary / "fine_label_names.txt")
    else:
        raise FileNotFoundError(f"'{root}' has no folder cifar-100-python or cifar-100-binary; {PREPARE_AGAIN}")
    pixels = np.asarray(pixels)
    if pixels.dtype != np.uint8 or pixels.shape != (len(labels or ()), 3072) or not labels or not names:
        raise ValueError(f"'{split}' in '{root}' is not CIFAR-100's: pixels {pixels.shape}; {PREPARE_AGAIN}")
    if max(labels) + 1 != len(names):
        raise ValueError(f"'{split}' in '{root}' has labels to {max(labels)}, but {len(names)} names; {PREPARE_AGAIN}")
    return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), list(labels), list(names)
