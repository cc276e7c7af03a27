"""Intervals and tests of numbers that combine several tests of the same run: H, and averages over targets.

The same model answers all tests of a run, so its tests vary together over the seeds. Their images are independent.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from unskew.runs.tables import comparison
from unskew.runs.tables.comparison import Difference, Interval, central, flipped_sums

NOTE = "resampling changes base and new test images and moves both accuracies with the seeds (multivariate Student's t)"

Combine = Callable[[NDArray], NDArray]  # accuracies [tests, draws] in percent to numbers [draws]


def mean(accuracies: NDArray) -> NDArray:
    """Return the average over tests of accuracies [tests, draws]."""
    return accuracies.mean(0)


def harmonic(accuracies: NDArray) -> NDArray:
    """Return the harmonic mean over tests of accuracies [tests, draws]; draws outside 0 to 100 are clipped."""
    return len(accuracies) / (1 / accuracies.clip(1e-9, 100)).sum(0)


def interval(
    tests: Sequence[Sequence[NDArray]], combine: Combine, generator: np.random.Generator, level: float = 0.95
) -> Interval:
    """Return a confidence interval of a number that combines the accuracies of several tests.

    The images of each test are resampled by the percentile bootstrap, as in `comparison.average_interval`.
    The means over seeds of the tests are drawn together from the multivariate t distribution with S - 1 degrees of
    freedom and the covariance of the seeds' accuracies (Kotz and Nadarajah, Multivariate t Distributions, 2004, Eq.
    1.1). One seed has no known covariance, so the interval then covers the images only.

    Args:
        tests: for each dataset, the correctness [S, N] in each test; row s of all tests is of the same model.
        combine: the number as a function of the accuracies, which are averages over the datasets.
        generator: the source of the draws.
        level: the probability of the interval.
    """
    draws = np.mean([_image_draws(tables, generator) + _seed_draws(tables, generator) for tables in tests], axis=0)
    return central(combine(draws), level, 0, 100)


def compare(
    pairs: Sequence[Sequence[tuple[NDArray, NDArray]]],
    combine: Combine,
    generator: np.random.Generator,
    paired: bool = False,
) -> Difference:
    """Return the difference of two trainers in a number that combines the accuracies of several tests.

    The p-value is that of the permutation test in `comparison.compare_averages`: if both trainers are
    alike, they may exchange their results on each image. The number is computed after each exchange.

    Args:
        pairs: for each dataset, the correctness of both trainers in each test.
        combine: the number as a function of the accuracies, which are averages over the datasets.
        generator: the source of the draws.
        paired: the rows of both trainers are of the same seeds.

    Raises:
        ValueError: two tables of a test differ in their numbers of images.
    """
    sums, gaps, flipped, draws = [], [], [], []
    for tests in pairs:
        first, second = [table for table, _ in tests], [table for _, table in tests]
        if any(one.shape[1] != other.shape[1] for one, other in tests):
            raise ValueError("the tables of a test are not of the same images")
        ours, theirs = (np.array([100 * table.mean() for table in tables]) for tables in (first, second))
        sums.append(ours + theirs)
        gaps.append(ours - theirs)
        flipped.append([_flipped(one, other, generator) for one, other in tests])
        images = np.stack([_together(one, other, generator) for one, other in tests], axis=1)  # [2, tests, B]
        both = [[*first, *second]] if paired else [first, second]
        seeds = np.concatenate([_seed_draws(tables, generator) for tables in both])  # [2 tests, B]
        draws.append(images + seeds.reshape(images.shape))
    total = np.mean(sums, axis=0)[:, None]  # of both trainers

    def difference(gap: NDArray) -> NDArray:
        return combine((total + gap) / 2) - combine((total - gap) / 2)

    observed = float(difference(np.mean(gaps, axis=0)[:, None])[0])
    as_extreme = np.abs(difference(np.mean(flipped, axis=0))) >= abs(observed) * (1 - 1e-9)
    p_value = (1 + int(as_extreme.sum())) / (1 + comparison.RESAMPLES)
    ours, theirs = np.mean(draws, axis=0)
    return Difference(observed, *central(combine(ours) - combine(theirs), 0.95, -100, 100), p_value)


def _image_draws(tables: Sequence[NDArray], generator: np.random.Generator) -> NDArray:
    """Return draws [tests, B] of the mean accuracy of each test with resampled images, in percent."""
    return np.stack([_together(table, table[:0], generator)[0] for table in tables])


def _together(first: NDArray, second: NDArray, generator: np.random.Generator) -> NDArray:
    """Return draws [2, B] of the accuracies of two trainers with the same resampled images, in percent."""
    sums = np.stack([first.sum(0), second.sum(0)])
    # Images with the same sums are alike, so only their number is drawn.
    codes, counts = np.unique(sums[0] * (len(second) + 1) + sums[1], return_counts=True)
    values = np.stack(np.divmod(codes, len(second) + 1)) / np.array([[len(first)], [max(len(second), 1)]])
    images = first.shape[1]
    drawn = generator.multinomial(images, counts / images, size=comparison.RESAMPLES)  # [B, values]
    return 100 / images * (values @ drawn.T)


def _seed_draws(tables: Sequence[NDArray], generator: np.random.Generator) -> NDArray:
    """Return draws [tests, B] of the deviations of the means over seeds, which the tests share, in percent.

    Independent normal weights of the S deviations from the mean have the deviations' covariance times S - 1.
    """
    seeds = len(tables[0])
    if seeds < 2:
        return np.zeros((len(tables), comparison.RESAMPLES))
    accuracy = 100 * np.stack([table.mean(1) for table in tables])  # [tests, S]
    normal = generator.standard_normal((seeds, comparison.RESAMPLES))
    spread = np.sqrt(generator.chisquare(seeds - 1, comparison.RESAMPLES) / (seeds - 1))
    return (accuracy - accuracy.mean(1, keepdims=True)) @ normal / (math.sqrt(seeds * (seeds - 1)) * spread)


def _flipped(first: NDArray, second: NDArray, generator: np.random.Generator) -> NDArray:
    """Return differences of accuracies [B] after exchanges at random images, in percent."""
    units = len(second) * first.sum(0, dtype=np.int64) - len(first) * second.sum(0, dtype=np.int64)
    return 100 * flipped_sums(units, generator) / (len(first) * len(second) * len(units))
