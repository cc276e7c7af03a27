"""What datasets of a user's own images share: class names from a file, and nothing written among the images."""

from collections.abc import Mapping
from pathlib import Path

from unskew.data import Datum
from unskew.fewshot import select
from unskew.files import read_json, user_cache
from unskew.published import SPLITS
from unskew.splits import read_lines

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
        path: JSON (``{"n01440764": "tench"}`` or a list in the order of the labels), or lines of text with a word and
            the name. Empty: no names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds anything else.
    """
    if not path:
        return {}
    if Path(path).suffix == ".json":
        content = read_json(path)
        content = dict(enumerate(content)) if isinstance(content, list) else content
        if not isinstance(content, dict) or not all(isinstance(name, str) and name for name in content.values()):
            raise ValueError(f"DATASET.CLASSNAMES '{path}' must hold names by folder or label, or a list of names")
        return {str(key): name for key, name in content.items()}
    pairs = [line.partition(" ") for line in read_lines(path)]
    bad = [key for key, _, name in pairs if not name]
    if bad:
        raise ValueError(
            f"DATASET.CLASSNAMES '{path}': expected a folder or label and a name in each line, got '{bad[0]}'"
        )
    return {key: name.strip() for key, _, name in pairs}


def selected(cfg, root: Path, splits: Mapping[str, list[Datum]]) -> dict[str, list[Datum]]:
    """`select` for the splits that there are; without test images those of val are tested on, as with ImageNet."""
    train, val, test = (splits.get(split, []) for split in SPLITS)
    if not test:
        val, test = [], val
    if not test:
        raise ValueError(f"'{root}' has training images only: add a split 'test' or 'val', or give no splits at all")
    return select(cfg, root, train, val, test, cache=user_cache(root))
