"""Base classes of Dassl's datasets, and readers of their folders and lists of files.

Images come in the order of the file system, as in Dassl: a seed draws the same ones on the same disk only.
"""

import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from yacs.config import CfgNode

from unskew.dassl.data import DatasetBase, Datum
from unskew.dassl.utils import listdir_nohidden
from unskew.download.install import exclusive_lock

logger = logging.getLogger("unskew")

Splits = Mapping[str, tuple[str, str]]

# Each split of a dataset with its domains in the config and its part of their images.
ADAPTATION: Splits = {"train_x": ("source", "train"), "train_u": ("target", "train"), "test": ("target", "test")}
GENERALISATION: Splits = {"train_x": ("source", "train"), "val": ("source", "val"), "test": ("target", "all")}

Images = Iterator[tuple[str, int, str]]  # path, label, class name


class PublishedDataset(DatasetBase):
    """A dataset in one of Dassl's folder layouts; a subclass reads its splits.

    Attributes:
        page: where to get the images.
        layout: the path of an image below ``dataset_dir``, for error messages.
        data_url: Google Drive's URL of a .zip file that holds the folder. A missing folder is downloaded.

    Raises:
        ConnectionError: the download fails; the message tells how to get the file by hand.
        FileNotFoundError: a folder or a file is missing; the message has the page and the layout.
        ValueError: a config key or a file has an invalid value.
    """

    page: ClassVar[str] = ""
    layout: ClassVar[str] = ""
    data_url: str = ""

    def __init__(self, cfg: CfgNode) -> None:
        root = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
        archive = os.path.join(root, f"{self.dataset_dir.lower()}.zip")
        self.dataset_dir = os.path.abspath(os.path.join(root, self.dataset_dir))
        if self.data_url and not os.path.exists(self.dataset_dir):
            with exclusive_lock(Path(root)):  # several runs may start at once
                if not os.path.exists(self.dataset_dir):
                    logger.info(f"there is no '{self.dataset_dir}': extracting '{archive}' from {self.data_url}")
                    self.download_data(self.data_url, archive)
        try:
            splits = self._read_splits(cfg)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(
                f"{type(self).__name__}: '{error.filename}' is missing or is no folder; get the images from "
                f"{self.page or self.data_url} and put each at '{os.path.join(self.dataset_dir, self.layout)}'"
            ) from error
        labelled = [items or [] for split, items in splits.items() if split != "train_u"]
        _check_labels(type(self).__name__, itertools.chain.from_iterable(labelled))
        super().__init__(**splits)

    def _read_splits(self, cfg: CfgNode) -> dict[str, list[Datum] | None]:
        """Return the images by the name of their split, such as "train_x"."""
        raise NotImplementedError(f"{type(self).__name__} must define _read_splits(cfg)")

    def _check_key(self, valid: bool, key: str, value: Any, expected: str) -> None:
        """Raise ``ValueError`` for an invalid key of ``cfg.DATASET``."""
        if not valid:
            raise ValueError(f"{type(self).__name__}: DATASET.{key} must be {expected} (got {value!r})")


class DomainDataset(PublishedDataset):
    """A dataset whose splits are made of the source or the target domains; a subclass reads one domain.

    Attributes:
        splits: ``{split: ("source" or "target", part)}`` in the order of reading.
    """

    splits: ClassVar[Splits] = ADAPTATION

    def _read_splits(self, cfg: CfgNode) -> dict[str, list[Datum] | None]:
        domains = {"source": cfg.DATASET.SOURCE_DOMAINS, "target": cfg.DATASET.TARGET_DOMAINS}
        self.check_input_domains(domains["source"], domains["target"])
        return {split: self._read_data(domains[role], part) for split, (role, part) in self.splits.items()}

    def _read_data(self, input_domains: Sequence[str], split: str = "train") -> list[Datum]:
        """Return the images of some domains, which are numbered in the given order."""
        return numbered([self._read_domain(domain, split) for domain in input_domains])

    def _read_domain(self, domain: str, split: str) -> Images:
        raise NotImplementedError(f"{type(self).__name__} must define _read_domain(domain, split)")


def _check_labels(name: str, items: Iterable[Datum]) -> None:
    """Raise ``ValueError`` if a label has several class names or a class name several labels."""
    labels: dict[str, int] = {}
    names: dict[int, str] = {}
    for item in items:
        if item.label < 0:
            raise ValueError(f"{name}: '{item.impath}' has the label {item.label}, below the first one")
        if not item.classname:
            continue
        found = labels.setdefault(item.classname, item.label), names.setdefault(item.label, item.classname)
        if found != (item.label, item.classname):
            raise ValueError(
                f"{name}: '{item.impath}' has the class '{item.classname}' and the label {item.label}, "
                "unlike an earlier image: "
                "the folders of all domains and splits must hold the same class folders, empty ones included"
            )


def numbered(domains: Iterable[Iterable[tuple[str, int, str]]]) -> list[Datum]:
    """Return the images of several domains as items, with the position of the domain."""
    return [Datum(path, label, i, name) for i, images in enumerate(domains) for path, label, name in images]


def images_in_folders(folder: str) -> Images:
    """Yield the images of a folder of class folders; the labels follow the sorted names of the folders."""
    for label, name in enumerate(listdir_nohidden(folder, sort=True)):
        class_folder = os.path.join(folder, name)
        for file in listdir_nohidden(class_folder):
            yield os.path.join(class_folder, file), label, name


def listed_images(list_file: str, folder: str) -> Images:
    """Yield the images of a text file with lines "PATH LABEL"; the last folder of a path is the class name."""
    with open(list_file, encoding="utf-8", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            path, _, label = line.strip().rpartition(" ")
            if path and label.isdecimal():
                yield os.path.join(folder, path), int(label), os.path.basename(os.path.dirname(path))
            elif line.strip():
                raise ValueError(f"'{list_file}', line {number}: expected 'PATH LABEL', got '{line.strip()}'")


def label_in_name(path: str) -> str:
    """Return the label in a file's name, such as "7" of "000012_7.png"."""
    parts = os.path.splitext(os.path.basename(path))[0].split("_")
    if len(parts) < 2:
        raise ValueError(f"'{path}' has no label in its name; expected a name such as '000012_7.png'")
    return parts[1]
