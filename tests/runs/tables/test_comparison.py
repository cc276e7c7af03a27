"""Intervals and tests of accuracies agree with SciPy, closed forms and simulated worlds whose truth is known."""

import numpy as np
import pytest
from scipy import stats
from scipy.special import ndtr

from unskew.runs.tables import comparison
from unskew.runs.tables.comparison import average_interval, compare, compare_averages, holm, interval

GRANULARITY = 4 * np.sqrt(0.25 / comparison.RESAMPLES)  # of a p-value from random signs: 4 standard deviations
HARD = 0.8  # a run is right if the sum of normal effects of its seed, the image and both exceeds the image's hardness


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def world(rng, seeds, images, over_seeds, over_images):
    """Return correctness [S, N] whose expectation over seeds and images is ndtr(HARD)."""
    deviation = np.sqrt(1 + over_seeds**2 + over_images**2)
    effects = over_seeds * rng.normal(size=(seeds, 1)) + over_images * rng.normal(size=images)
    return effects + rng.normal(size=(seeds, images)) + HARD * deviation > 0


@pytest.mark.parametrize(
    ("seeds", "over_seeds", "over_images", "most"),
    [(1, 0, 2, 0.98), (3, 0.2, 2, 1), (2, 0.2, 2, 1), (5, 0.2, 2, 0.995), (10, 0.2, 2, 0.985), (10, 0, 2, 0.99)],
)
def test_the_interval_covers_the_truth_as_often_as_its_level(seeds, over_seeds, over_images, most, rng, monkeypatch):
    monkeypatch.setattr(comparison, "RESAMPLES", 999)
    found = [interval(world(rng, seeds, 500, over_seeds, over_images), rng) for _ in range(300)]
    covered = np.mean([low <= 100 * ndtr(HARD) <= high for low, high in found])
    assert 0.92 <= covered <= most  # resampling 2 or 3 seeds would cover 85% and 89%


def test_of_one_seed_the_bootstrap_is_a_binomial_distribution(rng):
    correct = np.arange(400)[None] < 300
    for level in (0.95, 0.8):
        expected = stats.binom.ppf([(1 - level) / 2, (1 + level) / 2], 400, 0.75) / 4
        np.testing.assert_allclose(interval(correct, rng, level), expected, atol=0.3)


def test_of_many_images_the_interval_is_that_of_students_t(rng):
    accuracies = np.array([70.0, 75.0, 78.0])
    correct = np.arange(1_000_000)[None] % 100 < accuracies[:, None]
    expected = stats.t.interval(0.95, 2, accuracies.mean(), stats.sem(accuracies))
    np.testing.assert_allclose(interval(correct, rng), expected, atol=0.6)


def test_intervals_of_an_average_combine_independent_datasets(rng):
    tables = [world(rng, 1, 2000, 0, 1) for _ in range(4)]
    widths = [high - low for low, high in (interval(table, rng) for table in tables)]
    low, high = average_interval(tables, rng)
    assert low < 100 * np.mean(tables) < high
    assert high - low == pytest.approx(np.sqrt(np.sum(np.square(widths))) / 4, rel=0.05)


def test_intervals_stay_within_0_and_100(rng):
    assert interval(np.ones((3, 50), bool), rng) == (100, 100)
    low, high = interval(np.arange(50)[None] < [[50], [20]], rng)
    assert (low, high) == (0, 100)


def difference_of_means(first, second, axis=-1):
    return np.mean(first - second, axis=axis)


