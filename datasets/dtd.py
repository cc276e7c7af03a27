"""Describable Textures: 47 of them (Cimpoi et al. 2014), divided 50 : 20 : 30 as CoOp does."""

from pathlib import Path

from yacs.config import CfgNode

from unskew.data.dataset import DATASET_REGISTRY
from unskew.data.published import PublishedDataset, split_folders, split_source
from unskew.data.splits import Splits
from unskew.download.sources import DatasetInfo, Source

_HOME = "https://www.robots.ox.ac.uk/~vgg/data/dtd"


@DATASET_REGISTRY.register("dtd")
class DescribableTextures(PublishedDataset):
    dataset_dir = "dtd"
    image_dir = "images"
    split_file = "split_zhou_DescribableTextures.json"
    template = "{} texture."
    context_init = "a texture of {}."
    info = DatasetInfo(47, 2820, 1128, 1692, "0.6 GB", "research", f"{_HOME}/", {"train": 60, "val": 24, "test": 36})
    sources = (
        Source(
            "dtd-r1.0.1.tar.gz",
            (f"{_HOME}/download/dtd-r1.0.1.tar.gz",),
            makes={f"dtd/{name}": name for name in ("images", "imdb", "labels")},
            checksum="md5:fff73e5086ae6bdbea199a49dfb8a4c1",
        ),
        split_source(
            split_file,
            "1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x",
            "f26ebeccd2b58e68d70f07a0dc39fe49bf7b69024bac34396b954dfd87969c38",
        ),
    )

    @classmethod
    def read(cls, cfg: CfgNode, root: Path) -> Splits:
        return split_folders(root / cls.image_dir)
