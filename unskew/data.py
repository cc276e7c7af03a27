"""Datasets as lists of `Datum`: few-shot sampling, split files, and what every dataset class shares."""

import hashlib
import json
import logging
import math
import operator
import os
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from unskew.files import write_atomically
from unskew.registry import Registry

logger = logging.getLogger("unskew")

DATASET_REGISTRY = Registry("DATASET")


def build_dataset(cfg):
    """The dataset that ``cfg.DATASET.NAME`` (its YAML's stem) names, built from ``cfg``."""
    return DATASET_REGISTRY.get(cfg.DATASET.NAME)(cfg)


@dataclass(frozen=True, slots=True)
class Datum:
    """One image: its path, its label (from 0), its domain (from 0) and the name of its class.

    Whether the image exists is not looked up here: a million look-ups on a network disk take minutes.

    Raises:
        ValueError: the path is not a string, or label or domain is not an integer >= 0.
    """

    impath: str = ""
    label: int = 0
    domain: int = 0
    classname: str = ""

    def __post_init__(self):
        if not isinstance(self.impath, str):
            raise ValueError(f"the path of an image must be a string, not {self.impath!r}")
        for field in ("label", "domain"):
            value = getattr(self, field)
            if type(value) is not int:  # numpy's integers do not go into JSON
                try:
                    object.__setattr__(self, field, operator.index(value))
                except TypeError:
                    raise ValueError(f"the {field} of '{self.impath}' must be an integer, not {value!r}") from None
            if value < 0:
                raise ValueError(f"the {field} of '{self.impath}' must be 0 or more, not {value}")


class DatasetBase:
    """Splits of one dataset, with Dassl's attributes. A subclass's ``__init__(cfg)`` reads its files and
    ends in ``super().__init__(train_x=..., val=..., test=...)``.

    Attributes:
        dataset_dir: the dataset's folder below ``cfg.DATASET.ROOT``.
        template: the prompt of a class; ``{}`` stands for its name.
        templates: prompts that the zero-shot ensemble averages; where the class gives none, ``[template]``.
        context_init: prompt that residual prompts and ProGrad start from; where the class gives none, ``template``.
        classnames: in the order of the labels; ``lab2cname`` has the same by label.

    Raises:
        ValueError: no images, labels that are not 0..C-1, or two names for one label.
    """

    dataset_dir = ""
    template = "a photo of a {}."
    templates = None
    context_init = None

    def __init__(self, train_x=None, train_u=None, val=None, test=None):
        self.train_x, self.train_u, self.val, self.test = train_x, train_u, val, test
        self.lab2cname = _class_names(type(self).__name__, [train_x, val, test])
        self.classnames = [self.lab2cname[label] for label in range(len(self.lab2cname))]
        self.num_classes = len(self.classnames)
        self.templates = list(self.templates or [self.template])
        self.context_init = self.context_init or self.template

    @staticmethod
    def generate_fewshot_dataset(*data_sources, num_shots=-1, repeat=False, rng=random):
        """Dassl's sampler: ``num_shots`` images per class of each source; fewer than 1 means all of them.

        Args:
            repeat: fill a class that has too few by drawing with replacement.
            rng: a `random.Random`; Python's global generator unless given, as in Dassl.

        Returns:
            A list for one source, a list of lists for several.
        """
        if num_shots >= 1:
            data_sources = [sample_fewshot(items, num_shots, rng, repeat) for items in data_sources]
        return data_sources[0] if len(data_sources) == 1 else list(data_sources)

    @staticmethod
    def split_dataset_by_label(data_source):
        """``{label: its images}``, labels in order of first appearance."""
        return _group(data_source, "label")

    @staticmethod
    def split_dataset_by_domain(data_source):
        """``{domain: its images}``, domains in order of first appearance."""
        return _group(data_source, "domain")


def _class_names(dataset: str, splits: Sequence[list[Datum] | None]) -> dict[int, str]:
    """``{label: class name}`` in label order, of everything that is in the splits."""
    names = {}
    for label, name in sorted({(item.label, item.classname) for split in splits for item in split or ()}):
        if label in names:
            raise ValueError(f"{dataset}: label {label} has two class names, '{names[label]}' and '{name}'")
        names[label] = name
    if not names:
        raise ValueError(f"{dataset}: no images in train, val or test")
    missing = sorted(set(range(max(names) + 1)) - set(names))
    if missing:
        raise ValueError(f"{dataset}: labels must be 0..{max(names)} without gaps; {missing[0]} has no image")
    return names


# --- sampling --------------------------------------------------------------------------------------


def _group(items: Iterable[Datum], field: str) -> dict[int, list[Datum]]:
    groups = defaultdict(list)
    for item in items:
        groups[getattr(item, field)].append(item)
    return dict(groups)


