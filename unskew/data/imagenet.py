"""ImageNet and its variants: class names, shared sources, and the layout of ILSVRC2012's archives."""

import re
import shutil
import tarfile
from collections.abc import Collection
from pathlib import Path

from tqdm import tqdm
from yacs.config import CfgNode

from unskew.data.image_folders import class_folders, folder_items
from unskew.data.names import listed, read_pairs
from unskew.data.published import PublishedDataset
from unskew.data.splits import PREPARE_AGAIN, Splits, read_table
from unskew.download.sources import Source
from unskew.download.targets import record
from unskew.utils.errors import DAMAGE
from unskew.utils.files import move_into_place

_LIFT = "https://raw.githubusercontent.com/shijxcs/LIFT/661ead9b78368f05ba79abe4672d63154467f823/datasets"


def lift_source(path: str, sha256: str = "") -> Source:
    """Return the source of a small text file in LIFT's repository at one commit."""
    return Source(path.rpartition("/")[2], (f"{_LIFT}/{path}",), checksum=f"sha256:{sha256}" if sha256 else "")


# CoOp's file, then LIFT's; both have CLIP's class names.
NAMES = Source(
    "classnames.txt",
    ("drive:1-61f_ol79pViBFDG_IDlUQSwoLcn2XXF", f"{_LIFT}/ImageNet_LT/classnames.txt"),
    elsewhere=("../imagenet/classnames.txt",),
)

# The class of each validation image; the archive of these images has no folders.
VAL_LIST = lift_source(
    "ImageNet_LT/ImageNet_LT_test.txt", "d1590191cf8a71fada7b1aaedaa2d139a2aea93ff2f1b755319d0bd8dbaa55d5"
)


def image_folder(root: Path) -> Path:
    """Return the folder that holds train and val: ``images`` as in CoOp, or the dataset's folder."""
    return root if (root / "train").is_dir() or (root / "val").is_dir() else root / "images"


def imagenet_names(root: Path) -> dict[str, str]:
    """Return ``{"n01440764": "tench", ..}`` in the order of the labels.

    The names come from ``classnames.txt`` in the dataset's folder or in ImageNet's. Without the file, open_clip's names
    (the same ones) are given to the sorted folders of ImageNet's training images.

    Raises:
        FileNotFoundError: neither the file nor the folders exist.
        ValueError: a line is not a folder and a name, or a folder has two lines.
    """
    path, home = names_file(root), root.parent / "imagenet"
    if path.is_file():
        return dict(sorted(read_pairs(path).items()))
    from open_clip import IMAGENET_CLASSNAMES

    train = image_folder(home) / "train"
    folders = class_folders(train) if train.is_dir() else []
    if len(folders) != len(IMAGENET_CLASSNAMES):
        raise FileNotFoundError(f"there is no '{path}': run `unskew data prepare imagenet`")
    return dict(zip(folders, IMAGENET_CLASSNAMES, strict=True))


def names_file(root: Path) -> Path:
    """Return the path of ``classnames.txt`` in a dataset's folder, or in ImageNet's if the dataset has none."""
    path = root / "classnames.txt"
    return path if path.is_file() else root.parent / "imagenet" / "classnames.txt"


def known_folders(root: Path, folder: Path, names: Collection[str]) -> list[str]:
    """Return the folders that are classes of ImageNet.

    Raises:
        ValueError: a folder that is called like a class has no name, so that a line is missing among the names.
    """
    folders = class_folders(folder)
    unnamed = [name for name in folders if re.fullmatch("n[0-9]{8}", name) and name not in names]
    if unnamed:
        raise ValueError(
            f"'{names_file(root)}' has no name for {len(unnamed)} folder(s) in '{folder}': {listed(unnamed)}; "
            f"{PREPARE_AGAIN}"
        )
    return [name for name in folders if name in names]


