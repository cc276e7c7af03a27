"""What datasets of a user's own images share: class names from a file, and nothing written among the images."""

import logging
from collections.abc import Mapping
from pathlib import Path

from unskew.data.dataset import Datum, class_names
from unskew.data.fewshot import select
from unskew.data.published import SPLITS
from unskew.data.splits import read_lines
from unskew.utils.files import expand, read_json, user_cache

logger = logging.getLogger("unskew")

# Other names that people give to a split.
ALIASES = {"valid": "val", "validation": "val", "dev": "val", "training": "train", "testing": "test"}


def split_name(text: str) -> str | None:
    """``train``, ``val`` or ``test`` for what somebody calls a split; ``None`` for any other word."""
    name = text.strip().lower()
    name = ALIASES.get(name, name)
    return name if name in SPLITS else None


def read_names(path: str) -> dict[str, str]:
    """Class names by what stands for them in the data: a folder's name or a label.

    Args:
        path: JSON (``{"n01440764": "tench"}``, or a list in the order of the labels or folders), or lines of text: a
            folder's name or a label, a tab or a space, and the class's name. Empty: no names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds anything else.
    """
    if not path:
        return {}
    file = expand(path)
    if not file.is_file():
        raise FileNotFoundError(f"DATASET.CLASSNAMES '{path}' is not a file: give one that names the classes")
    if file.suffix == ".json":
        content = read_json(file)
        content = dict(enumerate(content)) if isinstance(content, list) else content
        if not isinstance(content, dict) or not all(isinstance(name, str) and name for name in content.values()):
            raise ValueError(f"DATASET.CLASSNAMES '{path}' must hold names by folder or label, or a list of names")
        return {str(key): name for key, name in content.items()}
    pairs = [line.partition("\t" if "\t" in line else " ") for line in read_lines(file)]
    bad = [key for key, _, name in pairs if not name]
    if bad:
        raise ValueError(
            f"DATASET.CLASSNAMES '{path}': expected a folder or label and a name in each line, got '{bad[0]}'"
        )
    return {key.strip(): name.strip() for key, _, name in pairs}


def selected(cfg, root: Path, splits: Mapping[str, list[Datum]]) -> dict[str, list]:
    """`select` for the splits that there are; without test images those of val are tested on, as with ImageNet.

    Returns:
        The arguments of `DatasetBase`.
    """
    train, val, test = (splits.get(split, []) for split in SPLITS)
    if not test:
        val, test = [], val
    if not test:
        raise ValueError(f"'{root}' has training images only: add a split 'test' or 'val', or give no splits at all")
    names = class_names(f"'{root}'", (train, val, test))
    unseen = sorted(set(names) - {item.label for item in train}) if train else []
    if unseen:
        logger.warning(f"{len(unseen)} class(es) have no training images, '{names[unseen[0]]}' the first")
    chosen = select(cfg, root, train, val, test, cache=user_cache(root))
    return {**chosen, "classnames": list(names.values()) if cfg.DATASET.SUBSAMPLE_CLASSES == "all" else None}
