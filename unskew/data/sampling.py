"""Which images of a dataset a run trains on: few-shot and long-tailed samples, and splits where none was published.

Whatever has a ``label`` can be drawn; all randomness comes from the generator that is passed.
"""

import logging
import math
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence

logger = logging.getLogger("unskew")


def group(items: Iterable, field: str = "label") -> dict[int, list]:
    """``{label: its items}``, labels in order of first appearance."""
    groups = defaultdict(list)
    for item in items:
        groups[getattr(item, field)].append(item)
    return dict(groups)


def sample_fewshot(items: Sequence, shots: int, rng: random.Random, repeat: bool = False) -> list:
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
    for images in group(items).values():
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


def sample_up_to(items: Sequence, most: int, rng: random.Random) -> list:
    """``most`` images of each class, where it has fewer all of them; class by class in order of first appearance."""
    return [item for images in group(items).values() for item in rng.sample(images, min(most, len(images)))]


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


def sample_longtail(items: Sequence, imbalance: float, rng: random.Random, order: Sequence[int] | None = None) -> list:
    """A long-tailed sample with the counts of `longtail_counts`, class by class from the most frequent one.

    The most frequent class has as many images as leave every other class enough of its own: all of them
    where ``items`` are balanced.

    Args:
        order: labels from the most to the least frequent; drawn by ``rng`` unless given.

    Raises:
        ValueError: no items, ``imbalance`` is below 1, or ``order`` does not name each label once.
    """
    groups = group(items)
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


def split_off(items: Sequence, fraction: float, rng: random.Random, least: int = 1) -> tuple[list, list]:
    """Take a part of each class: ``(what stays, in its order, what is taken, class by class)``.

    Args:
        fraction: of a class's images, rounded, but one image or more.
        least: classes with fewer images keep all of theirs.
    """
    taken = []
    for images in group(items).values():
        if len(images) >= least:
            taken += rng.sample(images, max(1, round(fraction * len(images))))
    gone = set(map(id, taken))
    return [item for item in items if id(item) not in gone], taken


def split_in_three(items: Sequence, rng: random.Random) -> tuple[list, list, list]:
    """Train, val and test for images that come without a split: 50, 20 and 30% of each class, CoOp's shares.

    Raises:
        ValueError: a class has fewer than 4 images, too few for a share of each.
    """
    train, val, test = [], [], []
    for images in group(items).values():
        if len(images) < 4:
            raise ValueError(
                f"class '{images[0].classname}' has {len(images)} image(s), and a split into train, val and test takes "
                "4 or more: add images, or make the split yourself"
            )
        shuffled = rng.sample(images, len(images))
        first, second = round(0.5 * len(images)), round(0.5 * len(images)) + round(0.2 * len(images))
        train += shuffled[:first]
        val += shuffled[first:second]
        test += shuffled[second:]
    return train, val, test
