"""Tests of downloads: complete or not at all, resumed after a break, next mirror after a failure."""

import errno
import fcntl
import hashlib
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time

import pytest
import requests

from unskew.download import _http
from unskew.download.fetch import fetch
from unskew.download.sources import Source

CONTENT = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(300_000)
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"


@pytest.fixture
def interrupted(server, tmp_path):
    """A function that makes a call fail after 100,000 bytes; it returns the URL and the path."""

    def interrupt(**options):
        url = server.put("/a.bin", CONTENT, drops=[100_000], **options)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_http, "ATTEMPTS", 1)
            with pytest.raises(ConnectionError):
                fetch(Source("a.bin", url), tmp_path / "a.bin")
        assert (tmp_path / "a.bin.part").read_bytes() == CONTENT[:100_000]
        server.forget()
        return url, tmp_path / "a.bin"

    return interrupt


def is_whole(path, content=CONTENT):
    """Return whether the file has the content and is alone in its folder."""
    return path.read_bytes() == content and [p.name for p in path.parent.iterdir()] == [path.name]


def dead_url():
    return "http://127.0.0.1:9/a.bin"  # the discard port: no server listens


def test_a_source_accepts_short_forms():
    source = Source("a.tgz", "https://x/a.tgz", makes={"in/images": "images"}, checksum=MD5)
    assert source.urls == ("https://x/a.tgz",)
    assert source.makes == (("in/images", "images"),)
    assert hash(source) == hash(Source("a.tgz", ("https://x/a.tgz",), (("in/images", "images"),), MD5))
    with pytest.raises(ValueError, match=r"a\.tgz .*md5.*sha256.*'abc'"):
        Source("a.tgz", checksum="abc")


@pytest.mark.parametrize("checksum", ["", MD5, f"sha256:{hashlib.sha256(CONTENT).hexdigest().upper()}"])
def test_a_whole_file(server, tmp_path, checksum):
    source = Source("a.bin", server.put("/a.bin", CONTENT), checksum=checksum, size=len(CONTENT))
    fetch(source, tmp_path / "new" / "a.bin")
    assert is_whole(tmp_path / "new" / "a.bin")
    fetch(source, tmp_path / "new" / "a.bin")
    assert len(server.log) == 1


def test_no_progress_bar_without_a_terminal(server, tmp_path, capfd):
    fetch(Source("a.bin", server.put("/a.bin", CONTENT), checksum=MD5), tmp_path / "a.bin")
    assert capfd.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_that_begins_at_the_resumed_size(interrupted):
    url, path = interrupted()
    code = "import sys; from unskew.download.fetch import *; fetch(Source('a.bin', sys.argv[1]), sys.argv[2])"
    terminal, end = os.openpty()
    os.set_blocking(terminal, False)
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    subprocess.run([sys.executable, "-c", code, url, str(path)], stderr=end, check=True, timeout=60)
    shown = os.read(terminal, 10_000).decode()
    os.close(terminal)
    os.close(end)
    assert "a.bin:  33%|" in shown and "100k/300k" in shown and "B/s" in shown


# --- resuming ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{"ETag": '"1"'}, {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}])
def test_the_next_call_downloads_only_the_rest(server, interrupted, headers):
    url, path = interrupted(headers=headers)
    fetch(Source("a.bin", url), path)
    assert is_whole(path)
    assert server.log == [("/a.bin", "bytes=100000-", 206, 200_000)]


@pytest.mark.parametrize("headers", [{}, {"ETag": 'W/"1"'}])
def test_without_a_validator_only_a_checksum_allows_to_go_on(server, interrupted, headers):
    url, path = interrupted(headers=headers)
    fetch(Source("a.bin", url), path)
    assert is_whole(path)
    assert server.sent() == [300_000]
    path.unlink()
    url, path = interrupted(headers=headers)
    fetch(Source("a.bin", url, checksum=MD5), path)
    assert is_whole(path)
    assert server.sent() == [200_000]


def test_a_dropped_connection_is_resumed_in_the_same_call(server, tmp_path):
    url = server.put("/a.bin", CONTENT, drops=[100_000, 0, 50_000])
    fetch(Source("a.bin", url), tmp_path / "a.bin")
    assert is_whole(tmp_path / "a.bin")
    assert server.sent() == [100_000, 0, 50_000, 150_000]


