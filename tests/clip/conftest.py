"""The cache of features, as a new process finds it."""

import pytest

from unskew.utils import row_store


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNSKEW_CACHE", str(tmp_path / "cache"))
    row_store.open_folder.cache_clear()
    yield tmp_path / "cache" / "features"
    row_store.open_folder.cache_clear()
