"""What ImageNet and its variants share: names, sources and labels."""

from pathlib import Path

from unskew.data.image_folders import class_folders
from unskew.data.published import PublishedDataset, folder_items
from unskew.data.splits import read_pairs
from unskew.download.sources import Source

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
