"""Emoji: 17 official subgroups of emoji, photos of pictures by Twemoji (embedded world)."""

from unskew.data.dataset import DATASET_REGISTRY
from unskew.download.sources import DatasetInfo
from unskew.micro.dataset import EmbeddedDataset


@DATASET_REGISTRY.register("emoji")
class Emoji(EmbeddedDataset):
    dataset_dir = "emoji"
    info = DatasetInfo(
        17, 340, 272, 680, "none", "CC BY 4.0 (Twemoji)", "docs/MICRO.md", {"train": 20, "val": 16, "test": 40}
    )