def test_progress_earns_further_attempts(server, tmp_path, monkeypatch):
    monkeypatch.setattr(_http, "PROGRESS", 10_000)
    url = server.put("/a.bin", CONTENT, drops=[20_000] * 12)
    fetch(Source("a.bin", url), tmp_path / "a.bin")
    assert is_whole(tmp_path / "a.bin")


def test_a_busy_server_is_asked_again(server, tmp_path):
    url = server.put("/a.bin", CONTENT, status=503)
    timer = threading.Timer(0.05, lambda: setattr(server.files["/a.bin"], "status", 200))
    timer.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_http, "BACKOFF", 0.1)
        fetch(Source("a.bin", url), tmp_path / "a.bin")
    assert is_whole(tmp_path / "a.bin")


def test_a_server_without_ranges_starts_again(server, interrupted):
    url, path = interrupted(ranges=False)
    fetch(Source("a.bin", url), path)
    assert is_whole(path)
    assert server.sent() == [300_000]


@pytest.mark.parametrize("heeds_if_range", [True, False])
@pytest.mark.parametrize("content", [OTHER, OTHER[:50_000], OTHER[:100_000], OTHER + OTHER])
def test_a_file_that_has_changed_starts_again(server, interrupted, heeds_if_range, content):
    url, path = interrupted()
    server.put("/a.bin", content, headers={"ETag": '"2"'}, heeds_if_range=heeds_if_range)
    fetch(Source("a.bin", url), path)
    assert is_whole(path, content)
    assert [status for _, _, status, _ in server.log][-1] == 200
    assert len(server.log) == (1 if heeds_if_range else 2)


def test_a_range_that_comes_in_pieces(server, interrupted):
    url, path = interrupted()
    server.put("/a.bin", CONTENT, piece=80_000)
    fetch(Source("a.bin", url), path)
    assert is_whole(path)
    assert server.sent() == [80_000, 80_000, 40_000]


def test_a_complete_partial_file_is_not_downloaded_again(server, interrupted):
    url, path = interrupted()
    (path.parent / "a.bin.part").write_bytes(CONTENT)  # killed before the rename
    fetch(Source("a.bin", url, checksum=MD5), path)
    assert is_whole(path)
    assert server.log == []


def test_the_server_tells_that_a_partial_file_of_unknown_size_is_complete(server, interrupted):
    url, path = interrupted()
    note = path.parent / "a.bin.part.json"
    note.write_text(re.sub('"total": [0-9]+', '"total": 0', note.read_text()))
    (path.parent / "a.bin.part").write_bytes(CONTENT)
    fetch(Source("a.bin", url), path)
    assert is_whole(path)
    assert server.log == [("/a.bin", "bytes=300000-", 416, 0)]


@pytest.mark.parametrize(
    "note", ["[1]", "3", "", "{", "{}", '{"url": 3}', '{"url": "a", "validator": [], "total": "x"}']
)
def test_a_damaged_record_of_a_partial_file_starts_the_download_again(server, interrupted, note):
    url, path = interrupted()
    (path.parent / "a.bin.part.json").write_text(note)
    fetch(Source("a.bin", url, checksum=MD5), path)
    assert is_whole(path)
    assert server.sent() == [300_000]


def test_a_partial_file_with_a_wrong_beginning_is_downloaded_again(server, interrupted):
    url, path = interrupted()
    (path.parent / "a.bin.part").write_bytes(OTHER[:100_000])
    fetch(Source("a.bin", url, checksum=MD5), path)
    assert is_whole(path)
    assert server.sent() == [200_000, 300_000]


def test_the_mirror_of_the_part_comes_first(server, interrupted):
    url, path = interrupted()
    fetch(Source("a.bin", (server.put("/other.bin", CONTENT), url)), path)
    assert is_whole(path)
    assert server.log == [("/a.bin", "bytes=100000-", 206, 200_000)]


def test_another_mirror_does_not_resume_the_partial_file(server, interrupted):
    url, path = interrupted()
    server.files.pop("/a.bin")
    fetch(Source("a.bin", (url, server.put("/b.bin", OTHER))), path)
    assert is_whole(path, OTHER)


