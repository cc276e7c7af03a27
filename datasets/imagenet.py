"""ImageNet, ILSVRC2012 (Russakovsky et al. 2015): tested on its validation images, as everybody does."""

import shutil
import tarfile
from pathlib import Path

from tqdm import tqdm

from unskew.data.dataset import DATASET_REGISTRY
from unskew.data.image_folders import class_folders
from unskew.data.imagenet import NAMES, VAL_LIST, image_folder, imagenet_names
from unskew.data.published import PublishedDataset, folder_items
from unskew.data.splits import read_table
from unskew.download.sources import DatasetInfo, Source

_REGISTER = "https://image-net.org/download-images (a free registration)"


@DATASET_REGISTRY.register("imagenet")
class ImageNet(PublishedDataset):
    dataset_dir = "imagenet"
    imagenet_templates = True
    info = DatasetInfo(
        1000, 1281167, 0, 50000, "145 GB", "non-commercial research, registration", _REGISTER, {"test": 50}
    )
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
        from unskew.download.install import exclusive_lock, prepare

        placed = [split for split in ("train", "val") if (root / f"ILSVRC2012_img_{split}.tar").is_file()]
        if "val" in placed and not VAL_LIST.is_there(root):
            prepare(root, [VAL_LIST])
        for split in placed:
            with exclusive_lock(root):
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
    if classes != ImageNet.info.classes:
        raise ValueError(f"'{archive}' has {classes} classes in place of {ImageNet.info.classes}; download it again")
    work.rename(folder)


def _unpack_train(archive: Path, work: Path, root: Path) -> None:
    """One folder a class; those that an interrupted call left whole are not unpacked again."""
    with tarfile.open(archive) as outer:
        for member in tqdm(outer, desc=archive.name, total=ImageNet.info.classes, unit="class", disable=None):
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
