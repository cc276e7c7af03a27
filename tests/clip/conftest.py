"""The cache of features, as a new process finds it."""

import pytest

from unskew.clip import features


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNSKEW_CACHE", str(tmp_path / "cache"))
    features._open.cache_clear()
    yield tmp_path / "cache" / "features"
    features._open.cache_clear()
