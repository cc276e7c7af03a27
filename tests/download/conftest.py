"""A web server that can fail, and retries without long waits, for the tests of downloads."""

import pytest
from serving import Server

from unskew.download import _http


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(_http, "BACKOFF", 0.01)
