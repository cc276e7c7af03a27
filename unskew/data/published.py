"""What the datasets of the field share: CoOp's folder layout, split file, published numbers and sources."""

import gc
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from unskew.data.dataset import DatasetBase, Datum
from unskew.data.fewshot import select
from unskew.data.image_folders import list_images
from unskew.data.sampling import split_in_three, split_off
from unskew.data.splits import read_split
from unskew.download.sources import DatasetInfo, Source
from unskew.utils.files import expand

logger = logging.getLogger("unskew")

SPLITS = ("train", "val", "test")

# Copies of CoOp's split files, at one commit, for when Google Drive refuses.
_SPLIT_COPIES = (
    "https://raw.githubusercontent.com/linzhiqiu/cross_modal_adaptation/ac9077ee4e422f768c9b9109551468605e33ec9a/splits"
)


class PublishedDataset(DatasetBase):
    """A dataset in CoOp's folder layout. A subclass says where its files are and reads them in `read`.

    Attributes:
        info: its published numbers.
        sources: its files and where they come from, for ``unskew data prepare``.
        split_file: CoOp's split, below the dataset's folder; empty: it has its own.
        image_dir: what the split file's paths are relative to, below the dataset's folder.
        imagenet_templates: whether the zero-shot ensemble is OpenAI's 80 prompts for ImageNet.
    """

    info: DatasetInfo
    sources: Sequence[Source] = ()
    split_file = ""
    image_dir = ""
    imagenet_templates = False

    def __init__(self, cfg):
        root = self.root(cfg)
        if self.imagenet_templates:
            self.templates = openai_templates()
        super().__init__(**select(cfg, root, *self.splits(cfg, root)), classnames=self.all_classnames(root))

    @classmethod
    def all_classnames(cls, root: Path) -> list[str] | None:
        """In label order, where the images need not show all classes."""
        return None

    @classmethod
    def info_of(cls, cfg) -> DatasetInfo:
        """The published numbers under a config."""
        return cls.info

    @classmethod
    def arrange(cls, root: Path) -> None:
        """Lay out what a person placed in the dataset's folder, where more than unpacking is needed."""

    @classmethod
    def root(cls, cfg) -> Path:
        """The dataset's folder.

        Raises:
            FileNotFoundError: it is not there.
        """
        data = expand(cfg.DATASET.ROOT)
        if not (data / cls.dataset_dir).is_dir():
            name = cfg.DATASET.NAME
            raise FileNotFoundError(
                f"dataset '{name}' is not at '{data / cls.dataset_dir}': run unskew data prepare {name} --root {data}, "
                "or give the folder that holds it with --root"
            )
        return data / cls.dataset_dir

    @classmethod
    def splits(cls, cfg, root: Path) -> tuple[list[Datum], list[Datum], list[Datum]]:
        """Train, val and test, all images: as the split file says, without one as `read` does."""
        path = root / cls.split_file
        if cls.split_file and path.is_file():
            return read_split(path, root / cls.image_dir)
        if cls.split_file:
            logger.warning(
                f"there is no '{path}': the images are split anew, and accuracies do not compare with published ones; "
                f"unskew data prepare {cfg.DATASET.NAME} fetches it"
            )
        return cls.read(cfg, root)

    @classmethod
    def read(cls, cfg, root: Path) -> tuple[list[Datum], list[Datum], list[Datum]]:
        """Train, val and test from the dataset's own files; what has to be drawn is the same every time."""
        raise NotImplementedError(f"{cls.__name__} has to define read(cfg, root)")


def openai_templates() -> list[str]:
    """OpenAI's 80 prompts for ImageNet, with ``{}`` for the class."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return [fill("{}") for fill in OPENAI_IMAGENET_TEMPLATES]


def split_source(name: str, drive: str, sha256: str = "") -> Source:
    """CoOp's split file (or another small file beside them) on Google Drive, then its copy."""
    checksum = f"sha256:{sha256}" if sha256 else ""
    return Source(name, (f"drive:{drive}", f"{_SPLIT_COPIES}/{name}"), checksum=checksum)


def folder_items(folder: Path, classes: Mapping[str, tuple[int, str]], cache=None) -> list[Datum]:
    """The images of class folders, in their order.

    Args:
        classes: ``{folder's name: (label, class name)}``.

    Raises:
        FileNotFoundError: the folder, or one of a class, is missing.
    """
    listed, items = list_images(folder, cache), []
    with _collection_paused():
        for name, (label, classname) in classes.items():
            if name not in listed:
                raise FileNotFoundError(
                    f"there is no folder '{folder / name}' for class '{classname}'; prepare it again"
                )
            prefix = f"{folder / name}/"
            items += [Datum(prefix + image, label, 0, classname) for image in listed[name]]
    return items


@contextmanager
def _collection_paused() -> Iterator[None]:
    # While a million objects are made, looking for cycles among them takes longer than making them.
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def split_folders(
    folder: Path, names: Mapping[str, str] | None = None, ignored: Sequence[str] = ()
) -> tuple[list[Datum], list[Datum], list[Datum]]:
    """Train, val and test of a folder of class folders, labels in their order.

    Args:
        names: class names in place of folders' names. ignored: folders that are no classes.
    """
    folders = [name for name in list_images(folder) if name not in ignored]
    classes = {name: (label, (names or {}).get(name, name)) for label, name in enumerate(folders)}
    return split_in_three(folder_items(folder, classes), random.Random(0))


def split_trainval(trainval: Sequence[Datum]) -> tuple[list[Datum], list[Datum]]:
    """Train and val of a published training set: CoOp's 20% of each class are val."""
    return split_off(trainval, 0.2, random.Random(0))
