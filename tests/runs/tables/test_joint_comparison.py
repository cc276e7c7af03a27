"""Intervals and p-values of harmonic means and averages over tests of one model are right in simulated worlds."""

import itertools

import numpy as np
import pytest
from scipy.special import ndtri

from unskew.runs.tables import comparison, joint_comparison
from unskew.runs.tables.comparison import average_interval, compare_averages, seed_interval


def world(generator, seeds, true=(80.0, 60.0), images=(500, 400), spread=2.5, shared=0.8):
    """Correctness [seeds, images] in two tests; the seeds' accuracies have a correlation of ``shared`` squared."""
    common, tables = generator.normal(size=seeds), []
    for mean, number in zip(true, images, strict=True):
        shift = spread * (shared * common + np.sqrt(1 - shared**2) * generator.normal(size=seeds))
        score = 2 * generator.normal(size=number) + generator.normal(size=(seeds, number))  # images are hard for all
        tables.append(score < np.sqrt(5) * ndtri((mean + shift) / 100)[:, None])
    return tables


def true_number(combine, true=(80.0, 60.0)):
    return float(combine(np.array(true)[:, None])[0])


@pytest.mark.parametrize("combine", [joint_comparison.harmonic, joint_comparison.mean])
@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_cover_the_truth_as_often_as_they_promise(combine, seeds, monkeypatch):
    monkeypatch.setattr(comparison, "RESAMPLES", 499)
    generator = np.random.default_rng(seeds)
    covered = []
    for _ in range(150):
        low, high = joint_comparison.interval([world(generator, seeds)], combine, generator)
        covered.append(low <= true_number(combine) <= high)
    assert 0.92 <= np.mean(covered) <= 1


def test_an_interval_over_the_seeds_alone_misses_the_variation_of_the_images(monkeypatch):
    """The reason for resampling: Student's t over the seeds' H covers too seldom when the seeds are alike."""
    monkeypatch.setattr(comparison, "RESAMPLES", 499)
    generator = np.random.default_rng(1)
    alone, joint = [], []
    for _ in range(100):
        tables = world(generator, 3, spread=0.2)
        accuracies = np.array([100 * table.mean(1) for table in tables])
        truth = true_number(joint_comparison.harmonic)
        low, high = seed_interval(joint_comparison.harmonic(accuracies).tolist(), 100)
        alone.append(low <= truth <= high)
        low, high = joint_comparison.interval([tables], joint_comparison.harmonic, generator)
        joint.append(low <= truth <= high)
    assert np.mean(alone) < 0.9 < np.mean(joint)


def test_the_tests_of_a_model_vary_together_over_the_seeds():
    seeds = np.arange(1000) < np.array([[490], [500], [510]])
    width = {}
    for name, tests in (("alike", [seeds, seeds]), ("opposite", [seeds, ~seeds])):
        low, high = joint_comparison.interval([tests], joint_comparison.mean, np.random.default_rng(0))
        width[name] = high - low
    low, high = average_interval([seeds, seeds], np.random.default_rng(0))
    assert width["opposite"] < 0.8 * (high - low) < 0.8 * width["alike"]


def test_one_test_gives_the_interval_of_the_ordinary_table():
    tables = world(np.random.default_rng(3), 3)[:1]
    found = joint_comparison.interval([tables], joint_comparison.mean, np.random.default_rng(1))
    np.testing.assert_allclose(found, average_interval(tables, np.random.default_rng(2)), atol=0.6)


def test_differences_of_averages_are_those_of_the_ordinary_comparison():
    generator = np.random.default_rng(4)
    first, second = world(generator, 1), world(generator, 1, true=(78.0, 57.0))
    pairs = list(zip(first, second, strict=True))
    found = joint_comparison.compare([pairs], joint_comparison.mean, np.random.default_rng(1), paired=True)
    expected = compare_averages(pairs, np.random.default_rng(2), paired=True)  # one seed: the tests are independent
    assert found.mean == pytest.approx(expected.mean)
    assert found[1:3] == pytest.approx(expected[1:3], abs=0.3)
    assert found.p_value == pytest.approx(expected.p_value, abs=0.02)


def test_the_p_value_of_h_is_that_of_all_exchanges():
    """Seven images: all 128 exchanges of the two trainers' results, counted one by one."""
    first = [np.array([[1, 1, 1, 0]], bool), np.array([[1, 1, 1]], bool)]
    second = [np.array([[0, 1, 0, 1]], bool), np.array([[0, 0, 1]], bool)]

    def gap(ours, theirs):
        means = [np.array([[100 * table.mean()] for table in tables]) for tables in (ours, theirs)]
        return float(np.subtract(*[joint_comparison.harmonic(mean)[0] for mean in means]))

    observed, extreme = gap(first, second), []
    for flips in itertools.product([False, True], repeat=7):
        masks = np.array(flips[:4]), np.array(flips[4:])
        ours = [np.where(m, b, a) for m, a, b in zip(masks, first, second, strict=True)]
        theirs = [np.where(m, a, b) for m, a, b in zip(masks, first, second, strict=True)]
        extreme.append(abs(gap(ours, theirs)) >= abs(observed) - 1e-9)
    pairs = list(zip(first, second, strict=True))
    found = joint_comparison.compare([pairs], joint_comparison.harmonic, np.random.default_rng(0))
    assert found.mean == pytest.approx(observed)
    assert found.p_value == pytest.approx(np.mean(extreme), abs=0.015)


def test_equal_trainers_are_seldom_significant_and_their_interval_covers_zero(monkeypatch):
    monkeypatch.setattr(comparison, "RESAMPLES", 499)
    generator = np.random.default_rng(5)
    p_values, covered = [], []
    for _ in range(120):
        first, second = world(generator, 3, spread=1), world(generator, 3, spread=1)
        pairs = list(zip(first, second, strict=True))
        found = joint_comparison.compare([pairs], joint_comparison.harmonic, generator, paired=True)
        covered.append(found.low <= 0 <= found.high)
        p_values.append(found.p_value)
    assert np.mean(covered) > 0.9
    assert 0 < min(p_values)


def test_tables_of_other_images_are_an_error():
    pairs = [(np.ones((1, 3), bool), np.ones((1, 4), bool))]
    with pytest.raises(ValueError, match="images"):
        joint_comparison.compare([pairs], joint_comparison.mean, np.random.default_rng(0))
