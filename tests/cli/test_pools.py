"""Pools that passes over large files are spread on."""

import math
import os
import sys

import pytest

from unskew.cli.pools import open_pool


def place(number):
    return number, os.getpid()


def test_one_job_needs_no_pool():
    for jobs in (None, 1):
        with open_pool("local", jobs) as pool:
            assert pool is None


def test_local_processes_keep_the_order():
    with open_pool("local", 2) as pool:
        found = pool.map(place, range(20), 1)
    assert [number for number, _ in found] == list(range(20))
    assert os.getpid() not in {process for _, process in found}


def test_ray_that_is_not_installed_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'unskew\[ray\]'"), open_pool("ray", 2):
        pass


@pytest.mark.ray
def test_ray_keeps_the_order_and_ends(monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with open_pool("ray", 1) as pool:
        assert pool.map(math.sqrt, range(20)) == list(map(math.sqrt, range(20)))
    assert not ray.is_initialized()
    with pytest.raises(ValueError, match=r"^math domain error|^expected a nonnegative"), open_pool("ray", 1) as pool:
        pool.map(math.sqrt, [-1])
    with pytest.raises(ValueError, match="--jobs 99999"), open_pool("ray", 99999):
        pass
    assert not ray.is_initialized()
