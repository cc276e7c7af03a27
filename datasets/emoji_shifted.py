"""Emoji-shifted: the test concepts of `emoji` in pictures by OpenMoji (embedded world)."""

from unskew.data.dataset import DATASET_REGISTRY
from unskew.download.sources import DatasetInfo
from unskew.micro.dataset import EmbeddedDataset


@DATASET_REGISTRY.register("emoji_shifted")
class EmojiShifted(EmbeddedDataset):
    dataset_dir = "emoji_shifted"
    info = DatasetInfo(17, 0, 0, 680, "none", "CC BY-SA 4.0 (OpenMoji)", "docs/MICRO.md", {"test": 40})
