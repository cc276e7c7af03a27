"""Tests of servers that send without end or too slowly: a download stops with one line."""

import time

import pytest

from unskew.download import _limits
from unskew.download.fetch import fetch
from unskew.download.sources import Source

CONTENT = bytes(range(256)) * 400


def failure(source, path):
    started = time.monotonic()
    with pytest.raises(ConnectionError) as error:
        fetch(source, path)
    assert "\n" not in str(error.value) and time.monotonic() - started < 15
    return str(error.value)


def test_a_server_that_never_ends_reaches_the_limit_of_bytes(server, tmp_path, monkeypatch):
    monkeypatch.setattr(_limits, "SIZE", 10**6)
    source = Source("a.bin", server.put("/a.bin", CONTENT, endless=True))
    assert "more than 1000000 bytes" in failure(source, tmp_path / "a.bin")
    assert list(tmp_path.iterdir()) == []  # what came is of no use


def test_a_known_size_is_the_limit_where_the_server_gives_none(server, tmp_path):
    source = Source("a.bin", server.put("/a.bin", CONTENT, endless=True), size=300_000)
    assert "more than 300000 bytes" in failure(source, tmp_path / "a.bin")
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 301_000


def test_a_server_that_sends_byte_by_byte_is_given_up_and_the_next_one_asked(server, tmp_path, monkeypatch):
    monkeypatch.setattr(_limits, "STALL", 0.3)
    slow = server.put("/slow.bin", CONTENT, trickle=0.02)
    assert "fewer than 262144 bytes in 0 s" in failure(Source("a.bin", slow), tmp_path / "a.bin")
    assert (tmp_path / "a.bin.part").stat().st_size > 5  # it can be resumed
    fetch(Source("a.bin", (slow, server.put("/a.bin", CONTENT))), tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_download_that_takes_too_long_ends_and_is_resumed_by_the_next_call(server, tmp_path, monkeypatch):
    url = server.put("/a.bin", CONTENT, trickle=0.01)
    with monkeypatch.context() as patch:
        patch.setattr(_limits, "LONGEST", 0.5)
        assert "not complete after" in failure(Source("a.bin", url), tmp_path / "a.bin")
    kept = (tmp_path / "a.bin.part").stat().st_size
    assert 5 < kept < 1000
    server.forget()
    fetch(Source("a.bin", server.put("/a.bin", CONTENT)), tmp_path / "a.bin")
    assert server.log == [("/a.bin", f"bytes={kept}-", 206, len(CONTENT) - kept)]


def test_large_files_have_more_time(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(_limits.time, "monotonic", lambda: clock[0])
    watch = _limits.Watch()
    clock[0] = 7 * 3600.0
    watch.check(10**9, 40 * 2**30)  # 40 GiB at 256 KiB/s take 45 hours
    with pytest.raises(_limits.LimitError, match=r"6\.0 hours"):
        watch.check(2 * 10**9, 0)
