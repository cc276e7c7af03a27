"""``unskew data verify``: a dataset's images counted against the published numbers, looked for, and opened."""

import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

from tabulate import tabulate
from tqdm import tqdm

from unskew.data.dataset import DATASET_REGISTRY, DatasetBase, Datum, build_dataset
from unskew.data.published import SPLITS, PublishedDataset
from unskew.download.sources import DatasetInfo

SAMPLE = 500  # images that are opened where not all are

SHOWN = 20  # problems that are shown where not all are


@dataclass
class Report:
    """What `verify` found.

    Attributes:
        counts: images per class, by split. classnames: by label.
        wrong: numbers that are not the published ones, a line each.
        missing: paths of images that are not there. unreadable: what is wrong with others, a line each.
        opened: how many images were opened.
    """

    counts: dict[str, Counter]
    classnames: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    opened: int = 0

    @property
    def problems(self) -> list[str]:
        return [*self.wrong, *(f"'{path}' is missing" for path in self.missing), *self.unreadable]

    def text(self, full: bool = False) -> str:
        """A table of the splits, then the problems, the first few of them unless ``full``."""
        rows = [
            (
                split,
                f"{sum(counts.values()):,}",
                *(f"{n:,}" for n in (len(counts), min(counts.values()), max(counts.values()))),
            )
            for split, counts in self.counts.items()
            if counts
        ]
        header = ("split", "images", "classes", "fewest", "most of a class")
        align = ("left", *["right"] * 4)
        lines = [tabulate(rows, header, tablefmt="github", colalign=align, disable_numparse=True)]
        some = ", ".join(self.classnames[:6]) + (f" ... {self.classnames[-1]}" if len(self.classnames) > 6 else "")
        lines.append(f"classes: {some}")
        shown = self.problems if full else self.problems[:SHOWN]
        lines += shown
        if len(shown) < len(self.problems):
            lines.append(f"... and {len(self.problems) - len(shown):,} more; --full lists all")
        return "\n".join(lines)


def verify(cfg, full: bool = False) -> Report:
    """Count the images of a config's dataset, look for each of them, and open some (``full``: all).

    Raises:
        FileNotFoundError, ValueError: the dataset's own files are missing or broken.
    """
    items, info = all_images(cfg)
    report = Report({split: Counter(item.label for item in found) for split, found in items.items()})
    report.wrong = [] if info is None else _wrong_numbers(report.counts, info)
    names = dict(sorted({(item.label, item.classname) for found in items.values() for item in found}))
    report.classnames = list(names.values())
    named = Counter(item.impath for found in items.values() for item in found)
    report.wrong += [f"'{path}' is named {count} times" for path, count in named.items() if count > 1]
    paths = sorted(named)
    report.missing = _missing(paths)
    gone = set(report.missing)
    there = [path for path in paths if path not in gone]
    chosen = there if full or len(there) <= SAMPLE else random.Random(0).sample(there, SAMPLE)
    report.unreadable = list(_unreadable(chosen))
    report.opened = len(chosen)
    return report


def all_images(cfg) -> tuple[dict[str, list[Datum]], DatasetInfo | None]:
    """All images of a config's dataset by split, and its published numbers."""
    dataset: type[DatasetBase] = DATASET_REGISTRY.get(cfg.DATASET.NAME)
    if issubclass(dataset, PublishedDataset):
        return dict(zip(SPLITS, dataset.splits(cfg, dataset.root(cfg)), strict=True)), dataset.info_of(cfg)
    built = build_dataset(cfg)
    splits = dict(zip(SPLITS, (built.train_x, built.val, built.test), strict=True))
    return {split: found or [] for split, found in splits.items()}, getattr(dataset, "info", None)


def _wrong_numbers(counts: Mapping[str, Counter], info: DatasetInfo) -> list[str]:
    wrong = []
    classes = len(set().union(*counts.values()))
    if classes != info.classes:
        wrong.append(f"{classes:,} classes; published are {info.classes:,}")
    for split, found in counts.items():
        published = getattr(info, split)
        if sum(found.values()) != published:
            wrong.append(f"{split}: {sum(found.values()):,} images; published are {published:,}")
        each = info.per_class.get(split)
        wrong += [
            f"{split}: class {label} has {count} images; published are {each}"
            for label, count in sorted(found.items())
            if each and count != each
        ]
    return wrong


def _missing(paths: Sequence[str]) -> list[str]:
    """Those that are not there; a folder is read once, which is faster than asking for each file."""
    listed: dict[str, set[str]] = {}
    missing = []
    for path in tqdm(paths, desc="looking for images", unit="image", unit_scale=True, leave=False, disable=None):
        folder, name = os.path.split(path)
        if folder not in listed:
            listed[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if name not in listed[folder]:
            missing.append(path)
    return missing


def _unreadable(paths: Iterable[str]) -> Iterator[str]:
    """What is wrong with images that cannot be opened, in order."""
    from unskew.data.images import read_image

    def problem(path: str) -> str:
        try:
            read_image(path)
        except (OSError, ValueError) as error:
            return str(error)
        return ""

    paths = list(paths)
    bar = tqdm(total=len(paths), desc="opening images", unit="image", leave=False, disable=None)
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding leaves Python's lock
        rest = iter(paths)
        while part := list(islice(rest, 1000)):
            for found in pool.map(problem, part):
                bar.update()
                if found:
                    yield found
