"""The base class of published datasets: CoOp's folder layout and split files, published numbers and sources."""

import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from yacs.config import CfgNode

from unskew.config import flatten, names
from unskew.data.dataset import DatasetBase, Datum
from unskew.data.fewshot import SELECTION, select
from unskew.data.image_folders import list_images, listed_items
from unskew.data.sampling import split_in_three, split_off
from unskew.data.splits import Splits, read_once, read_split
from unskew.download.sources import DatasetInfo, Source
from unskew.utils.files import expand

logger = logging.getLogger("unskew")

# Copies of CoOp's split files at one commit, for the times when Google Drive refuses.
_SPLIT_COPIES = (
    "https://raw.githubusercontent.com/linzhiqiu/cross_modal_adaptation/ac9077ee4e422f768c9b9109551468605e33ec9a/splits"
)


class PublishedDataset(DatasetBase):
    """A dataset in CoOp's folder layout. A subclass names its files and reads them in `read`.

    Attributes:
        info: the published numbers.
        sources: the files and their URLs, for ``unskew data prepare``.
        split_file: CoOp's split file, below the dataset's folder; empty if the dataset has its own splits.
        image_dir: the folder that the split file's paths are relative to, below the dataset's folder.
        imagenet_templates: whether the zero-shot ensemble has OpenAI's 80 prompts for ImageNet.
    """

    info: DatasetInfo
    sources: Sequence[Source] = ()
    split_file = ""
    image_dir = ""
    imagenet_templates = False

    def __init__(self, cfg: CfgNode) -> None:
        root = self.root(cfg)
        if self.imagenet_templates:
            self.templates = openai_templates()
        super().__init__(**select(cfg, root, *self.splits(cfg, root)), classnames=self.all_classnames(root))

    @classmethod
    def all_classnames(cls, root: Path) -> list[str] | None:
        """Return all class names in label order if some classes may have no image, else ``None``."""
        return None

    @classmethod
    def info_of(cls, cfg: CfgNode) -> DatasetInfo:
        """Return the published numbers for a config."""
        return cls.info

    @classmethod
    def arrange(cls, root: Path) -> None:
        """Lay out archives that the user has put into the dataset's folder, if unpacking is not enough."""

    @classmethod
    def root(cls, cfg: CfgNode) -> Path:
        """Return the dataset's folder.

        Raises:
            FileNotFoundError: the folder does not exist.
        """
        data = expand(cfg.DATASET.ROOT)
        if not (data / cls.dataset_dir).is_dir():
            name = cfg.DATASET.NAME
            raise FileNotFoundError(
                f"dataset '{name}' is not at '{data / cls.dataset_dir}': run "
                f"`unskew data prepare {name} --root {data}`, or give its parent folder with --root"
            )
        return data / cls.dataset_dir

    @classmethod
    def splits(cls, cfg: CfgNode, root: Path) -> Splits:
        """Return all images of train, val and test, from the split file if there is one, else from `read`.

        Within a snapshot, see `unskew.data.snapshot`, they are read once for all runs, whatever `select` draws of them.
        The `read` of a plugin may depend on the seed or draw at random, so it is called in each run.
        """
        path = root / cls.split_file
        if cls.split_file and path.is_file():
            return read_once(("split file", path), lambda: read_split(path, root / cls.image_dir))
        if cls.split_file:
            logger.warning(
                f"there is no '{path}', so the images are split at random: do not compare accuracies with published "
                f"ones. Download the file with `unskew data prepare {cfg.DATASET.NAME}`"
            )
        if cfg.DATASET.NAME not in names("datasets"):
            return cls._read(cfg, root)
        settings = [(key, value) for key, value in flatten(cfg.DATASET) if key not in SELECTION]
        return read_once((cls, root, repr(settings)), lambda: cls._read(cfg, root))

    @classmethod
    def _read(cls, cfg: CfgNode, root: Path) -> Splits:
        """Return the result of `read`, with one line for a damaged file."""
        try:
            return cls.read(cfg, root)
        except (ArithmeticError, AttributeError, LookupError, TypeError) as error:  # values of other kinds or shapes
            raise ValueError(
                f"a file of '{cfg.DATASET.NAME}' in '{root}' holds something else than published "
                f"({type(error).__name__}: {error}); prepare the dataset again"
            ) from error

    @classmethod
    def read(cls, cfg: CfgNode, root: Path) -> Splits:
        """Read train, val and test from the dataset's files; random splits are the same every time.

        The keys that `select` reads, such as the shots and seeds, must not matter.
        """
        raise NotImplementedError(f"{cls.__name__} must define read(cfg, root)")


def openai_templates() -> list[str]:
    """Return OpenAI's 80 prompts for ImageNet with ``{}`` for the class."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return [fill("{}") for fill in OPENAI_IMAGENET_TEMPLATES]


def split_source(name: str, drive: str, sha256: str = "") -> Source:
    """Return the source of CoOp's split file (or another small file): Google Drive first, then a copy."""
    checksum = f"sha256:{sha256}" if sha256 else ""
    return Source(name, (f"drive:{drive}", f"{_SPLIT_COPIES}/{name}"), checksum=checksum)


def split_folders(folder: Path, names: Mapping[str, str] | None = None, ignored: Sequence[str] = ()) -> Splits:
    """Split a folder of class folders at random into train, val and test; the labels are in the order of the folders.

    Args:
        folder: the folder of class folders.
        names: class names of folders whose name is not the class name.
        ignored: folders that are not classes.
    """
    listed = list_images(folder)
    folders = [name for name in listed if name not in ignored]
    classes = {name: (label, (names or {}).get(name, name)) for label, name in enumerate(folders)}
    return split_in_three(listed_items(folder, listed, classes), random.Random(0))


def split_trainval(trainval: Sequence[Datum]) -> tuple[list[Datum], list[Datum]]:
    """Divide a published training set into train and val: 20% of each class are val, as in CoOp."""
    return split_off(trainval, 0.2, random.Random(0))
