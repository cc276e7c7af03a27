"""Label priors of sources equal those of arrays."""

import numpy as np
import pytest
import torch
from debias.exact_world import ExactWorld
from debias.mapped_source import mapped

from unskew.debias import _streamed_joint, _streamed_scan, estimate_log_prior


@pytest.fixture(autouse=True)
def _little_memory(monkeypatch):
    """Keep 400 rows for a start, so that the fits of these small sources are streamed."""
    monkeypatch.setattr(_streamed_scan, "KEPT_NUMBERS", 0)
    monkeypatch.setattr(_streamed_scan, "KEPT_ROWS", 400)


def world(name):
    """Logits [N, C] and labels [N]."""
    if name == "two classes":
        logits, labels = ExactWorld(2, 10, 0).sample([4000, 3000])
    elif name == "imbalanced":
        logits, labels = ExactWorld(12, 50, 1).sample(np.geomspace(3000, 3, 12).astype(int))
    elif name == "absent classes":
        logits, labels = ExactWorld(15, 20, 2).sample([0, 700, 0] * 5)
    elif name == "one image of a class":
        logits, labels = ExactWorld(6, 20, 3).sample([1, 2000, 1, 1500, 1000, 2500])
    elif name == "scale 100":
        logits, labels = ExactWorld(8, 30, 4).sample([700] * 8)
        logits = 100 * logits
    elif name == "large offset":
        logits, labels = ExactWorld(8, 30, 5).sample([700] * 8)
        logits = logits + 5000
    else:
        logits, labels = ExactWorld(10, 100, 6).sample([600] * 10)
    order = np.random.default_rng(0).permutation(len(labels))
    return logits[order], labels[order]


WORLDS = ["two classes", "imbalanced", "absent classes", "one image of a class", "scale 100", "large offset", "plain"]


def assert_equal(streamed, array, atol=2e-8):
    assert streamed.converged and array.converged
    np.testing.assert_allclose(streamed.log_q, array.log_q, atol=atol)
    assert streamed.temperature == pytest.approx(array.temperature, rel=1e-7)
    assert streamed.objective == pytest.approx(array.objective, rel=1e-5, abs=1e-7)
    assert streamed.no_bias == pytest.approx(array.no_bias, abs=1e-6)
    if array.deviation is not None:
        np.testing.assert_allclose(streamed.deviation, array.deviation, rtol=1e-4)
    if not np.isnan(array.log_evidence):
        assert streamed.log_evidence == pytest.approx(array.log_evidence, rel=1e-4)


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("method", ["map", "unlabelled", "convex", "em"])
def test_a_source_has_the_prior_of_the_array(tmp_path, name, method):
    logits, labels = world(name)
    labels = None if method == "unlabelled" else labels
    array = estimate_log_prior(logits, labels, method=method)
    streamed = estimate_log_prior(mapped(tmp_path, logits), labels, method=method)
    print(name, method, streamed.passes, array.passes, abs(streamed.log_q-array.log_q).max())
    assert isinstance(streamed.log_q, np.ndarray) and streamed.log_q.dtype == array.log_q.dtype
    assert_equal(streamed, array)
