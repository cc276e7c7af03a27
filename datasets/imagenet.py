"""ImageNet, ILSVRC2012 (Russakovsky et al. 2015): tested on its validation images, as everybody does."""

import shutil
import tarfile
from pathlib import Path

from tqdm import tqdm

from unskew.data import DATASET_REGISTRY
from unskew.listing import class_folders
from unskew.published import PublishedDataset, folder_items
from unskew.sources import Card, Source
from unskew.splits import read_pairs, read_table

_REGISTER = "https://image-net.org/download-images (a free registration)"
_LIFT = "https://raw.githubusercontent.com/shijxcs/LIFT/661ead9b78368f05ba79abe4672d63154467f823/datasets"


def lift_source(path: str, sha256: str = "") -> Source:
    """A small text file of LIFT's repository, at one commit."""
    return Source(path.rpartition("/")[2], (f"{_LIFT}/{path}",), checksum=f"sha256:{sha256}" if sha256 else "")


# CoOp's file, then LIFT's: both have CLIP's own names.
NAMES = Source(
    "classnames.txt",
    ("drive:1-61f_ol79pViBFDG_IDlUQSwoLcn2XXF", f"{_LIFT}/ImageNet_LT/classnames.txt"),
    elsewhere=("../imagenet/classnames.txt",),
)
# Which class each validation image is of: the archive of these images has no folders.
VAL_LIST = lift_source(
    "ImageNet_LT/ImageNet_LT_test.txt", "d1590191cf8a71fada7b1aaedaa2d139a2aea93ff2f1b755319d0bd8dbaa55d5"
)


def image_folder(root: Path) -> Path:
    """The folder that holds train and val: ``images``, as CoOp's users have it, or the dataset's own."""
    return root if (root / "train").is_dir() or (root / "val").is_dir() else root / "images"


def imagenet_names(root: Path) -> dict[str, str]:
    """``{"n01440764": "tench", ..}`` in the order of the labels, for a dataset of ImageNet's classes.

    From ``classnames.txt`` in its folder or in ImageNet's; without one, open_clip's names, which are the same, for the
    sorted folders of ImageNet's training images.

    Raises:
        FileNotFoundError: there is neither.
        ValueError: a line is not a folder and a name.
    """
    home = root.parent / "imagenet"
    for path in (root / "classnames.txt", home / "classnames.txt"):
        if path.is_file():
            return dict(sorted(read_pairs(path)))
    from open_clip import IMAGENET_CLASSNAMES

    train = image_folder(home) / "train"
    folders = class_folders(train) if train.is_dir() else []
    if len(folders) != len(IMAGENET_CLASSNAMES):
        raise FileNotFoundError(f"there is no '{home / 'classnames.txt'}': run unskew data prepare imagenet")
    return dict(zip(folders, IMAGENET_CLASSNAMES, strict=True))


@DATASET_REGISTRY.register("imagenet")
class ImageNet(PublishedDataset):
    dataset_dir = "imagenet"
    imagenet_templates = True
    card = Card(1000, 1281167, 0, 50000, "145 GB", "non-commercial research, registration", _REGISTER, {"test": 50})
    sources = (
        Source(
            "ILSVRC2012_img_train.tar",
            (),
            makes={".": "images/train"},
            elsewhere=("train",),
            checksum="md5:1d675b47d978889d74fa0da5fadfb00e",
            page=_REGISTER,
        ),
        Source(
            "ILSVRC2012_img_val.tar",
            (),
            makes={".": "images/val"},
            elsewhere=("val",),
            checksum="md5:29b22e2961454d5413ddabcf34fc5622",
            page=_REGISTER,
        ),
        NAMES,
    )

    @classmethod
    def read(cls, cfg, root):
        images, names = image_folder(root), imagenet_names(root)
        classes = {folder: (label, name) for label, (folder, name) in enumerate(names.items())}
        return folder_items(images / "train", classes), [], folder_items(images / "val", classes)

    @classmethod
    def arrange(cls, root):
        """Lay out ILSVRC2012's own archives, a tar of tars and one without folders, where a person placed them.

        Raises:
            ValueError: an archive is damaged, or is not that one; what was unpacked is kept and gone on from.
        """
        from unskew.prepare import alone, prepare

        placed = [split for split in ("train", "val") if (root / f"ILSVRC2012_img_{split}.tar").is_file()]
        if "val" in placed and not VAL_LIST.is_there(root):
            prepare(root, [VAL_LIST])
        for split in placed:
            with alone(root):
                _lay_out(root, split)


