"""Confidence intervals of accuracies, and tests of their differences, from the correctness of single predictions.

Correctness is a table [S, N]: whether the run with seed s classifies test image n correctly. Images are the sample of
the test set, and seeds the sample of few-shot sets and initial weights. Pooling the same images over seeds would count
each image S times, so images are resampled together with their values of all seeds.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unskew.runs.tables.outcomes import correctness as correctness  # the tables of this module come from it

RESAMPLES = 9_999  # SciPy's default number

# Sentences for the captions of tables and figures.
INTERVAL_NOTE = (
    "95% intervals cover the choice of the test images (bootstrap) and of the seeds (Student's t); from one seed, they "
    "cover the test images only"
)
TEST_NOTE = (
    "p-values come from two-sided sign-flip permutation tests over test images, corrected by Holm's method; they cover "
    "the choice of the test images for these seeds, not the choice of the seeds"
)


class Interval(NamedTuple):
    """A confidence interval, in percent."""

    low: float
    high: float


class Difference(NamedTuple):
    """The first accuracy minus the second in percentage points, its 95% interval and its two-sided p-value."""

    mean: float
    low: float
    high: float
    p_value: float


def interval(correct: NDArray, generator: np.random.Generator, level: float = 0.95) -> Interval:
    """Return a confidence interval of the accuracy of a trainer, see `average_interval`.

    Args:
        correct: correctness [S, N] of S seeds on the same N test images.
        generator: the source of the draws.
        level: the probability with which the interval covers the accuracy over all images and seeds.
    """
    return average_interval([correct], generator, level)


def average_interval(tables: Sequence[NDArray], generator: np.random.Generator, level: float = 0.95) -> Interval:
    """Return a confidence interval of a trainer's average accuracy over datasets, which are drawn independently.

    Images are resampled by the percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
    section 13.3). Resampling three seeds in this way would give intervals with a coverage of 75%, because no draw is
    outside their range. The mean over seeds is therefore drawn from Student's t with S - 1 degrees of freedom (a
    parametric bootstrap). One seed has no known deviation, so the interval then covers the images only.

    Args:
        tables: correctness [S, N] on each dataset.
        generator: the source of the draws.
        level: the probability of the interval.
    """
    draws = np.mean([_draws(table.sum(0), [table], len(table), generator) for table in tables], axis=0)
    return central(draws, level, 0, 100)


def seed_interval(values: Sequence[float], largest: float, level: float = 0.95) -> Interval:
    """Return the interval of Student's t for a mean over seeds, clipped to 0 and the metric's largest value.

    Args:
        values: a metric of two or more seeds.
        largest: 100 for a percentage.
        level: the probability of the interval.
    """
    from scipy.special import stdtrit  # the quantile of Student's t

    seeds, mean = len(values), float(np.mean(values))
    error = float(stdtrit(seeds - 1, (1 + level) / 2)) * float(np.std(values, ddof=1)) / math.sqrt(seeds)
    return Interval(max(0.0, mean - error), min(largest, mean + error))


def compare(first: NDArray, second: NDArray, generator: np.random.Generator, paired: bool = False) -> Difference:
    """Return the difference in accuracy of two trainers on the same N test images, see `compare_averages`.

    Args:
        first: correctness [S, N].
        second: correctness [S2, N] of the same images.
        generator: the source of the draws.
        paired: the rows of both are of the same seeds, whose few-shot images are the same.
    """
    return compare_averages([(first, second)], generator, paired)


def compare_averages(
    pairs: Sequence[tuple[NDArray, NDArray]], generator: np.random.Generator, paired: bool = False
) -> Difference:
    """Return the difference in average accuracy of two trainers over datasets.

    The p-value is that of the permutation test for paired samples, `scipy.stats.permutation_test` with
    ``permutation_type="samples"``: under the hypothesis that both trainers are alike, the difference of their means
    over seeds changes its sign with probability 1/2, for each image independently. The interval is that of
    `average_interval`, for differences.

    Args:
        pairs: correctness of both trainers on the images of each dataset.
        generator: the source of the draws.
        paired: the rows of both are of the same seeds.

    Raises:
        ValueError: two tables of a dataset differ in their numbers of images, or in those of seeds if ``paired``.
    """
    observed, draws, flipped = [], [], []
    for first, second in pairs:
        if first.shape[1] != second.shape[1] or (paired and len(first) != len(second)):
            raise ValueError(f"tables {first.shape} and {second.shape} are not of the same test images and seeds")
        scale = len(first) * len(second)
        units = len(second) * first.sum(0, dtype=np.int64) - len(first) * second.sum(0, dtype=np.int64)  # [N], exact
        rows = [first.astype(np.int8) - second] if paired else [first, second]
        observed.append(100 * units.mean() / scale)
        draws.append(_draws(units, rows, scale, generator))
        flipped.append(100 * flipped_sums(units, generator) / (scale * len(units)))
    mean = float(np.mean(observed))
    as_extreme = np.abs(np.mean(flipped, axis=0)) >= abs(mean) * (1 - 1e-9)  # equal numbers may be rounded differently
    p_value = (1 + int(as_extreme.sum())) / (1 + RESAMPLES)
    return Difference(mean, *central(np.mean(draws, axis=0), 0.95, -100, 100), p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number by the method of Holm (Scand. J. Statist. 6, 1979, p. 67).

    The i-th smallest of m (from 0) is multiplied by m - i; none is smaller than the adjusted ones before, or above 1.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _draws(units: NDArray, rows: Sequence[NDArray], scale: int, generator: np.random.Generator) -> NDArray:
    """Return draws [B] of an accuracy or difference, in percent.

    Args:
        units: ``scale`` times the mean over seeds, for each image [N], as whole numbers.
        rows: independent tables [S, N]; the deviation over the seeds of each is added.
        scale: the divisor of the units.
        generator: the source of the draws.
    """
    # Images with the same value are alike, so only their number is drawn: few columns instead of N.
    values, counts = np.unique(units, return_counts=True)
    drawn = generator.multinomial(len(units), counts / len(units), size=RESAMPLES)  # [B, values]
    draws = drawn @ values * (100 / (scale * len(units)))
    for table in rows:
        if (seeds := len(table)) > 1:
            error = 100 * table.mean(1).std(ddof=1) / math.sqrt(seeds)
            draws = draws + error * generator.standard_t(seeds - 1, size=RESAMPLES)
    return draws


def flipped_sums(units: NDArray, generator: np.random.Generator) -> NDArray:
    """Return the sum of whole numbers [N] with random signs, [B].

    The signs of k numbers of the same size add up to twice a binomial number minus k.
    """
    sizes, counts = np.unique(np.abs(units), return_counts=True)
    positive = generator.binomial(counts, 0.5, size=(RESAMPLES, len(counts)))
    return (2 * positive - counts) @ sizes


def central(draws: NDArray, level: float, lowest: float, highest: float) -> Interval:
    """Return the central part of the draws with a probability."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]).clip(lowest, highest)
    return Interval(float(low), float(high))
