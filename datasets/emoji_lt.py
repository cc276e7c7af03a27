"""Emoji-LT: the classes of `emoji`, long-tailed 50 : 1 in train (embedded world)."""

from unskew.data.dataset import DATASET_REGISTRY
from unskew.download.sources import DatasetInfo
from unskew.micro.dataset import EmbeddedDataset


@DATASET_REGISTRY.register("emoji_lt")
class EmojiLT(EmbeddedDataset):
    dataset_dir = "emoji_lt"
    info = DatasetInfo(17, 449, 170, 680, "none", "CC BY 4.0 (Twemoji)", "docs/MICRO.md", {"val": 10, "test": 40})
