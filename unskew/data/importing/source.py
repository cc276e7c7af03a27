"""The common part of all sources of an import: labelled images by split."""

import hashlib
import json
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from itertools import zip_longest
from pathlib import Path
from typing import ClassVar, NamedTuple

from PIL import Image

from unskew.data.custom import split_name
from unskew.data.snapshot import file_state

logger = logging.getLogger("unskew")

# The number or the word of a class; `None` for an image without a label.
Label = int | str | None


class Stored(NamedTuple):
    """One image of a source.

    Attributes:
        content: the bytes of an image file, the path of one, or pixels that have no file; `None` if there is no image.
        name: the file's name in the source, "" if there is none.
    """

    content: bytes | Path | Image.Image | None
    name: str = ""


class Source(ABC):
    """Labelled images by split. They are read twice: first the labels, then the images.

    Attributes:
        kind: the word of the command for this source.
        package: the package that reads it, whose version is recorded.
        identity: what decides the content; known before the source is opened.
        facts: what the manifest records besides; known after `open`.
        splits: the source's name of each split among train, val and test; known after `open`.
        classnames: names by label; known after the labels are read.
    """

    kind: ClassVar[str]
    package: ClassVar[str] = ""

    def __init__(self, identity: Mapping[str, str]) -> None:
        self.identity = {"kind": self.kind, **{key: value for key, value in identity.items() if value}}
        self.facts: dict[str, object] = {}
        self.splits: dict[str, str] = {}
        self.classnames: dict[int | str, str] = {}

    def __str__(self) -> str:
        return f"{self.kind} {self.identity['source']}"

    @abstractmethod
    def open(self) -> None:
        """Find the splits and check what can be checked without reading the images."""

    @abstractmethod
    def labels(self, split: str) -> Iterator[Label]:
        """Yield the label of each image of a split."""

    @abstractmethod
    def images(self, split: str) -> Iterator[tuple[Label, Stored]]:
        """Yield the images of a split in the order of `labels`."""

    def versions(self) -> dict[str, str]:
        """Return the versions of the packages that read this source."""
        return {name: metadata.version(name) for name in ("pillow", self.package) if name}


def choose_splits(names: Iterable[str], place: str) -> tuple[dict[str, str], list[str]]:
    """Return ``{train, val or test: its name in the source}``, and the names of the splits that are left out.

    The only split of a source may have any name: it becomes train.

    Raises:
        ValueError: two names mean the same split, or none means any.
    """
    names = list(names)
    chosen: dict[str, str] = {}
    others = []
    for name in names:
        split = split_name(name)
        if split in chosen:
            raise ValueError(f"{place} has two splits for {split}, '{chosen[split]}' and '{name}': keep one of them")
        if split:
            chosen[split] = name
        else:
            others.append(name)
    if len(names) == 1:
        return chosen or {"train": names[0]}, []
    if not chosen:
        raise ValueError(f"{place} has the splits {', '.join(names) or 'none'}; expected train, val or test")
    return chosen, others


def check_same_names(first: Sequence[str], names: Sequence[str], place: str) -> None:
    """Raise ``ValueError`` if two parts of a source have names for their labels, and a label has different ones."""
    pairs = enumerate(zip_longest(first, names)) if first and names else ()
    for label, (one, other) in pairs:
        if one != other:
            raise ValueError(
                f"{place} has {other!r} as the name of label {label}, and the first part of the source has {one!r}: "
                "give all parts the same class names in the same order"
            )


def split_in(name: str) -> str:
    """Return the split that a file's name has as a word, such as ``train-000``; "" if it has none or several."""
    found = {split for word in re.split(r"[^a-zA-Z]+", name) if (split := split_name(word))}
    return found.pop() if len(found) == 1 else ""


def file_states(paths: Iterable[str | Path]) -> str:
    """Return a hash of the names, sizes and modification times of files."""
    content = [(path, state and state[:2]) for path in sorted(map(str, paths)) for state in [file_state(path)]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