def test_the_download_of_a_killed_process_is_resumed(server, tmp_path):
    gate = threading.Event()
    url, path = server.put("/a.bin", CONTENT, gate=(200_000, gate)), tmp_path / "a.bin"
    code = "import sys; from unskew.download.fetch import *; fetch(Source('a.bin', sys.argv[1]), sys.argv[2])"
    process = subprocess.Popen([sys.executable, "-c", code, url, str(path)])
    part, deadline = tmp_path / "a.bin.part", time.monotonic() + 20
    while not part.exists() or part.stat().st_size < 100_000:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    gate.set()
    kept = part.stat().st_size
    server.put("/a.bin", CONTENT)
    fetch(Source("a.bin", url, checksum=MD5), path)
    assert is_whole(path)
    assert server.log[-1] == ("/a.bin", f"bytes={kept}-", 206, 300_000 - kept)


# --- mirrors that fail ---------------------------------------------------------------------------------


def test_the_next_mirror_is_tried(server, tmp_path):
    page = {"Content-Type": "text/html; charset=utf-8"}
    urls = (
        dead_url(),
        server.root + "/missing.bin",
        server.put("/page", b"<html>log in</html>", headers=page),
        server.put("/hidden-page", b"<!DOCTYPE html> quota exceeded"),
        server.put("/empty", b""),
        server.put("/good", CONTENT),
    )
    fetch(Source("a.bin", urls), tmp_path / "a.bin")
    assert is_whole(tmp_path / "a.bin")


def test_a_web_page_is_accepted_for_an_html_source(server, tmp_path):
    url = server.put("/page", b"<html>hello</html>", headers={"Content-Type": "text/html"})
    fetch(Source("a.html", url), tmp_path / "a.html")
    assert is_whole(tmp_path / "a.html", b"<html>hello</html>")


def test_a_wrong_checksum_is_followed_by_a_good_mirror(server, tmp_path):
    source = Source("a.bin", (server.put("/bad", OTHER), server.put("/good", CONTENT)), checksum=MD5)
    fetch(source, tmp_path / "a.bin")
    assert is_whole(tmp_path / "a.bin")
    assert [path for path, *_ in server.log] == ["/bad", "/good"]


def test_a_wrong_size_is_noticed_before_the_download(server, tmp_path):
    url = server.put("/a.bin", CONTENT, gate=(0, threading.Event()))
    with pytest.raises(ConnectionError, match=r"300000 .* 5"):
        fetch(Source("a.bin", url, size=5), tmp_path / "a.bin")


def test_a_body_that_is_always_cut_is_a_failure(server, tmp_path):
    url = server.put("/a.bin", CONTENT, ranges=False, drops=[200_000] * 100)
    with pytest.raises(ConnectionError, match="connection"):
        fetch(Source("a.bin", url), tmp_path / "a.bin")
    assert server.sent() == [200_000] * _http.ATTEMPTS
    assert not (tmp_path / "a.bin").exists()


def test_when_all_mirrors_fail_one_line_gives_the_reasons_and_the_fix(server, tmp_path):
    urls = (server.root + "/missing", dead_url(), server.put("/bad", OTHER))
    source = Source("a.bin", urls, checksum=MD5, page="https://example.org/data")
    with pytest.raises(ConnectionError) as caught:
        fetch(source, tmp_path / ".a.bin", place=tmp_path / "a.bin")
    host, wrong = server.root.removeprefix("http://"), hashlib.md5(OTHER).hexdigest()
    assert str(caught.value) == (
        f"a.bin could not be downloaded ({host}: HTTP 404; 127.0.0.1:9: cannot connect; {host}: the file has md5 "
        f"{wrong} instead of {MD5[4:]}): download it by hand from https://example.org/data and put it at "
        f"'{tmp_path / 'a.bin'}'"
    )
    assert not list(tmp_path.iterdir())


def test_without_a_page_the_addresses_are_named(tmp_path):
    with pytest.raises(ConnectionError, match=r"http://127\.0\.0\.1:9/a\.bin .*'.*/a\.bin'"):
        fetch(Source("a.bin", dead_url()), tmp_path / "a.bin")
    with pytest.raises(ConnectionError, match=r"a\.bin .*authors"):
        fetch(Source("a.bin"), tmp_path / "a.bin")


# --- the disk --------------------------------------------------------------------------------------------