def _lay_out(root: Path, split: str) -> None:
    archive, folder = root / f"ILSVRC2012_img_{split}.tar", root / "images" / split
    if folder.exists():
        return
    work = folder.with_name(f".{split}.unpack")
    work.mkdir(parents=True, exist_ok=True)
    try:
        (_unpack_train if split == "train" else _unpack_val)(archive, work, root)
    except tarfile.TarError as error:
        reason = str(error).partition(":\n")[0]  # without what each format says to it
        raise ValueError(f"'{archive}' is damaged ({reason}); download it again") from error
    classes = len(class_folders(work))
    if classes != ImageNet.card.classes:
        raise ValueError(f"'{archive}' has {classes} classes in place of {ImageNet.card.classes}; download it again")
    work.rename(folder)


def _unpack_train(archive: Path, work: Path, root: Path) -> None:
    """One folder a class; those that an interrupted call left whole are not unpacked again."""
    with tarfile.open(archive) as outer:
        for member in tqdm(outer, desc=archive.name, total=ImageNet.card.classes, unit="class", disable=None):
            name = Path(member.name).stem
            if member.isfile() and not (work / name).exists():
                part = work / f".{name}"
                shutil.rmtree(part, ignore_errors=True)
                with tarfile.open(fileobj=outer.extractfile(member)) as inner:
                    inner.extractall(part, filter="data")
                part.rename(work / name)


def _unpack_val(archive: Path, work: Path, root: Path) -> None:
    """50,000 images into the folders that `VAL_LIST` gives."""
    folders = {Path(path).name: Path(path).parent.name for path, _ in read_table(root / VAL_LIST.name, columns=2)}
    for folder in set(folders.values()):
        (work / folder).mkdir(exist_ok=True)
    missing = set(folders)
    with tarfile.open(archive) as images:
        for member in tqdm(images, desc=archive.name, total=len(folders), unit="image", disable=None):
            if member.name not in folders:
                raise ValueError(f"'{archive}' holds '{member.name}', which '{VAL_LIST.name}' does not name")
            missing.discard(member.name)
            member.name = f"{folders[member.name]}/{member.name}"
            images.extract(member, work, filter="data")
    if missing:
        raise ValueError(f"'{archive}' lacks {len(missing)} images, '{min(missing)}' the first; download it again")


class ImageNetVariant(PublishedDataset):
    """A test-only set of ImageNet's classes: it has the labels of ImageNet, and a model trained there is tested on it.

    Its images are classified among the classes that it has.
    """

    imagenet_templates = True

    def __init__(self, cfg):
        if cfg.DATASET.SUBSAMPLE_CLASSES != "all":
            raise ValueError(f"DATASET.SUBSAMPLE_CLASSES must be all: '{cfg.DATASET.NAME}' has test images only")
        super().__init__(cfg)
        self.test_classes = sorted({item.label for item in self.test})

    @classmethod
    def all_classnames(cls, root):
        return list(imagenet_names(root).values())

    @classmethod
    def read(cls, cfg, root):
        folder, names = root / cls.image_dir, imagenet_names(root)
        labels = {name: label for label, name in enumerate(names)}
        known = {name: (labels[name], names[name]) for name in class_folders(folder) if name in names}
        if not known:
            raise ValueError(f"no folder in '{folder}' is a class of ImageNet; prepare '{cfg.DATASET.NAME}' again")
        return [], [], folder_items(folder, known)