class ImageNetVariant(PublishedDataset):
    """A test-only dataset with ImageNet's labels, for models that are trained on ImageNet.

    Its images are classified among the classes that it has.
    """

    imagenet_templates = True

    def __init__(self, cfg: CfgNode) -> None:
        if cfg.DATASET.SUBSAMPLE_CLASSES != "all":
            raise ValueError(f"DATASET.SUBSAMPLE_CLASSES must be all: '{cfg.DATASET.NAME}' has test images only")
        super().__init__(cfg)
        self.test_classes = sorted({item.label for item in self.test})

    @classmethod
    def all_classnames(cls, root: Path) -> list[str]:
        """Return the names of all classes of ImageNet."""
        return list(imagenet_names(root).values())

    @classmethod
    def read(cls, cfg: CfgNode, root: Path) -> Splits:
        """Read the test images of the folders that are classes of ImageNet."""
        folder, names = root / cls.image_dir, imagenet_names(root)
        labels = {name: label for label, name in enumerate(names)}
        known = {name: (labels[name], names[name]) for name in known_folders(root, folder, names)}
        if not known:
            raise ValueError(f"no folder in '{folder}' is a class of ImageNet; prepare '{cfg.DATASET.NAME}' again")
        return [], [], folder_items(folder, known)


# --- ILSVRC2012's archives -----------------------------------------------------------------------------


def lay_out_archive(root: Path, split: str, classes: int) -> None:
    """Unpack ``ILSVRC2012_img_<split>.tar`` to ``images/<split>`` with a folder for each class.

    The archive of train is a tar of tars, the archive of val has no folders. An interrupted call is resumed.

    Args:
        root: ImageNet's folder.
        split: train or val.
        classes: the expected number of classes.

    Raises:
        ValueError: the archive is damaged or has other content; what was unpacked is kept.
    """
    archive, folder = root / f"ILSVRC2012_img_{split}.tar", root / "images" / split
    if folder.exists():
        return
    workspace = folder.with_name(f".{split}.unpack")
    workspace.mkdir(parents=True, exist_ok=True)
    try:
        if split == "train":
            _unpack_train(archive, workspace, classes)
        else:
            _unpack_val(archive, workspace, root / VAL_LIST.name)
    except DAMAGE as error:
        if isinstance(error, OSError | ValueError):
            raise
        reason = str(error).partition(":\n")[0]  # tarfile appends the reason of each format
        raise ValueError(f"'{archive}' is damaged ({reason}); download it again") from error
    count = len(class_folders(workspace))
    if count != classes:
        raise ValueError(f"'{archive}' has {count} classes instead of {classes}; download it again")
    move_into_place(workspace, folder)
    record(root, archive.name, [f"images/{split}"])


def _unpack_train(archive: Path, workspace: Path, classes: int) -> None:
    """Unpack one folder per class; skip the folders that an interrupted call has completed."""
    with tarfile.open(archive) as outer:
        for member in tqdm(outer, desc=archive.name, total=classes, unit="class", disable=None):
            name = Path(member.name).stem
            if member.isfile() and not (workspace / name).exists():
                incomplete = workspace / f".{name}"
                shutil.rmtree(incomplete, ignore_errors=True)
                with tarfile.open(fileobj=outer.extractfile(member)) as inner:
                    inner.extractall(incomplete, filter="data")
                move_into_place(incomplete, workspace / name)


def _unpack_val(archive: Path, workspace: Path, class_list: Path) -> None:
    """Unpack the 50,000 images to the class folders that the list gives."""
    folders = {Path(path).name: Path(path).parent.name for path, _ in read_table(class_list, columns=2)}
    for folder in set(folders.values()):
        (workspace / folder).mkdir(exist_ok=True)
    missing = set(folders)
    with tarfile.open(archive) as images:
        for member in tqdm(images, desc=archive.name, total=len(folders), unit="image", disable=None):
            if member.name not in folders:
                raise ValueError(f"'{archive}' holds '{member.name}', which is not in '{class_list.name}'")
            missing.discard(member.name)
            member.name = f"{folders[member.name]}/{member.name}"
            images.extract(member, workspace, filter="data")
    if missing:
        raise ValueError(f"'{archive}' lacks {len(missing)} images, for instance '{min(missing)}'; download it again")
