"""Tests of the offset of optimal transport against assignment and linear programming."""

import sys

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment, linprog

from unskew.debias import transport, transport_offset


def draw(seed, samples, classes, scale=3.0):
    rng = np.random.default_rng(seed)
    return scale * rng.normal(size=(samples, classes)) + rng.normal(size=classes)


def assigned(logits, log_target=None):
    return (logits - transport_offset(logits, log_target)).argmax(1)


@pytest.mark.parametrize("seed", range(20))
def test_whole_shares_give_the_optimal_assignment(seed):
    """Replicate the column of a class once per image of its share."""
    rng = np.random.default_rng(seed)
    shares = rng.integers(1, 6, size=rng.integers(2, 8)) if seed % 2 else np.full(5, 4)
    logits = draw(seed, shares.sum(), len(shares))
    owner = np.repeat(np.arange(len(shares)), shares)
    expected = owner[linear_sum_assignment(-logits[:, owner])[1]]
    np.testing.assert_array_equal(assigned(logits, np.log(shares / shares.sum())), expected)
    single = logits.astype(np.float32)
    assert transport_offset(single).dtype == np.float32
    np.testing.assert_array_equal(assigned(single, np.log(shares / shares.sum()).astype(np.float32)), expected)


def solve(logits, shares):
    """Return the plan [N, C] by linear programming."""
    samples, classes = logits.shape
    rows = np.kron(np.eye(samples), np.ones(classes))
    columns = np.kron(np.ones(samples), np.eye(classes))
    solution = linprog(
        -logits.ravel(), A_eq=np.vstack([rows, columns])[:-1], b_eq=np.concatenate([np.ones(samples), shares])[:-1]
    )
    return solution.x.reshape(samples, classes)


@pytest.mark.parametrize(("samples", "classes"), [(7, 3), (10, 4), (23, 5), (60, 7)])
def test_the_plan_is_that_of_the_linear_program(samples, classes):
    for seed in range(5):
        logits = draw(seed, samples, classes)
        shares = 1 + (samples - classes) * np.random.default_rng(seed).dirichlet(np.ones(classes))
        plan = solve(logits, shares)
        predicted = assigned(logits, np.log(shares / samples))
        # A split image goes to the class with its largest logit.
        expected = np.where(plan > 1e-7, logits, -np.inf).argmax(1)
        np.testing.assert_array_equal(predicted, expected)
        assert (plan.max(1) < 1 - 1e-7).sum() < classes


def test_fewer_images_than_classes_are_assigned_to_different_classes():
    for seed in range(10):
        logits = draw(seed, 5, 20)
        np.testing.assert_array_equal(assigned(logits), linear_sum_assignment(-logits)[1])


def test_classes_of_less_than_an_image_have_one_at_most():
    shares = np.array([12.0, 6.0, *[0.25] * 8])
    counts = np.bincount(assigned(draw(0, 20, 10), np.log(shares / 20)), minlength=10)
    assert counts[:2].tolist() == [12, 6] and sorted(counts[2:]) == [*[0] * 6, 1, 1]


def test_prices_are_the_centre_of_their_bounds():
    """The difference of the two offsets may be anything from -3 to 1."""
    offset = transport_offset(np.array([[3.0, 0.0], [0.0, 1.0]]))
    np.testing.assert_allclose(offset, [0.5, -0.5])


def test_offsets_of_classes_and_of_images_cancel():
    rng, logits = np.random.default_rng(1), draw(0, 42, 6)
    moved = logits + 5 * rng.normal(size=6) + 100 * rng.normal(size=(42, 1))
    np.testing.assert_array_equal(assigned(moved), assigned(logits))
    np.testing.assert_array_equal(assigned(0.01 * logits), assigned(logits))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_every_class_has_its_share_at_any_scale(scale):
    counts = np.bincount(assigned(draw(3, 600, 12, scale)), minlength=12)
    assert counts.tolist() == [50] * 12


def test_one_image_keeps_its_prediction():
    for seed in range(10):
        one = draw(seed, 1, 10)
        assert assigned(one) == assigned(one, np.log(np.arange(1, 11) / 55)) == one.argmax(1)


def test_one_class_and_equal_images():
    assert transport_offset(np.zeros((5, 1))).tolist() == [0]
    assert np.isfinite(transport_offset(np.zeros((6, 3)))).all()
    logits = np.repeat(draw(0, 4, 4), 5, axis=0)  # each image five times
    expected = np.repeat(linear_sum_assignment(-logits[::5])[1], 5)
    np.testing.assert_array_equal(assigned(logits), expected)


def test_a_class_with_target_zero_is_never_predicted():
    logits = draw(0, 30, 4)
    with np.errstate(divide="ignore"):
        log_target = np.log([0.5, 0.0, 0.5, 0.0])
        only = np.log([0.0, 1.0, 0.0, 0.0])
    offset = transport_offset(logits, log_target)
    assert np.isposinf(offset).tolist() == [False, True, False, True]
    assert np.bincount((logits - offset).argmax(1), minlength=4).tolist() == [15, 0, 15, 0]
    assert set(assigned(logits, only)) == {1}


def test_limits_are_errors(monkeypatch):
    logits = torch.as_tensor(draw(0, 30, 4))
    with monkeypatch.context() as patch:
        patch.setattr(transport, "MOST_CELLS", 100)
        with pytest.raises(ValueError, match="100"):
            transport_offset(logits)
    with monkeypatch.context() as patch:
        patch.setattr(transport, "MOST_PIVOTS", 1)
        with pytest.raises(ValueError, match="30 images"):
            transport_offset(logits)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ot", None)
        with pytest.raises(ValueError, match=r"unskew\[transport\]"):
            transport_offset(logits)
    with pytest.raises(ValueError, match="NaN"):
        transport_offset(torch.full((2, 2), torch.nan))
    with pytest.raises(ValueError, match="log_target"):
        transport_offset(logits, torch.zeros(3))


def test_classes_with_equal_logits_give_a_warning(caplog):
    logits = np.random.default_rng(0).normal(size=(60, 3))
    transport_offset(logits)
    assert not caplog.records
    logits[:, 1] = logits[:, 0]
    transport_offset(logits)
    assert "ties" in caplog.text
