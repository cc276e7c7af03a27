"""ImageNet, ILSVRC2012 (Russakovsky et al. 2015), tested on its validation images as usual."""

from pathlib import Path

from yacs.config import CfgNode

from unskew.data.dataset import DATASET_REGISTRY
from unskew.data.image_folders import folder_items
from unskew.data.imagenet import NAMES, VAL_LIST, image_folder, imagenet_names, known_folders, lay_out_archive
from unskew.data.published import PublishedDataset
from unskew.data.splits import Splits
from unskew.download.install import exclusive_lock, prepare
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
    def read(cls, cfg: CfgNode, root: Path) -> Splits:
        images, names = image_folder(root), imagenet_names(root)
        known_folders(root, images / "train", names)
        classes = {folder: (label, name) for label, (folder, name) in enumerate(names.items())}
        return folder_items(images / "train", classes), [], folder_items(images / "val", classes)

    @classmethod
    def arrange(cls, root: Path) -> None:
        """Lay out the archives that the user has put into the folder; see `lay_out_archive`."""
        splits = [split for split in ("train", "val") if (root / f"ILSVRC2012_img_{split}.tar").is_file()]
        if "val" in splits and not VAL_LIST.is_there(root):
            prepare(root, [VAL_LIST])
        for split in splits:
            with exclusive_lock(root):
                lay_out_archive(root, split, cls.info.classes)
