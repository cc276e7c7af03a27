"""Passes over sources: the pool changes no bit, and memory does not depend on the number of images."""

import multiprocessing
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from debias.exact_world import ExactWorld
from debias.mapped_source import mapped

from unskew.debias import GLA, _streamed, _streamed_scan, estimate_log_prior, fit_temperature


@pytest.fixture(autouse=True)
def _several_parts(monkeypatch):
    monkeypatch.setattr(_streamed_scan, "KEPT_NUMBERS", 0)
    monkeypatch.setattr(_streamed_scan, "KEPT_ROWS", 400)
    monkeypatch.setattr(_streamed, "PART_ROWS", 900)


@pytest.fixture
def sample(tmp_path):
    logits, labels = ExactWorld(9, 30, 0).sample([700] * 9)
    order = np.random.default_rng(0).permutation(len(labels))
    return mapped(tmp_path, logits[order].astype(np.float32), block_rows=300), labels[order]


def fits(source, labels, pool=None):
    """The bits of all fits."""
    estimate = estimate_log_prior(source, labels, method="map", pool=pool)
    gla = GLA().fit(source, source, labels, pool=pool)
    return (
        estimate.log_q.tobytes(),
        estimate.deviation.tobytes(),
        estimate.objective,
        estimate.temperature,
        estimate_log_prior(source, labels, pool=pool).log_q.tobytes(),
        fit_temperature(source, labels, pool=pool),
        *(float(number) for number in (gla.rho_, gla.ft_weight_, gla.zs_weight_)),
        gla.offset_.numpy().tobytes(),
    )


def test_threads_give_the_same_bits(sample):
    with ThreadPoolExecutor(3) as pool:
        assert fits(*sample, pool) == fits(*sample)


def test_threads_of_pytorch_give_the_same_bits(sample):
    expected = fits(*sample)
    torch.set_num_threads(2)
    try:
        assert fits(*sample) == expected
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_processes_give_the_same_bits(sample):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert fits(*sample, pool) == fits(*sample)


@pytest.mark.ray
def test_ray_gives_the_same_bits(sample):
    ray = pytest.importorskip("ray")
    from ray.util.multiprocessing import Pool

    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    ray.init("local", num_cpus=2, include_dashboard=False, runtime_env={"env_vars": path})
    try:
        with Pool(2) as pool:
            assert fits(*sample, pool) == fits(*sample)
    finally:
        ray.shutdown()


def test_the_blocks_that_are_read_do_not_change_the_bits(sample, tmp_path):
    source, labels = sample
    other = mapped(tmp_path, np.load(source.path), name="other", block_rows=5000)
    assert fits(other, labels) == fits(source, labels)


@pytest.mark.parametrize("samples", [1, 899, 900, 2000, 10**7])
def test_parts_cover_all_rows_once(samples):
    parts = _streamed.parts(samples)
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
    assert parts[-1].stop == samples
    assert len(parts) <= _streamed.MOST_PARTS


def test_errors_reach_the_caller_from_every_pool(sample, tmp_path):
    source, labels = sample
    logits = np.load(source.path)
    logits[5000, 2] = np.nan
    wrong = mapped(tmp_path, logits, name="wrong", block_rows=300)
    with ThreadPoolExecutor(2) as pool:
        for each in (None, pool):
            with pytest.raises(ValueError, match="row 5000, column 2"):
                estimate_log_prior(wrong, labels, pool=each)
    assert torch.get_num_threads() == 1
