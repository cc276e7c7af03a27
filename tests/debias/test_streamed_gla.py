"""Temperatures and GLA of sources equal those of arrays."""

import numpy as np
import pytest
import torch
from debias.exact_world import ExactWorld
from debias.mapped_source import mapped

from unskew.debias import GLA, _streamed_scan, fit_temperature
from unskew.debias.temperature import METHODS


@pytest.fixture(autouse=True)
def _little_memory(monkeypatch):
    monkeypatch.setattr(_streamed_scan, "KEPT_NUMBERS", 0)
    monkeypatch.setattr(_streamed_scan, "KEPT_ROWS", 400)


def halves(seed=0, counts=(900, 400, 600, 200, 700, 800, 500), imbalance=30):
    """Both halves [N, C] and labels [N]; fine-tuning has removed a part of the bias."""
    world = ExactWorld(len(counts), imbalance, seed)
    zs, y = world.sample(counts)
    ft = 2.0 * (zs - 0.6 * world.log_q + world.rng.normal(size=zs.shape))
    order = world.rng.permutation(len(y))
    return zs[order], ft[order], y[order]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_temperatures(tmp_path, method, scale):
    zs, _, y = halves()
    array = fit_temperature(scale * zs, y, method=method)
    assert fit_temperature(mapped(tmp_path, scale * zs), y, method=method) == pytest.approx(array, rel=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_temperatures_of_perfect_and_hopeless_logits(tmp_path, method):
    _, _, y = halves()
    for number, hits in enumerate((y, (y + 1) % 7)):
        logits = np.eye(7)[hits] + 1e-3 * np.arange(7)
        array = fit_temperature(logits, y, method=method)
        source = mapped(tmp_path, logits, name=str(number))
        # Without a root T is the end of a range, which depends on the spread of a thousand logits.
        assert fit_temperature(source, y, method=method) == pytest.approx(array, rel=1e-3 if number else 1e-9)


def test_the_temperature_of_one_class_is_1(tmp_path):
    assert fit_temperature(mapped(tmp_path, np.zeros((3000, 1))), np.zeros(3000, int)) == 1


NUMBERS = ["zs_temperature_", "ft_temperature_", "log_q_", "log_p_", "rho_", "ft_weight_", "zs_weight_", "offset_"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"combine": "fitted"},
        {"combine": "sum", "temperature": "confidence"},
        {"prior": "convex", "temperature": "nll"},
        {"prior": "em", "strength": 5.0, "temperature": "none"},
        {"prior": "unlabelled"},
        {"logit_scale": "unknown"},
        {"prior": np.log([0.4, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])},
    ],
    ids=str,
)
@pytest.mark.parametrize("absent", [False, True])
def test_gla(tmp_path, options, absent):
    zs, ft, y = halves(counts=(900, 0, 600, 200, 700, 800, 500)) if absent else halves()
    counts = [10, 20, 5, 1, 3, 8, 0]
    array = GLA(**options).fit(zs, ft, y, train_counts=counts)
    sources = mapped(tmp_path, zs, "zs"), mapped(tmp_path, ft, "ft")
    streamed = GLA(**options).fit(*sources, y, train_counts=counts)
    for name in NUMBERS:
        np.testing.assert_allclose(getattr(streamed, name), getattr(array, name), rtol=1e-6, atol=2e-7, err_msg=name)
    for method in ("decision_function", "predict_proba", "predict"):
        result = getattr(streamed, method)(*sources)
        assert isinstance(result, np.ndarray)
        np.testing.assert_allclose(result, getattr(array, method)(zs, ft), rtol=1e-5, atol=1e-5)
    target = np.log([0.3, 0.3, 0.1, 0.1, 0.1, 0.05, 0.05])
    alone = streamed.decision_function(sources[0], log_target=target)
    np.testing.assert_allclose(alone, array.decision_function(zs, log_target=target), rtol=1e-5, atol=1e-5)


def test_gla_without_labels_and_without_the_finetuned_half(tmp_path):
    zs, ft, y = halves()
    sources = mapped(tmp_path, zs, "zs"), mapped(tmp_path, ft, "ft")
    np.testing.assert_allclose(GLA().fit(*sources).log_q_, GLA().fit(zs, ft).log_q_, atol=2e-7)
    np.testing.assert_allclose(GLA().fit(sources[0], None, y).log_q_, GLA().fit(zs, None, y).log_q_, atol=2e-7)


def test_gla_on_probabilities(tmp_path, warned):
    zs, ft, y = halves()
    probabilities = [torch.from_numpy(half).softmax(1).numpy() for half in (zs, ft)]
    array = GLA().fit(*probabilities, y)
    (expected,) = warned()
    sources = [mapped(tmp_path, half, str(number)) for number, half in enumerate(probabilities)]
    streamed = GLA().fit(*sources, y)
    assert warned() == [expected] * 2
    np.testing.assert_allclose(streamed.log_q_, array.log_q_, atol=2e-7)
    np.testing.assert_array_equal(streamed.predict(*sources), array.predict(*probabilities))


def test_a_weight_at_its_bound(tmp_path):
    """The zero-shot half contradicts the labels, so that its weight is 0."""
    _, ft, y = halves()
    zs = -ft + 0.1 * np.random.default_rng(0).normal(size=ft.shape)
    array = GLA(prior=np.zeros(7) - np.log(7), temperature="none").fit(zs, ft / 4, y)
    assert array.zs_weight_ == 0
    streamed = GLA(prior=np.zeros(7) - np.log(7), temperature="none").fit(
        mapped(tmp_path, zs, "zs"), mapped(tmp_path, ft / 4, "ft"), y
    )
    for name in NUMBERS:
        np.testing.assert_allclose(getattr(streamed, name), getattr(array, name), atol=2e-7, err_msg=name)


def test_mistakes(tmp_path):
    zs, ft, y = halves()
    source, other = mapped(tmp_path, zs, "zs"), mapped(tmp_path, ft[:-1], "ft")
    with pytest.raises(ValueError, match="both"):
        GLA().fit(source, ft, y)
    with pytest.raises(ValueError, match=r"4100.*4099"):
        GLA().fit(source, other, y)
    with pytest.raises(ValueError, match="4100 integers"):
        GLA().fit(source, source, y[:-1])
    with pytest.raises(ValueError, match="in memory"):
        GLA(prior="eigen").fit(source, source, y)
    gla = GLA().fit(source, source, y)
    with pytest.raises(ValueError, match=r"4100.*4099"):
        gla.predict(source, other)
    with pytest.raises(ValueError, match="fitted on 7"):
        gla.predict(mapped(tmp_path, zs[:, :5], "few"))
    zs[3210, 1] = np.nan
    with pytest.raises(ValueError, match="row 3210, column 1"):
        gla.predict(mapped(tmp_path, zs, "nan"))


def test_otter_needs_arrays_to_predict(tmp_path):
    pytest.importorskip("ot")
    zs, ft, y = halves()
    sources = mapped(tmp_path, zs, "zs"), mapped(tmp_path, ft, "ft")
    gla = GLA(combine="otter").fit(*sources, y)
    with pytest.raises(ValueError, match="otter"):
        gla.predict(*sources)
