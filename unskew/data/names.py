"""Class names: their order in the user's data, the files that give them, and names with the same prompt."""

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from unskew.data.dataset import Datum
from unskew.data.splits import PREPARE_AGAIN, read_lines
from unskew.utils.files import expand, read_json

logger = logging.getLogger("unskew")

_Key = TypeVar("_Key", str, int)
_Value = TypeVar("_Value", str, int)

SHOWN = 3  # names in a message

# A prefix and the number at the end of a name, perhaps with the zeros that pandas writes: "class12", "12", "12.0".
NUMBERED = re.compile(r"(.*?)([0-9]{1,18})(?:\.0*)?", re.DOTALL)


def composed(name: str) -> str:
    """Return a name in Unicode's composed form (NFC); macOS and some archives write accents as separate characters."""
    return unicodedata.normalize("NFC", name)


def class_order(names: Iterable[str], place: str) -> list[str]:
    """Return the names of the user's classes in the order of their labels, each once.

    Names that are numbers, or one prefix with numbers behind it (``class1``, ``class10``), are sorted as numbers, all
    others by alphabet.

    Args:
        names: the names.
        place: the data, for the error message.

    Raises:
        ValueError: two names are the same number, such as ``1`` and ``01``.
    """
    ordered = sorted(set(names))
    matches = [NUMBERED.fullmatch(name) for name in ordered]
    if len({match and match[1] for match in matches}) > 1 or None in matches:
        return ordered
    numbers: dict[int, str] = {}
    for name, match in zip(ordered, matches, strict=True):
        other = numbers.setdefault(int(match[2]), name)  # type: ignore[index]  # None was excluded
        if other != name:
            raise ValueError(f"{place} has the classes '{other}' and '{name}', the same number: rename or merge them")
    return [numbers[number] for number in sorted(numbers)]


# --- files of class names ------------------------------------------------------------------------------


def listed(keys: Collection[object]) -> str:
    """Return the first few keys in quotes and the number of the others."""
    shown = ", ".join(f"'{key}'" for key in list(keys)[:SHOWN])
    return f"{shown} and {len(keys) - SHOWN} more" if len(keys) > SHOWN else shown


