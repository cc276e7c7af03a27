"""Label priors of sources equal those of arrays."""

import numpy as np
import pytest
import torch
from debias.exact_world import ExactWorld
from debias.mapped_source import mapped

from unskew.debias import _posterior, _streamed_joint, _streamed_scan, estimate_log_prior


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
    assert isinstance(streamed.log_q, np.ndarray) and streamed.log_q.dtype == array.log_q.dtype
    assert_equal(streamed, array)
    assert streamed.passes <= 6  # plus the scan


@pytest.mark.parametrize("method", ["map", "unlabelled", "convex"])
def test_without_the_whole_hessian(tmp_path, monkeypatch, method):
    monkeypatch.setattr(_streamed_joint, "MOST_WHOLE", 5)
    monkeypatch.setattr(_posterior, "MOST_CLASSES", 5)  # in the array's fit too
    logits, labels = world("imbalanced")
    labels = None if method == "unlabelled" else labels
    array = estimate_log_prior(logits, labels, method=method)
    streamed = estimate_log_prior(mapped(tmp_path, logits), labels, method=method)
    assert_equal(streamed, array, atol=1e-5)
    assert streamed.passes <= 40


@pytest.mark.parametrize("scale", [1.0, 0.05])
def test_of_unknown_scale(tmp_path, scale):
    logits, labels = world("plain")
    array = estimate_log_prior(scale * logits, labels, method="map", logit_scale="unknown")
    streamed = estimate_log_prior(mapped(tmp_path, scale * logits), labels, method="map", logit_scale="unknown")
    assert_equal(streamed, array)


@pytest.mark.parametrize("method", ["em", "unlabelled"])
def test_of_one_class(tmp_path, method):
    logits = np.random.default_rng(0).normal(size=(3000, 1))
    np.testing.assert_array_equal(estimate_log_prior(mapped(tmp_path, logits), method=method).log_q, [0.0])


def test_em_without_labels(tmp_path):
    logits, _ = world("plain")
    assert_equal(estimate_log_prior(mapped(tmp_path, logits), method="em"), estimate_log_prior(logits, method="em"))


@pytest.mark.parametrize("strength", [0, 30.0])
def test_of_a_strength(tmp_path, strength):
    logits, labels = world("plain")
    array = estimate_log_prior(logits, labels, strength=strength)
    assert_equal(estimate_log_prior(mapped(tmp_path, logits), labels, strength=strength), array)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_of_lower_precision(tmp_path, dtype):
    logits, labels = world("plain")
    logits = logits.astype(dtype)
    array = estimate_log_prior(logits, labels, method="map")
    streamed = estimate_log_prior(mapped(tmp_path, logits), labels, method="map")
    assert streamed.log_q.dtype == np.float32
    np.testing.assert_allclose(streamed.log_q, array.log_q, atol=1e-6)


def test_no_class_bias_is_found(tmp_path):
    logits, labels = ExactWorld(10, 1, 0).sample([300] * 10)
    array = estimate_log_prior(logits, labels, method="map")
    assert array.no_bias > 0.5
    assert_equal(estimate_log_prior(mapped(tmp_path, logits), labels, method="map"), array)


def test_probabilities_are_recognised(tmp_path, warned):
    logits, labels = world("plain")
    probabilities = torch.from_numpy(logits).softmax(1).numpy()
    probabilities[3, 0] = 0.0
    array = estimate_log_prior(probabilities, labels, method="map")
    (expected,) = set(warned())
    streamed = estimate_log_prior(mapped(tmp_path, probabilities), labels, method="map")
    assert warned() == [expected] * 2
    assert_equal(streamed, array)


def test_cosines_are_recognised(tmp_path, warned):
    logits, labels = world("plain")
    cosines = 0.9 * logits / np.abs(logits).max()
    array = estimate_log_prior(cosines, labels, method="map")
    expected = warned()
    assert any("cosines" in text for text in expected)
    assert_equal(estimate_log_prior(mapped(tmp_path, cosines), labels, method="map"), array)
    assert warned() == expected * 2


def test_a_first_row_like_probabilities_decides_nothing(tmp_path, warned):
    logits, labels = world("plain")
    logits[0] = 1 / logits.shape[1]
    array = estimate_log_prior(logits, labels, method="map")
    assert_equal(estimate_log_prior(mapped(tmp_path, logits), labels, method="map"), array)
    assert not warned()


def test_a_small_source_is_loaded(tmp_path, monkeypatch):
    monkeypatch.undo()
    logits, labels = world("plain")
    streamed = estimate_log_prior(mapped(tmp_path, logits), labels, method="eigen")
    np.testing.assert_array_equal(streamed.log_q, estimate_log_prior(logits, labels, method="eigen").log_q)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite(tmp_path, value):
    logits, labels = world("plain")
    logits[4321, 7] = value
    with pytest.raises(ValueError, match=r"rows 4096\.\.5999 .* row 4321, column 7"):
        estimate_log_prior(mapped(tmp_path, logits), labels)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda labels: labels[:-1], "6000 integers"),
        (lambda labels: labels.astype(float), "integers"),
        (lambda labels: labels - 1, r"-1\.\."),
        (lambda labels: labels + 1, r"\.\.10"),
    ],
)
def test_wrong_labels(tmp_path, change, match):
    logits, labels = world("plain")
    with pytest.raises(ValueError, match=match):
        estimate_log_prior(mapped(tmp_path, logits), change(labels))


def test_logits_beyond_the_limit(tmp_path):
    logits, labels = world("plain")
    with pytest.raises(ValueError, match="1e\\+08"):
        estimate_log_prior(mapped(tmp_path, 1e9 * logits), labels)


@pytest.mark.parametrize("options", [{"method": "eigen"}, {"method": "released"}, {"strength": "cv"}])
def test_what_needs_all_logits(tmp_path, options):
    logits, labels = world("plain")
    with pytest.raises(ValueError, match="in memory"):
        estimate_log_prior(mapped(tmp_path, logits), labels, **options)


def test_strength_0_needs_every_class(tmp_path):
    logits, labels = world("absent classes")
    with pytest.raises(ValueError, match="10 of 15 classes"):
        estimate_log_prior(mapped(tmp_path, logits), labels, strength=0)


def test_a_mapped_file_of_labels(tmp_path):
    logits, labels = world("plain")
    np.save(tmp_path / "labels.npy", labels.astype(np.int32))
    read = np.load(tmp_path / "labels.npy", mmap_mode="r")
    source = mapped(tmp_path, logits)
    np.testing.assert_array_equal(estimate_log_prior(source, read).log_q, estimate_log_prior(source, labels).log_q)


def test_labels_as_a_tensor_give_tensors(tmp_path):
    logits, labels = world("plain")
    estimate = estimate_log_prior(mapped(tmp_path, logits), torch.from_numpy(labels), method="map")
    assert isinstance(estimate.log_q, torch.Tensor) and isinstance(estimate.deviation, torch.Tensor)