@pytest.mark.parametrize(("seeds", "others"), [(1, 1), (3, 3), (2, 5)])
@pytest.mark.parametrize("images", [10, 300])
def test_p_values_are_those_of_scipy(images, seeds, others, rng):
    for _ in range(3):
        first, second = world(rng, seeds, images, 0, 1), world(rng, others, images, 0, 1)
        first[0, : images // 10] = True
        samples = (first.mean(0), second.mean(0))
        options = {"permutation_type": "samples", "vectorized": True, "n_resamples": 4_000, "rng": rng}
        expected = stats.permutation_test(samples, difference_of_means, **options)
        found = compare(first, second, rng)
        assert found.mean == pytest.approx(100 * expected.statistic)
        assert found.p_value == pytest.approx(expected.pvalue, abs=GRANULARITY + (0.02 if images > 10 else 0))


def test_of_one_seed_the_test_is_mcnemars(rng):
    """Only images on which one of both is right count; their signs are fair coins (McNemar, Psychometrika 12, 1947)."""
    only_first, only_second, images = 40, 25, np.arange(1000)[None]
    first, second = images < 600, (images >= only_first) & (images < 600 + only_second)
    found = compare(first, second, rng)
    assert found.mean == pytest.approx(1.5)
    expected = stats.binomtest(only_first, only_first + only_second).pvalue
    assert found.p_value == pytest.approx(expected, abs=GRANULARITY)


def test_p_values_are_uniform_if_trainers_are_alike(rng, monkeypatch):
    monkeypatch.setattr(comparison, "RESAMPLES", 999)
    p_values = []
    for _ in range(400):
        both = world(rng, 6, 400, 0, 1)
        p_values.append(compare(both[:3], both[3:], rng).p_value)
    assert stats.kstest(p_values, "uniform").pvalue > 0.001


def test_an_obvious_difference_is_found_and_its_interval_covers_it(rng):
    images = rng.normal(size=2000)
    first, second = (images + rng.normal(size=(3, 2000)) > hard for hard in (-1.0, -0.8))
    found = compare(first, second, rng)
    assert found.p_value == 1 / (1 + comparison.RESAMPLES)
    assert 0 < found.low < 100 * (ndtr(1 / np.sqrt(2)) - ndtr(0.8 / np.sqrt(2))) < found.high


def test_equal_tables_do_not_differ(rng):
    first = world(rng, 3, 100, 0.1, 1)
    assert compare(first, first, rng, paired=True) == (0, 0, 0, 1)
    low, high = compare(first, first, rng)[1:3]
    assert low < 0 < high  # of other seeds


def test_what_seeds_share_cancels_if_they_are_paired(rng):
    shared = 0.3 * rng.normal(size=(4, 1)) + rng.normal(size=1000)
    first, second = (shared + rng.normal(size=(4, 1000)) + shift > 0 for shift in (0.9, 0.8))
    paired, apart = compare(first, second, rng, paired=True), compare(first, second, rng)
    assert paired.mean == apart.mean and paired.p_value == pytest.approx(apart.p_value, abs=GRANULARITY)
    assert paired.high - paired.low < 0.7 * (apart.high - apart.low)


def test_tables_of_other_images_cannot_be_compared(rng):
    with pytest.raises(ValueError, match="20"):
        compare(np.ones((2, 20), bool), np.ones((2, 21), bool), rng)
    with pytest.raises(ValueError, match="3"):
        compare(np.ones((2, 20), bool), np.ones((3, 20), bool), rng, paired=True)


def test_datasets_have_equal_weights_in_an_average(rng):
    small = (np.ones((1, 10), bool), np.zeros((1, 10), bool))
    large = (np.arange(1000)[None] < 500, np.arange(1000)[None] < 520)
    found = compare_averages([small, large], rng)
    assert found.mean == pytest.approx((100 - 2) / 2)
    exact = 2**-9  # the 10 images decide: all their signs must be equal
    assert found.p_value == pytest.approx(exact, abs=0.002)


def test_holm_by_hand():
    """Four p-values 0.01, 0.04, 0.03, 0.005: times 4, 3, 2, 1 in their order, then the largest so far."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1, 1] and holm([0.2]) == [0.2] and holm([]) == []


def test_equal_generators_give_equal_numbers(rng):
    first, second = world(rng, 2, 50, 0, 1), world(rng, 3, 50, 0, 1)
    assert compare(first, second, np.random.default_rng(7)) == compare(first, second, np.random.default_rng(7))
