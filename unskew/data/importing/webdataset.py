"""WebDataset: tar files whose members of one key are a sample, such as ``000.jpg`` and ``000.cls``.

The standard library reads the tars: the package webdataset also starts the commands in ``pipe:`` addresses and keeps
no limit on the size of a member.
"""

import glob
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from unskew.data.custom import split_name
from unskew.data.image_folders import EXTENSIONS
from unskew.data.importing.source import Label, Source, Stored, file_states, split_in
from unskew.download.archives import read_tar
from unskew.utils.errors import DAMAGE, format_error
from unskew.utils.files import expand

_LARGEST = 2**28  # bytes of a member that is read

_LABEL_FILES = ("cls", "json", "txt")  # the first one that has a label decides

# Keys of a label, and of a class name, in .json files.
_LABEL_KEYS = ("label", "cls", "class", "class_id")
_NAME_KEYS = ("classname", "class_name", "label_name")

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]+)\.\.([0-9]+)")
_MOST_TARS = 1_000_000


class WebDataset(Source):
    """Tars of images with .cls, .json or .txt files.

    Args:
        tars: paths with braces (``{000..012}``, ``{a,b}``) and wildcards.
        split: the split of all tars; by default the names of the files or of their folders tell it.

    Raises:
        FileNotFoundError: no file has such a name.
        ValueError: the split of a tar is not clear.
    """

    kind = "webdataset"

    def __init__(self, tars: Sequence[str], split: str = "") -> None:
        self.tars = find_tars(tars)
        self._by_split = _tars_by_split(self.tars, split)
        others = f" and {len(self.tars) - 1} more" if len(self.tars) > 1 else ""
        name = f"{self.tars[0].resolve()}{others}"
        super().__init__({"source": name, "split": split, "files": file_states(self.tars)})

    def open(self) -> None:
        """Record the splits; the tars are read with the labels."""
        self.splits = {
            split: "--split" if "split" in self.identity else f"{len(tars)} tar(s)"
            for split, tars in self._by_split.items()
        }
        self.facts = {"tars": {split: [tar.name for tar in tars] for split, tars in self._by_split.items()}}

    def labels(self, split: str) -> Iterator[Label]:
        """Yield the label of each sample; collect the names of the classes."""
        for tar in self._by_split[split]:
            for sample in _samples(tar, images=False):
                if sample.label is not None and sample.classname:
                    known = self.classnames.setdefault(sample.label, sample.classname)
                    if known != sample.classname:
                        names = f"'{known}' and '{sample.classname}'"
                        raise ValueError(f"label {sample.label} has two names, {names} (in '{tar}'): use one")
                yield sample.label

    def images(self, split: str) -> Iterator[tuple[Label, Stored]]:
        """Yield the samples."""
        for tar in self._by_split[split]:
            for sample in _samples(tar, images=True):
                yield sample.label, Stored(sample.image, sample.image_name)


# --- which tars --------------------------------------------------------------------------------------