def test_a_full_disk_keeps_the_part(server, tmp_path, monkeypatch):
    url = server.put("/a.bin", CONTENT)
    chunks = _http._chunks

    def full(response):
        for number, chunk in enumerate(chunks(response)):
            if number == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            yield chunk

    with monkeypatch.context() as patch:
        patch.setattr(_http, "_chunks", full)
        with pytest.raises(OSError, match=r"a\.bin\.part': No space left on device, \d+ bytes"):
            fetch(Source("a.bin", url), tmp_path / "a.bin")
    kept = (tmp_path / "a.bin.part").stat().st_size
    server.forget()
    fetch(Source("a.bin", url), tmp_path / "a.bin")
    assert is_whole(tmp_path / "a.bin")
    assert kept and server.sent() == [300_000 - kept]


def test_a_file_size_limit_is_reported(server, tmp_path):
    """The operating system refuses the write, in a separate process."""
    url = server.put("/a.bin", CONTENT)
    code = (
        "import resource, signal, sys; from unskew.download.fetch import *\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: fetch(Source('a.bin', sys.argv[1]), sys.argv[2])\n"
        "except OSError as error: print(error.strerror)\n"
    )
    command = [sys.executable, "-c", code, url, str(tmp_path / "a.bin")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "cannot write" in run.stdout and "a.bin.part" in run.stdout and "200000 bytes are missing" in run.stdout
    fetch(Source("a.bin", url), tmp_path / "a.bin")
    assert is_whole(tmp_path / "a.bin")
    assert server.sent()[-1] == 200_000


@pytest.mark.parametrize("size", [0, len(CONTENT)])
def test_too_little_space_is_noticed_before_the_download(server, tmp_path, monkeypatch, size):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match=r"300000 .* 1000 "):
        fetch(Source("a.bin", server.put("/a.bin", CONTENT), size=size), tmp_path / "a.bin")
    assert not (tmp_path / "a.bin.part").exists()


# --- Google Drive ----------------------------------------------------------------------------------------


@pytest.fixture
def drive(server, monkeypatch):
    """A function that serves a file as Google Drive; gdown is the real one."""
    send = requests.adapters.HTTPAdapter.send

    def redirected(self, request, *args, **kwargs):
        request.url = request.url.replace("https://drive.google.com", server.root)
        return send(self, request, *args, **kwargs)

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", redirected)

    def put(content, kind="application/octet-stream", **options):
        headers = {"Content-Type": kind, "ETag": '"1"'}
        if not kind.startswith("text/html"):
            headers["Content-Disposition"] = 'attachment; filename="a.bin"'
        server.put("/uc", content, headers=headers, **options)
        return Source("a.bin", "drive:ID", checksum=MD5)

    return put


def test_drive_gives_a_file(tmp_path, drive, capfd):
    fetch(drive(CONTENT), tmp_path / "a.bin")
    assert is_whole(tmp_path / "a.bin")
    assert capfd.readouterr() == ("", "")


def test_drive_resumes_a_partial_file(server, tmp_path, drive):
    (tmp_path / "a.bin.drive12345678.part").write_bytes(CONTENT[:100_000])
    fetch(drive(CONTENT), tmp_path / "a.bin")
    assert is_whole(tmp_path / "a.bin")
    assert server.log[-1] == ("/uc?id=ID", "bytes=100000-", 206, 200_000)


def test_a_partial_file_that_drive_cannot_resume_is_downloaded_again(tmp_path, drive):
    for part in (CONTENT, OTHER[:100_000]):
        (tmp_path / "a.bin.drive12345678.part").write_bytes(part)
        fetch(drive(CONTENT), tmp_path / "a.bin")
        assert is_whole(tmp_path / "a.bin")
        (tmp_path / "a.bin").unlink()


def test_drives_pages_are_failures_of_a_mirror(tmp_path, drive):
    quota = b'<html><p class="uc-error-subcaption">Too many users have viewed or downloaded this file</p></html>'
    with pytest.raises(ConnectionError, match=r"drive:ID: .*page.*https://drive\.google\.com/.*ID"):
        fetch(drive(quota, "text/html; charset=utf-8"), tmp_path / "a.bin")
    with pytest.raises(ConnectionError, match="drive:ID: HTTP 404"):
        fetch(drive(b"", status=404), tmp_path / "a.bin")
    assert not list(tmp_path.iterdir())


def test_a_drive_that_cannot_be_reached_is_followed_by_the_next_mirror(server, tmp_path, monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match=r"drive:ID: .*proxy"):
        fetch(Source("a.bin", "drive:ID"), tmp_path / "a.bin")
    fetch(Source("a.bin", ("drive:ID", server.put("/a.bin", CONTENT))), tmp_path / "a.bin")
    assert is_whole(tmp_path / "a.bin")
