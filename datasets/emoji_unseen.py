"""Emoji-unseen: concepts of the classes of `emoji` that no model was trained on (embedded world)."""

from unskew.data.dataset import DATASET_REGISTRY
from unskew.download.sources import DatasetInfo
from unskew.micro.dataset import EmbeddedDataset


@DATASET_REGISTRY.register("emoji_unseen")
class EmojiUnseen(EmbeddedDataset):
    dataset_dir = "emoji_unseen"
    info = DatasetInfo(17, 0, 0, 680, "none", "CC BY 4.0 (Twemoji)", "docs/MICRO.md", {"test": 40})
