"""Folds that start at the fit on all samples: the same result as from any other start, in fewer passes."""

import pytest
import torch
from exact_world import ExactWorld

from unskew.debias import _joint
from unskew.debias.cross_fit import cross_fit, cross_scores
from unskew.debias.gla import GLA

WORLDS = {
    "ten classes": ([40] * 10, 50),
    "small val": ([2] * 20, 50),
    "long-tailed": ([400, 200, 100, 50, 25, 12, 6, 3, 2, 1], 100),
    "two classes": ([30, 30], 10),
    "missing classes": ([10, 0, 10, 0, 5, 1, 0, 10], 30),
    "one class in a fold": ([2, 1], 10),
}
NUMBERS = ("zs_temperature_", "log_q_", "ft_temperature_", "rho_", "ft_weight_", "zs_weight_", "offset_")


def sample(counts, imbalance, seed=3):
    """Zero-shot and fine-tuned logits, and labels; the fine-tuned logits contain 0.4 log q."""
    world = ExactWorld(len(counts), imbalance, seed)
    zs, labels = world.sample(counts)
    ft = zs - 0.6 * world.log_q + world.rng.normal(size=zs.shape)
    order = world.rng.permutation(len(labels))
    return tuple(torch.from_numpy(array[order]) for array in (zs, ft, labels))


def fitted(zs, ft, labels, **options):
    return GLA(**options).fit_zeroshot(zs, labels).fit_finetuned(zs, ft, labels)


def check_same(one, other, tolerance):
    for (rows, first), (_, second) in zip(one, other, strict=True):
        assert rows.any()
        for name in NUMBERS:
            values = getattr(first, name), getattr(second, name)
            torch.testing.assert_close(*values, rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("options", [{"logit_scale": "unknown"}, {"temperature": "nll", "combine": "fitted"}])
def test_no_start_reaches_the_result(world, options):
    """The labels of a fold cannot leak through the start: a start from wrong labels ends at the same numbers."""
    zs, ft, labels = sample(*WORLDS[world])
    plans = [
        cross_fit(GLA(**options), zs, ft, labels, start=fitted(zs, ft, near, **options))
        for near in (labels, labels.roll(1))
    ]
    check_same(*plans, tolerance=1e-6)
    check_same(plans[0], cross_fit(GLA(**options), zs, ft, labels), tolerance=5e-6)


@pytest.mark.parametrize("options", [{"prior": "convex", "strength": 0}, {"prior": "em"}, {"prior": "eigen"}])
def test_priors_without_a_unique_minimum_start_from_scratch(options):
    zs, ft, labels = sample([8] * 6, 10)
    start = fitted(zs, ft, labels, **options)
    near, scratch = (cross_fit(GLA(**options), zs, ft, labels, start=each) for each in (start, None))
    for (_, first), (_, second) in zip(near, scratch, strict=True):
        assert torch.equal(first.log_q_, second.log_q_)


def test_predictions_and_converged_folds_are_those_of_cold_starts():
    zs, ft, labels = sample([60] * 12, 100)
    start = fitted(zs, ft, labels)
    plans = [cross_fit(GLA(), zs, ft, labels, start=each) for each in (start, None)]
    near, scratch = (torch.cat([parts["gla"] for _, parts in cross_scores(plan, zs, ft)]) for plan in plans)
    torch.testing.assert_close(near, scratch, rtol=0, atol=1e-5)
    assert torch.equal(near.argmax(1), scratch.argmax(1))
    assert all(each.converged_ for plan in plans for _, each in plan)


def test_a_fold_takes_half_the_steps(monkeypatch):
    zs, ft, labels = sample([60] * 30, 300)
    steps = []
    minimise = _joint.minimise

    def counted(*arguments, **options):
        found = minimise(*arguments, **options)
        steps.append(found.steps)
        return found

    for module in ("joint", "combination"):
        monkeypatch.setattr(f"unskew.debias.{module}.minimise", counted)
    start = fitted(zs, ft, labels)
    counts = []
    for each in (start, None):
        steps.clear()
        cross_fit(GLA(), zs, ft, labels, start=each)
        counts.append(sum(steps))
    assert counts[0] <= 0.6 * counts[1]