def sample_fewshot(items: Sequence[Datum], shots: int, rng: random.Random, repeat: bool = False) -> list[Datum]:
    """``shots`` images of each class, class by class in order of first appearance.

    ``random.Random(seed)``, train first and val with the same generator after it, gives the images of
    CoOp's published few-shot files. A class that has fewer gives all of its images (with ``repeat``:
    draws with replacement), which is said in one warning.

    Raises:
        ValueError: ``shots`` is below 1.
    """
    if shots < 1:
        raise ValueError(f"shots must be 1 or more, not {shots}")
    sampled, short = [], []
    for images in _group(items, "label").values():
        if len(images) >= shots:
            sampled += rng.sample(images, shots)
            continue
        short.append((len(images), images[0].classname))
        sampled += rng.choices(images, k=shots) if repeat else images
    if short:
        fewest, name = min(short)
        does = "are drawn repeatedly" if repeat else "are all taken"
        logger.warning(
            f"{shots} images per class were asked for and {len(short)} class(es) have fewer "
            f"('{name}' has {fewest}): theirs {does}"
        )
    return sampled


def longtail_counts(most: int, classes: int, imbalance: float) -> list[int]:
    """Images per class of an exponential profile: ``most * imbalance^(-k / (C-1))``, rounded down, at least 1.

    Those of the published CIFAR-10-LT and CIFAR-100-LT (Cao et al., arXiv 1906.07413).

    Args:
        most: images of the most frequent class. imbalance: its ratio to the least frequent one.

    Raises:
        ValueError: ``most`` or ``classes`` is below 1, or ``imbalance`` is.
    """
    if most < 1 or classes < 1:
        raise ValueError(f"a long tail needs 1 class and 1 image or more, got {classes} classes and {most} images")
    if not 1 <= imbalance < math.inf:
        raise ValueError(f"imbalance is most : fewest images of a class, a number of 1 or more; got {imbalance}")
    steps = max(classes - 1, 1)
    # 500 / 100 is 5 images, also where rounding makes it 4.999...
    return [max(1, int(most * imbalance ** (-k / steps) + 1e-9)) for k in range(classes)]


def sample_longtail(
    items: Sequence[Datum], imbalance: float, rng: random.Random, order: Sequence[int] | None = None
) -> list[Datum]:
    """A long-tailed sample with the counts of `longtail_counts`, class by class from the most frequent one.

    The most frequent class has as many images as leave every other class enough of its own: all of them
    where ``items`` are balanced.

    Args:
        order: labels from the most to the least frequent; drawn by ``rng`` unless given.

    Raises:
        ValueError: no items, ``imbalance`` is below 1, or ``order`` does not name each label once.
    """
    groups = _group(items, "label")
    if not groups:
        raise ValueError("no images to draw a long-tailed sample from")
    if order is None:
        order = rng.sample(sorted(groups), len(groups))
    elif sorted(order) != sorted(groups):
        raise ValueError(f"order must name each of the {len(groups)} labels once, got {list(order)}")
    available = [len(groups[label]) for label in order]
    most = max(available)
    while any(n > there for n, there in zip(longtail_counts(most, len(order), imbalance), available, strict=True)):
        most -= 1
    counts = longtail_counts(most, len(order), imbalance)
    return [item for label, n in zip(order, counts, strict=True) for item in rng.sample(groups[label], n)]


def select(cfg, root, train: list[Datum], val: list[Datum] | None, test: list[Datum]) -> dict[str, list[Datum]]:
    """What a run sees of a dataset: its few-shot sample, then one half of its classes.

    Reads ``cfg.DATASET.SEED``, where that is negative ``cfg.SEED`` (both negative: another sample each time),
    ``cfg.DATASET.NUM_SHOTS`` (-1: all images), ``NUM_VAL_SHOTS`` (-1: min(NUM_SHOTS, 4), as CoOp) and
    ``SUBSAMPLE_CLASSES`` (all, base, new). A dataset without val gets its few-shot val from the training images
    that were not sampled, never from test. Samples are kept in ``root/split_fewshot``.

    Args:
        root: the dataset's own folder.

    Returns:
        ``{"train_x": .., "val": .., "test": ..}``, the arguments of `DatasetBase`.

    Raises:
        ValueError: one of these keys has a value out of its range.
    """
    shots, val_shots, val = cfg.DATASET.NUM_SHOTS, cfg.DATASET.NUM_VAL_SHOTS, val or []
    if shots != -1 and shots < 1:
        raise ValueError(f"DATASET.NUM_SHOTS is {shots}; it must be 1 or more, or -1 for all images")
    if val_shots < -1:
        raise ValueError(f"DATASET.NUM_VAL_SHOTS is {val_shots}; it must be 0 or more, or -1 for min(NUM_SHOTS, 4)")
    if shots != -1:
        val_shots = min(shots, 4) if val_shots == -1 else val_shots
        seed = cfg.SEED if cfg.DATASET.SEED < 0 else cfg.DATASET.SEED
        train, val = _fewshot(Path(root), train, val, shots, val_shots, seed)
    return _subsample_classes(cfg.DATASET.SUBSAMPLE_CLASSES, train_x=train, val=val, test=test)


