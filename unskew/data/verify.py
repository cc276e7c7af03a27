"""The command ``unskew data verify``: compare a dataset with its published numbers and open its images."""

import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

from tabulate import tabulate
from tqdm import tqdm
from yacs.config import CfgNode

from unskew.data.copies import copies_of_data
from unskew.data.dataset import DATASET_REGISTRY, Datum, build_dataset
from unskew.data.published import PublishedDataset
from unskew.data.splits import SPLITS
from unskew.download.sources import DatasetInfo
from unskew.utils.files import expand

SAMPLE = 500  # images to open without --full

SHOWN = 20  # problems to show without --full


@dataclass
class Report:
    """The result of `verify`.

    Attributes:
        counts: images per class, by split.
        classnames: class names in label order.
        wrong: one line for each number that differs from the published one.
        missing: paths of images that do not exist.
        unreadable: one line for each image that cannot be read.
        opened: number of opened images.
        copies: one line for each test image of the user's data with the bytes of a training image.
    """

    counts: dict[str, Counter]
    classnames: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    opened: int = 0
    copies: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """All problems, one line each."""
        return [*self.wrong, *(f"'{path}' is missing" for path in self.missing), *self.unreadable]

    def text(self, full: bool = False) -> str:
        """Return a table of the splits and the list of problems, shortened unless ``full``."""
        rows = [
            (split, *(f"{n:,}" for n in (counts.total(), len(counts), min(counts.values()), max(counts.values()))))
            for split, counts in self.counts.items()
            if counts
        ]
        header = ("split", "images", "classes", "fewest", "most of a class")
        align = ("left", *["right"] * 4)
        lines = [tabulate(rows, header, tablefmt="github", colalign=align, disable_numparse=True)]
        names = ", ".join(self.classnames[:6]) + (f" ... {self.classnames[-1]}" if len(self.classnames) > 6 else "")
        lines.append(f"classes: {names}")
        shown = self.problems if full else self.problems[:SHOWN]
        lines += shown
        if len(shown) < len(self.problems):
            lines.append(f"... and {len(self.problems) - len(shown):,} more; --full lists all")
        if self.copies:
            lines.append(f"{len(self.copies):,} test image(s) are byte-identical to a training image:")
            lines += self.copies if full else self.copies[:SHOWN]
            if not full and len(self.copies) > SHOWN:
                lines.append(f"... and {len(self.copies) - SHOWN:,} more; --full lists all")
        return "\n".join(lines)


def verify(cfg: CfgNode, full: bool = False) -> Report:
    """Count the images of a dataset, check that each one exists, and open ``SAMPLE`` of them (``full``: all).

    Raises:
        FileNotFoundError: the dataset's lists are missing.
        ValueError: the dataset's lists are broken.
    """
    items, info = _all_images(cfg)
    report = Report({split: Counter(item.label for item in images) for split, images in items.items()})
    report.wrong = [] if info is None else _wrong_numbers(report.counts, info)
    names = dict(sorted({(item.label, item.classname) for images in items.values() for item in images}))
    report.classnames = list(names.values())
    named = Counter(item.impath for images in items.values() for item in images)
    report.wrong += [f"'{path}' is named {count} times" for path, count in named.items() if count > 1]
    paths = sorted(named)
    report.missing = _missing(paths)
    missing = set(report.missing)
    existing = [path for path in paths if path not in missing]
    chosen = existing if full or len(existing) <= SAMPLE else random.Random(0).sample(existing, SAMPLE)
    report.unreadable = list(_unreadable(chosen))
    report.opened = len(chosen)
    if info is None:
        copies = copies_of_data(expand(cfg.DATASET.ROOT), items["train"], items["test"])
        report.copies = [f"'{path}' is '{original}'" for path, original in sorted(copies.items())]
    return report


def _all_images(cfg: CfgNode) -> tuple[dict[str, list[Datum]], DatasetInfo | None]:
    """Return all images of a dataset by split, and its published numbers if there are any."""
    dataset = DATASET_REGISTRY.get(cfg.DATASET.NAME)
    if issubclass(dataset, PublishedDataset):
        return dict(zip(SPLITS, dataset.splits(cfg, dataset.root(cfg)), strict=True)), dataset.info_of(cfg)
    built = build_dataset(cfg)
    return {"train": list(built.train_x), "val": list(built.val), "test": list(built.test)}, getattr(
        dataset, "info", None
    )


def _wrong_numbers(counts: Mapping[str, Counter], info: DatasetInfo) -> list[str]:
    wrong = []
    classes = len(set().union(*counts.values()))
    if classes != info.classes:
        wrong.append(f"{classes:,} classes; published are {info.classes:,}")
    for split, per_class in counts.items():
        published = getattr(info, split)
        if per_class.total() != published:
            wrong.append(f"{split}: {per_class.total():,} images; published are {published:,}")
        each = info.per_class.get(split)
        wrong += [
            f"{split}: class {label} has {count} images; published are {each}"
            for label, count in sorted(per_class.items())
            if each and count != each
        ]
    return wrong


def _missing(paths: Sequence[str]) -> list[str]:
    """Return the paths that do not exist; each folder is listed once, which is faster than a check per file."""
    listed: dict[str, set[str]] = {}
    missing = []
    for path in tqdm(paths, desc="check images", unit="image", unit_scale=True, leave=False, disable=None):
        folder, name = os.path.split(path)
        if folder not in listed:
            listed[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if name not in listed[folder]:
            missing.append(path)
    return missing


def _unreadable(paths: Iterable[str]) -> Iterator[str]:
    """Yield one line for each image that cannot be read, in order."""
    from unskew.data.images import read_image

    def problem(path: str) -> str:
        try:
            read_image(path)
        except (OSError, ValueError) as error:
            return str(error)
        return ""

    paths = list(paths)
    bar = tqdm(total=len(paths), desc="open images", unit="image", leave=False, disable=None)
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow releases Python's lock
        rest = iter(paths)
        while batch := list(islice(rest, 1000)):
            for message in pool.map(problem, batch):
                bar.update()
                if message:
                    yield message
