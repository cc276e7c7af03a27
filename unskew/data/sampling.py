"""Few-shot samples, long-tailed profiles, and splits for datasets without published ones.

All functions take items with a ``label``. All randomness comes from the generator that is passed.
"""

import logging
import math
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

logger = logging.getLogger("unskew")

# Images times classes of a fit, for very large datasets such as iNaturalist: a gigabyte of logits.
MOST_LOGITS = 2**28


class Labelled(Protocol):
    """An item with a label and the name of its class."""

    @property
    def label(self) -> int: ...  # noqa: D102 - the class describes it
    @property
    def classname(self) -> str: ...  # noqa: D102 - the class describes it


Item = TypeVar("Item", bound=Labelled)


def group(items: Iterable[Item], field: str = "label") -> dict[int, list[Item]]:
    """Return ``{label: its items}`` with the labels in order of first appearance."""
    groups = defaultdict(list)
    for item in items:
        groups[getattr(item, field)].append(item)
    return dict(groups)


def sample_fewshot(
    items: Sequence[Item], shots: int, rng: random.Random, repeat: bool = False, warn: bool = True
) -> list[Item]:
    """Draw images of each class; the classes are in order of first appearance.

    ``random.Random(seed)``, used first for train and then for val, gives the images of CoOp's published few-shot files.

    Args:
        items: the images to draw from.
        shots: images per class. A smaller class gives all of its images, and one warning names these classes.
        rng: the source of randomness.
        repeat: draw with replacement in the smaller classes.
        warn: warn of smaller classes; the summary of a run's dataset does so itself.

    Raises:
        ValueError: ``shots`` is below 1.
    """
    if shots < 1:
        raise ValueError(f"shots must be 1 or more, not {shots}")
    sampled: list[Item] = []
    short = []
    for images in group(items).values():
        if len(images) >= shots:
            sampled += rng.sample(images, shots)
            continue
        short.append((len(images), images[0].classname))
        sampled += rng.choices(images, k=shots) if repeat else images
    if short and warn:
        fewest, name = min(short)
        action = "their images are drawn repeatedly" if repeat else "all of their images are used"
        logger.warning(f"{len(short)} class(es) have fewer than {shots} images ('{name}' has {fewest}): {action}")
    return sampled


def sample_up_to(items: Sequence[Item], most: int, rng: random.Random) -> list[Item]:
    """Draw ``most`` images of each class, or all images of a smaller class."""
    return [item for images in group(items).values() for item in rng.sample(images, min(most, len(images)))]


def sample_for_logits(items: Sequence[Item], classes: int, rng: random.Random) -> Sequence[Item]:
    """Return the images, or as many of each class as `MOST_LOGITS` allows."""
    if len(items) * classes <= MOST_LOGITS:
        return items
    return sample_up_to(items, max(1, MOST_LOGITS // classes**2), rng)


def longtail_counts(most: int, classes: int, imbalance: float) -> list[int]:
    """Return the images per class of an exponential profile.

    Class k of C has ``most * imbalance^(-k / (C-1))`` images, rounded down, at least 1. This is the profile of the
    published CIFAR-10-LT and CIFAR-100-LT (Cao et al., arXiv 1906.07413).

    Args:
        most: images of the most frequent class.
        classes: C, the number of classes.
        imbalance: ratio of the most to the least frequent class.

    Raises:
        ValueError: ``most``, ``classes`` or ``imbalance`` is below 1.
    """
    if most < 1 or classes < 1:
        raise ValueError(f"a long tail needs 1 class and 1 image or more, got {classes} classes and {most} images")
    if not 1 <= imbalance < math.inf:
        raise ValueError(f"imbalance (most : fewest images of a class) must be a number of 1 or more; got {imbalance}")
    steps = max(classes - 1, 1)
    # 500 / 100 is 5 images, even if rounding makes it 4.999...
    return [max(1, int(most * imbalance ** (-k / steps) + 1e-9)) for k in range(classes)]


def split_off(
    items: Sequence[Item], fraction: float, rng: random.Random, least: int = 1
) -> tuple[list[Item], list[Item]]:
    """Divide the images of each class into two parts.

    Args:
        items: the images.
        fraction: size of the second part, rounded to whole images, but 1 image or more.
        rng: the source of randomness.
        least: classes with fewer images stay in the first part.

    Returns:
        The first part in its old order, and the second part class by class.
    """
    taken: list[Item] = []
    for images in group(items).values():
        if len(images) >= least:
            taken += rng.sample(images, max(1, round(fraction * len(images))))
    taken_ids = set(map(id, taken))
    return [item for item in items if id(item) not in taken_ids], taken


def split_in_three(items: Sequence[Item], rng: random.Random) -> tuple[list[Item], list[Item], list[Item]]:
    """Divide images without a published split: 50, 20 and 30% of each class for train, val and test, as CoOp does.

    Raises:
        ValueError: a class has fewer than 4 images, too few for three parts.
    """
    train: list[Item] = []
    val: list[Item] = []
    test: list[Item] = []
    for images in group(items).values():
        if len(images) < 4:
            raise ValueError(
                f"class '{images[0].classname}' has {len(images)} image(s), and a split into train, val and test needs "
                "4 or more: add images, or make the split yourself"
            )
        shuffled = rng.sample(images, len(images))
        first, second = round(0.5 * len(images)), round(0.5 * len(images)) + round(0.2 * len(images))
        train += shuffled[:first]
        val += shuffled[first:second]
        test += shuffled[second:]
    return train, val, test