def distinct(source: str, pairs: Sequence[tuple[_Key, _Value]]) -> dict[_Key, _Value]:
    """Return pairs of a key and its value as a dictionary.

    Raises:
        ValueError: a key is there twice, which would shift or replace a name.
    """
    doubled = [str(key) for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if doubled:
        raise ValueError(f"{source} has {len(doubled)} key(s) more than once: {listed(doubled)}; keep one of each")
    return dict(pairs)


def check_names(source: str, names: Collection[_Key], classes: Collection[_Key], known: Collection[_Key] = ()) -> None:
    """Check that names and classes are the same.

    Args:
        source: the file of the names, for the error message.
        names: the keys of the names.
        classes: the classes.
        known: more keys that may have a name.

    Raises:
        ValueError: a class has no name, or a name no class.
    """
    have, need = set(names), set(classes)
    missing = [key for key in classes if key not in have]
    unknown = [key for key in names if key not in need and key not in set(known)]
    others = f"names {len(unknown)} unknown class(es): {listed(unknown)}"
    if missing:
        problem = f"has no name for {len(missing)} class(es): {listed(missing)}"
        fix = f"it {others}; use the classes' names as keys" if unknown else "add the missing names"
        raise ValueError(f"{source} {problem}; {fix}")
    if unknown:
        raise ValueError(f"{source} {others}; correct or remove them")


def check_used(path: str | Path, names: Sequence[str], *splits: Sequence[Datum]) -> None:
    """Raise ``ValueError`` unless each name, by its place in a published file, is the class of an image."""
    used = {item.label for items in splits for item in items}
    unused = [name for label, name in enumerate(names) if label not in used]
    if unused:
        raise ValueError(
            f"'{path}' has {len(names)} names, but {len(unused)} of them have no image: {listed(unused)}; "
            f"{PREPARE_AGAIN}"
        )


def read_classes(path: str | Path) -> dict[str, int]:
    """Return ``{class: its label}`` from a published text file with a class in each line, in the order of the labels.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a class has two lines.
    """
    return distinct(f"'{path}'", [(name, label) for label, name in enumerate(read_lines(path))])


def read_pairs(path: str | Path) -> dict[str, str]:
    """Return ``{folder: class name}`` from the lines of a published text file: the first word and the rest.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a line has no name, or a folder has two lines.
    """
    pairs = []
    for line in read_lines(path):
        folder, _, name = line.partition(" ")
        if not name:
            raise ValueError(f"'{path}': expected a folder and a class name in each line, got '{folder}'")
        pairs.append((folder, name))
    return distinct(f"'{path}'", pairs)


def read_json_names(path: str | Path, source: str = "") -> dict[str, str] | list[str]:
    """Return class names by key, or a list of them, from a JSON file.

    Args:
        path: the file.
        source: its description in error messages; default its path.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has another format, or a key twice.
    """
    content = read_json(path, object_pairs_hook=tuple)
    values = [value for _, value in content] if isinstance(content, tuple) else content
    if not isinstance(values, list) or not all(isinstance(name, str) and name for name in values):
        raise ValueError(f"{source or path} must hold class names by folder or label, or a list of class names")
    return distinct(source or f"'{path}'", content) if isinstance(content, tuple) else values


def read_names(path: str, classes: Sequence[str], known: Collection[str] = (), numbered: bool = False) -> list[str]:
    """Return the names of the user's classes, in their order, from the file ``DATASET.CLASSNAMES``.

    Args:
        path: JSON (``{"n01440764": "tench"}``, or a list if the order of the classes cannot be mistaken), or lines of
            text: a folder or label, a tab or a space, and the class name. If empty, the classes are the names.
        classes: the folders or labels in the order of the labels.
        known: more keys that may have a name, such as folders without images.
        numbered: the classes are labels in a file; a list gives the name of label 0 first.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has another format, a key twice, a key that is not a class, or no name for a class.
    """
    if not path:
        return list(classes)
    file, source = expand(path), f"DATASET.CLASSNAMES '{path}'"
    if not file.is_file():
        raise FileNotFoundError(f"{source} is not a file: give a file with the class names")
    content = read_json_names(file, source) if file.suffix.lower() == ".json" else _read_text(file, source)
    if isinstance(content, list):
        _check_list(source, content, classes, numbered)
        return content
    names = distinct(source, [(_key(key, numbered), name) for key, name in content.items()])
    check_names(source, names, classes, known)
    return [names[key] for key in classes]


def _key(key: str, numbered: bool) -> str:
    return whole_number(composed(key)) if numbered else composed(key)


def whole_number(text: str) -> str:
    """Return a whole number that was written as a float without its decimals, any other text as it is."""
    return re.sub(r"\A([0-9]+)\.0*\Z", r"\1", text)


def _read_text(file: Path, source: str) -> dict[str, str]:
    pairs = []
    for line in read_lines(file):
        key, _, name = line.partition("\t" if "\t" in line else " ")
        if not name:
            raise ValueError(f"{source}: each line must be a folder or label and a name, got '{key}'")
        pairs.append((key.strip(), name.strip()))
    return distinct(source, pairs)


def _check_list(source: str, names: Sequence[str], classes: Sequence[str], numbered: bool) -> None:
    """Raise ``ValueError`` unless a list has a name for each class and the order of the classes cannot be mistaken."""
    if len(names) != len(classes):
        raise ValueError(f"{source} has {len(names)} names for {len(classes)} classes: give a name for each class")
    if numbered and list(classes) == [str(label) for label in range(len(classes))]:
        return
    for other in (sorted(classes), sorted(classes, key=str.casefold), sorted(classes, key=_natural)):
        if list(classes) != other:
            place, name = next((n, name) for n, name in enumerate(other) if classes[n] != name)
            raise ValueError(
                f"{source} is a list, and the order of the classes can be mistaken (name {place + 1} may mean "
                f"'{classes[place]}' or '{name}'): give the names by class, {{\"{name}\": ...}}"
            )


def _natural(name: str) -> list[str | int]:
    """Sort words by alphabet without regard to capitals, and the numbers in them as numbers."""
    return [int(part) if n % 2 else part for n, part in enumerate(re.split("([0-9]+)", name.casefold()))]


# --- prompts -------------------------------------------------------------------------------------------


def warn_of_equal_prompts(names: Mapping[int, str]) -> None:
    """Warn if classes of the user's data have the same prompt, so that no text classifier can tell them apart.

    Underscores are spaces in a prompt, and CLIP's tokenizer ignores capitals and repeated spaces.
    """
    first: dict[str, int] = {}
    equal = []
    for label, name in names.items():
        other = first.setdefault(" ".join(composed(name).replace("_", " ").lower().split()), label)
        if other != label:
            equal.append((other, label))
    if equal:
        one, two = equal[0]
        logger.warning(
            f"{len(equal)} class(es) have the same prompt as another class, for instance class {one} '{names[one]}' "
            f"and class {two} '{names[two]}': give them other names with DATASET.CLASSNAMES"
        )
