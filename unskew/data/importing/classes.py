"""Folder names for classes of any name, and files of class names."""

import re
from collections.abc import Sequence

from unskew.data.image_folders import is_left_over
from unskew.data.names import NUMBERED, composed, distinct, read_json_names
from unskew.data.splits import read_lines
from unskew.utils.errors import check_regular
from unskew.utils.files import expand

_MOST_BYTES = 200  # of a folder's name; file systems take 255

_UNSAFE = re.compile(r'[/\\:*?"<>|]')

# Names of devices on Windows, with any extension.
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


def folder_names(names: Sequence[str]) -> list[str]:
    """Return a folder name for each class name: the name itself if all file systems and the dataset `folder` take it.

    Separators and control characters become underscores. Names that differ only in capitals or in the form of their
    accents, or that are the same number, get a number behind them.
    """
    safe = [_safe(name) for name in names]
    taken: set[object] = set()
    found: dict[int, str] = {}
    for place in sorted(range(len(names)), key=lambda place: (safe[place] != names[place], place)):
        folder, count = safe[place], 1
        while taken & _keys(folder):
            count += 1
            folder = f"{safe[place]}~{count}"
        taken |= _keys(folder)
        found[place] = folder
    return [found[place] for place in range(len(names))]


def _safe(name: str) -> str:
    """Return a name without what a file system or the dataset `folder` would not take."""
    text = "".join(letter if letter.isprintable() else "_" for letter in composed(name))
    text = _UNSAFE.sub("_", text).encode()[:_MOST_BYTES].decode(errors="ignore").strip().rstrip(". ")
    if is_left_over(text):
        text = f"_{text.lstrip('.')}"
    return f"{text}_" if not text or _DEVICE.fullmatch(text) else text


def _keys(folder: str) -> set[object]:
    """Return what no two folders may share."""
    number = NUMBERED.fullmatch(folder)
    word = composed(folder.casefold())
    return {word, (number[1].casefold(), int(number[2]))} if number else {word}


def read_given_names(path: str) -> dict[str, str]:
    """Return ``{label: class name}`` from the file of ``--classnames``.

    Args:
        path: JSON, names by label or a list that begins with label 0; or lines of text, each with a class name, or with
            a label, a tab and a class name.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has another format, or a label twice.
    """
    file, source = expand(path), f"--classnames '{path}'"
    if not file.exists():
        raise FileNotFoundError(f"{source} is not a file: give a file with the class names")
    check_regular(file)
    if file.suffix.lower() == ".json":
        content = read_json_names(file, source)
    else:
        lines = [line.partition("\t") for line in read_lines(file)]
        keyed = any(tab for _, tab, _ in lines)
        if keyed and not all(name for *_, name in lines):
            raise ValueError(f"{source}: either all lines have a label, a tab and a class name, or none has a tab")
        pairs = [(label.strip(), name.strip()) for label, _, name in lines]
        content = distinct(source, pairs) if keyed else [line for line, *_ in lines]
    return content if isinstance(content, dict) else {str(label): name for label, name in enumerate(content)}
