"""The command ``unskew data verify``: compare a dataset with its published numbers and open its images."""

import os
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image
from tabulate import tabulate
from tqdm import tqdm
from yacs.config import CfgNode

from unskew.data.copies import copies_of_data
from unskew.data.dataset import DATASET_REGISTRY, USER_DATASETS, Datum, build_dataset
from unskew.data.images import orientation
from unskew.data.published import PublishedDataset
from unskew.data.readable import find_unreadable, open_all
from unskew.data.splits import SPLITS
from unskew.download.sources import DatasetInfo
from unskew.utils.files import expand

SAMPLE = 5_000  # images to open without --full

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
        turned: number of opened images with an EXIF orientation, which the dataset's published results ignore.
    """

    counts: dict[str, Counter]
    classnames: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    opened: int = 0
    copies: list[str] = field(default_factory=list)
    turned: int = 0

    @property
    def images(self) -> int:
        """The number of images in all splits."""
        return sum(counts.total() for counts in self.counts.values())

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
        if self.turned:
            lines.append(
                f"{self.turned:,} of the {self.opened:,} opened images have an EXIF orientation, which is not applied, "
                "as in published results (DATASET.UPRIGHT True applies it)"
            )
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
    broken = find_unreadable(chosen)
    report.unreadable = list(broken.values())
    report.opened = len(chosen)
    if info is None:
        copies = copies_of_data(expand(cfg.DATASET.ROOT), items["train"], items["test"])
        report.copies = [f"'{path}' is '{original}'" for path, original in sorted(copies.items())]
    if not cfg.DATASET.UPRIGHT:
        readable = [path for path in chosen if path not in broken]
        report.turned = sum(1 for _, found in open_all(readable, _orientation) if found)
    return report


def _all_images(cfg: CfgNode) -> tuple[dict[str, list[Datum]], DatasetInfo | None]:
    """Return all images of a dataset by split, and its published numbers if there are any."""
    dataset = DATASET_REGISTRY.get(cfg.DATASET.NAME)
    if issubclass(dataset, PublishedDataset):
        return dict(zip(SPLITS, dataset.splits(cfg, dataset.root(cfg)), strict=True)), dataset.info_of(cfg)
    # Unreadable images are this command's result, not its error.
    built = dataset(cfg, check=False) if cfg.DATASET.NAME in USER_DATASETS else build_dataset(cfg)  # type: ignore[call-arg]
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


def _orientation(path: str) -> str:
    """Return the EXIF orientation of an image, empty if it is upright."""
    with Image.open(path) as image:
        value = orientation(image)
    return "" if value == 1 else str(value)