def find_tars(patterns: Sequence[str]) -> list[Path]:
    """Return the files of patterns with braces and wildcards, each once, in order.

    Raises:
        FileNotFoundError: a pattern has no file.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        for path in _expand_braces(os.fspath(expand(pattern))):
            matches = [path] if os.path.lexists(path) else sorted(glob.glob(path))
            if not matches:
                raise FileNotFoundError(f"there is no file '{path}': give tars, on this machine, by their paths")
            found |= dict.fromkeys(map(Path, matches))
    return list(found)


def _expand_braces(pattern: str) -> Iterator[str]:
    """Yield the paths of a pattern with ranges and lists in braces."""
    if os.path.lexists(pattern):  # a file with braces in its name
        yield pattern
        return
    pieces = _BRACES.split(pattern)
    choices = [list(_choices(piece)) if number % 2 else [piece] for number, piece in enumerate(pieces)]
    for number, words in enumerate(product(*choices)):
        if number == _MOST_TARS:
            raise ValueError(f"'{pattern}' means more than {_MOST_TARS:,} files: give fewer")
        yield "".join(words)


def _choices(inside: str) -> Iterator[str]:
    numbers = _RANGE.fullmatch(inside)
    if numbers is None:
        yield from inside.split(",") if "," in inside else [f"{{{inside}}}"]
        return
    first, last = numbers.groups()
    width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
    step = 1 if int(first) <= int(last) else -1
    if abs(int(last) - int(first)) >= _MOST_TARS:
        raise ValueError(f"the range {{{inside}}} means more than {_MOST_TARS:,} files: give fewer")
    for number in range(int(first), int(last) + step, step):
        yield str(number).zfill(width)


def _tars_by_split(tars: Sequence[Path], split: str) -> dict[str, list[Path]]:
    if split:
        name = split_name(split)
        if name is None:
            raise ValueError(f"--split must be train, val or test; got '{split}'")
        return {name: list(tars)}
    by_split: dict[str, list[Path]] = {}
    for tar in tars:
        by_split.setdefault(_split_in(tar), []).append(tar)
    unknown = by_split.pop("", [])
    if unknown and by_split:
        raise ValueError(f"the split of '{unknown[0]}' is not clear from its name: rename it, or give --split")
    return by_split or {"train": unknown}


def _split_in(tar: Path) -> str:
    """Return the split that the name of a file has as a word, or that its folder is called; "" if there is none."""
    return split_in(tar.name) or split_name(tar.resolve().parent.name) or ""


# --- samples -----------------------------------------------------------------------------------------


@dataclass
class _Sample:
    """The files of one key, and what the label files say."""

    key: str
    files: dict[str, bytes] = field(default_factory=dict)  # the label files by extension
    image_name: str = ""
    image: bytes | None = None
    label: Label = None
    classname: str = ""


def _samples(tar: Path, images: bool) -> Iterator[_Sample]:
    """Yield the samples of a tar in order; files without a key, and samples of other files only, are skipped.

    Raises:
        ValueError: a sample has no image, no label, two images or a damaged label, or see `read_tar`.
    """

    def wanted(name: str) -> bool:
        extension = _key(name)[1]
        return extension in _LABEL_FILES or (images and _is_image(extension))

    for sample in _groups(read_tar(tar, wanted, _LARGEST)):
        try:
            labelled = _read_label(sample)
            if sample.image_name and not labelled:
                raise ValueError("it has no label: add a .cls, .json or .txt file")
            if labelled and not sample.image_name:
                raise ValueError("it has no image")
        except DAMAGE as error:
            raise ValueError(f"'{tar}', sample '{sample.key}': {format_error(error)}") from error
        if labelled:
            yield sample


def _groups(members: Iterable[tuple[str, bytes | None]]) -> Iterator[_Sample]:
    """Yield the files of one key together; they follow each other."""
    sample = _Sample("")
    for name, content in members:
        key, extension = _key(name)
        if not key:
            continue
        if key != sample.key:
            yield sample
            sample = _Sample(key)
        if _is_image(extension):
            if sample.image_name:
                raise ValueError(f"the sample '{key}' has two images, '{sample.image_name}' and '{name}': keep one")
            sample.image_name, sample.image = name, content
        elif extension in _LABEL_FILES:
            if extension in sample.files:
                raise ValueError(f"the sample '{key}' has two .{extension} files: keep one")
            sample.files[extension] = content or b""
    yield sample


def _key(name: str) -> tuple[str, str]:
    """Return the key of a member and its extension, which begins at the first dot of the name."""
    folder, slash, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return (f"{folder}{slash}{stem}", extension.lower()) if stem and extension else ("", "")


def _is_image(extension: str) -> bool:
    return f".{extension}".endswith(EXTENSIONS)


def _read_label(sample: _Sample) -> bool:
    """Read the label of a sample and its class name; return whether it has a label, which may be empty."""
    for extension in _LABEL_FILES:
        if extension not in sample.files or (extension == "txt" and _is_named(sample)):  # a caption
            continue
        text = sample.files[extension].decode("utf-8-sig")
        try:
            label, classname = _read_json(text) if extension == "json" else (_number(text.strip()), "")
        except DAMAGE as error:
            raise ValueError(f"its .{extension} file is no label ({format_error(error)})") from error
        sample.classname = sample.classname or classname
        sample.label = label if sample.label is None else sample.label
    if sample.label is None and sample.classname:
        sample.label, sample.classname = sample.classname, ""
    return sample.label is not None


def _is_named(sample: _Sample) -> bool:
    return sample.label is not None or bool(sample.classname)


def _number(text: str) -> Label:
    """Return a number as such, and other text as it is; it must be one line."""
    if "\n" in text:
        raise ValueError("it has several lines, and a label has one")
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else text


def _read_json(text: str) -> tuple[Label, str]:
    """Return the label in a .json file, ``None`` if it has none, and the class name, "" if it has none."""
    content = json.loads(text)
    if not isinstance(content, dict):
        content = {"label": content}
    label = next((content[key] for key in _LABEL_KEYS if key in content), None)
    names = [content[key] for key in _NAME_KEYS if isinstance(content.get(key), str)]
    if isinstance(label, bool) or not isinstance(label, int | str | None):
        raise ValueError(f"its label is {label!r}, neither a number nor a word")
    return label, names[0] if names else ""