def _fewshot(root: Path, train, val, shots: int, val_shots: int, seed: int):
    """The few-shot train and val of one seed: from the cache if it is of these very images, else sampled."""
    if seed < 0:
        return _draw(train, val, shots, val_shots, random.Random())
    known = {_relative(item.impath, root): item for item in [*train, *val]}
    source = hashlib.sha256(f"{len(train)} {len(val)}".encode())  # the sample depends on the images and their order
    source.update("\n".join(f"{path}\t{item.label}" for path, item in known.items()).encode())
    suffix = "" if val_shots == min(shots, 4) else f"-val_{val_shots}"
    path = root / "split_fewshot" / f"shot_{shots}-seed_{seed}{suffix}.json"
    try:
        cache = read_json(path) if path.is_file() else {}
        if cache.get("source") == source.hexdigest():
            return tuple([known[entry[0]] for entry in cache[split]] for split in ("train", "val"))
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        logger.warning(f"'{path}' cannot be used ({error}): the sample is drawn again")
    sample = _draw(train, val, shots, val_shots, random.Random(seed))
    content = {split: _entries(items, root) for split, items in zip(("train", "val"), sample, strict=True)}
    try:
        write_json({**content, "source": source.hexdigest()}, path)
    except OSError as error:  # a read-only data folder: the same seed draws the same sample next time
        logger.debug(f"the few-shot sample was not kept: {error}")
    return sample


def _draw(train, val, shots: int, val_shots: int, rng: random.Random):
    sample = sample_fewshot(train, shots, rng)
    if not val_shots:
        return sample, []
    if not val:
        taken = {item.impath for item in sample}
        val = [item for item in train if item.impath not in taken]
        without = len({item.label for item in train}) - len({item.label for item in val})
        if without:
            logger.warning(f"{without} class(es) have no image for val: all of theirs are in the {shots}-shot sample")
    return sample, sample_fewshot(val, val_shots, rng)


def _subsample_classes(subsample: str, **splits: list[Datum]) -> dict[str, list[Datum]]:
    """The first (base) or second (new) half of the classes, relabelled from 0; of an odd number base has more."""
    if subsample not in ("all", "base", "new"):
        raise ValueError(f"DATASET.SUBSAMPLE_CLASSES is '{subsample}'; it must be all, base or new")
    if subsample == "all":
        return splits
    labels = sorted({item.label for items in splits.values() for item in items})
    half = math.ceil(len(labels) / 2)
    kept = {label: new for new, label in enumerate(labels[:half] if subsample == "base" else labels[half:])}
    return {
        split: [Datum(i.impath, kept[i.label], i.domain, i.classname) for i in items if i.label in kept]
        for split, items in splits.items()
    }


# --- files -----------------------------------------------------------------------------------------


def read_json(path):
    """The content of a JSON file.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # bad JSON or bad UTF-8
        raise ValueError(f"'{path}' is not a JSON file: {error}") from None


def write_json(content, path) -> None:
    """Write a JSON file, and its folder if need be; a reader sees the old file or the new one, never a part."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content))


def read_split(path, image_root) -> tuple[list[Datum], list[Datum], list[Datum]]:
    """Read a split in CoOp's format, ``{"train": [[path, label, class name], ..], "val": .., "test": ..}``.

    Args:
        image_root: the folder that the file's paths are relative to.

    Returns:
        Train, val and test.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not of this format; says where.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no split file '{path}'")
    content = read_json(path)
    if not isinstance(content, dict) or not {"train", "val", "test"} <= content.keys():
        raise ValueError(f"'{path}' is not a split file: it must hold the lists train, val and test")
    return tuple(_read_entries(content[split], f"'{path}', {split}", image_root) for split in ("train", "val", "test"))


def save_split(train: list[Datum], val: list[Datum], test: list[Datum], path, image_root) -> None:
    """Write a split in CoOp's format, its paths relative to ``image_root``."""
    splits = {"train": train, "val": val, "test": test}
    write_json({split: _entries(items, image_root) for split, items in splits.items()}, path)


def _read_entries(entries, where: str, image_root) -> list[Datum]:
    if not isinstance(entries, list):
        raise ValueError(f"{where}: expected a list of [path, label, class name]")
    items = []
    for number, entry in enumerate(entries):
        match entry:
            case [str(path), int(label), str(name)] if label >= 0 and not isinstance(label, bool):
                items.append(Datum(os.path.join(image_root, path), label, 0, name))
            case _:
                raise ValueError(f"{where}, entry {number}: expected [path, label >= 0, class name], got {entry!r}")
    return items


def _entries(items: Iterable[Datum], root) -> list[list]:
    return [[_relative(item.impath, root), item.label, item.classname] for item in items]


def _relative(path: str, root) -> str:
    prefix = os.path.join(root, "")
    return path[len(prefix) :] if path.startswith(prefix) else os.path.relpath(path, root)  # relpath is slow
