import logging
import os

import pytest
import torch

torch.set_num_threads(1)

# Ray keeps a token for the life of a process, so that clusters with and without one cannot follow each other in it.
os.environ["RAY_AUTH_MODE"] = "disabled"


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
    """One folder of datasets for all worker processes; they are rendered once, into place by a rename."""
    base = tmp_path_factory.getbasetemp()
    return str((base.parent if base.name.startswith("popen") else base) / "data")


@pytest.fixture
def warned(caplog, monkeypatch):
    """A function that gives the warnings so far."""
    monkeypatch.setattr(logging.getLogger("unskew"), "propagate", True)
    return lambda: [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.fixture(scope="session", autouse=True)
def _cache_of_these_tests(tmp_path_factory):
    """Caches of these tests alone, shared by their worker processes."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if base.name.startswith("popen") else base) / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNSKEW_CACHE", str(folder))
        yield
