"""The classes and splits of an import, known from all labels before an image is written."""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from tqdm import tqdm

from unskew.data.importing.classes import folder_names, read_given_names
from unskew.data.importing.source import Label, Source
from unskew.data.names import listed
from unskew.data.splits import SPLITS

logger = logging.getLogger("unskew")


@dataclass(frozen=True)
class Plan:
    """The images, classes and folders that an import writes.

    Attributes:
        counts: images by label, by split.
        names: class names by label.
        folders: folder names by label.
    """

    counts: dict[str, Counter[int | str]]
    names: dict[int | str, str]
    folders: dict[int | str, str]


def make_plan(source: Source, classnames: str = "") -> Plan:
    """Read all labels of an opened source.

    Images without a label (empty or negative) are left out with a warning.

    Args:
        source: the source.
        classnames: the file of ``--classnames``.

    Raises:
        ValueError: labels are numbers and words, there are fewer than two classes, or a label has no name.
    """
    given = read_given_names(classnames) if classnames else {}
    counts = {split: _count(source, split) for split in SPLITS if split in source.splits}
    counts = {split: labels for split, labels in counts.items() if labels}
    labels = set[int | str]().union(*counts.values())
    if {type(label) for label in labels} == {int, str}:
        words = sorted(label for label in labels if isinstance(label, str))
        raise ValueError(f"{source} has numbers and words as labels, for instance '{words[0]}': use one kind")
    if len(labels) < 2:
        raise ValueError(f"{source} has images of {len(labels)} class(es): two or more are needed")
    names = _names(source, labels, given)
    unused = [name for label, name in source.classnames.items() if label not in labels]
    if unused and not given:
        logger.warning(f"{len(unused)} class(es) have no image and are left out: {listed(unused)}")
    return Plan(counts, names, dict(zip(names, folder_names(list(names.values())), strict=True)))


def _count(source: Source, split: str) -> Counter[int | str]:
    """Return the number of images of each label in a split; warn of those without a label."""
    counts: Counter[int | str] = Counter()
    hidden = 0
    where = f"split '{source.splits[split]}' of {source}"
    for label in tqdm(source.labels(split), desc=f"read labels of {split}", delay=2, leave=False, disable=None):
        if label is not None and has_label(label):
            counts[label] += 1
        else:
            hidden += 1
    if hidden:
        rest = "; the others are imported" if counts else ", so that it is left out"
        logger.warning(f"{where}: {hidden:,} image(s) have no label (empty or negative){rest}")
    elif not counts:
        logger.warning(f"{where} has no images and is left out")
    return counts


def has_label(label: Label) -> bool:
    """Return whether a label is a word or a number from 0 on; hidden labels of test images are -1 or empty."""
    return label >= 0 if isinstance(label, int) else bool(label)


def _names(source: Source, labels: set[int | str], given: Mapping[str, str]) -> dict[int | str, str]:
    """Return the name of each label, in the order of the labels.

    Raises:
        ValueError: there are names, but not for each label.
    """
    ordered: list[int | str] = sorted(labels)  # of one type
    known: dict[int | str, str] = {label: given[str(label)] for label in ordered if str(label) in given}
    place = "--classnames"
    if not given:
        known, place = {**source.classnames}, str(source)
    if not known and not given:
        if isinstance(ordered[0], int):
            logger.warning(f"{source} has no class names, only numbers: give them with --classnames FILE")
        return {label: str(label) for label in ordered}
    missing = [label for label in ordered if label not in known]
    if missing:
        raise ValueError(f"{place} has no name for {len(missing)} label(s): {listed(missing)}; add their names")
    empty = [label for label in ordered if not known[label].strip()]
    if empty:
        raise ValueError(f"{source}: the name of label {empty[0]} is empty; give names with --classnames FILE")
    return {label: known[label] for label in ordered}
