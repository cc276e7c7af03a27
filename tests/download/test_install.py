"""Tests of the installation of datasets: each target is complete, after a kill at any moment too."""

import hashlib
import io
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile

import pytest
from disks import check_order, record_disk

from unskew.download import install
from unskew.download.install import prepare
from unskew.download.sources import Source

NOISE = random.Random(0)
IMAGES = {f"top/images/{i}.jpg": NOISE.randbytes(2000) for i in range(40)}
FILES = {**IMAGES, "top/labels.txt": b"cat\n"}
MAKES = {"top/images": "images", "top/labels.txt": "meta/labels.txt"}
SPLIT = b'{"train": []}'


def tar_of(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


TAR = tar_of(FILES)
MD5 = f"md5:{hashlib.md5(TAR).hexdigest()}"
# The code of a subprocess: prepare(folder, sources), with the sources as JSON.
CODE = """
import json, logging, sys
from unskew.download.fetch import Source
from unskew.download.install import prepare
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
prepare(sys.argv[1], [Source(**fields) for fields in json.loads(sys.argv[2])])
"""


@pytest.fixture(autouse=True)
def info_lines(caplog):
    caplog.set_level(logging.INFO, logger="unskew")


@pytest.fixture
def sources(server):
    return [
        Source("a.tar.gz", server.put("/a.tar.gz", TAR), makes=MAKES, checksum=MD5, size=len(TAR)),
        Source("split.json", server.put("/split.json", SPLIT)),
    ]


def start(folder, sources, code=CODE):
    fields = [{**vars(s), "makes": dict(s.makes)} for s in sources]
    command = [sys.executable, "-u", "-c", code, str(folder), json.dumps(fields)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for(condition, process):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.002)


def content_of(folder):
    """All files, hidden ones too, except the lock and the note of what was unpacked."""
    paths = [p for p in folder.rglob("*") if p.is_file() and p.name not in (".prepare.lock", ".prepared.json")]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}


def complete(more=()):
    images = {name.removeprefix("top/"): content for name, content in IMAGES.items()}
    return {**images, "meta/labels.txt": b"cat\n", "split.json": SPLIT, **dict(more)}


def test_every_target_is_installed(tmp_path, sources, caplog):
    folder = tmp_path / "new" / "set"
    assert prepare(folder, sources) == ["a.tar.gz", "split.json"]
    assert content_of(folder) == complete()
    assert caplog.messages == ["a.tar.gz: unpacked to images, meta/labels.txt", "split.json: downloaded"]


@pytest.fixture
def disk(monkeypatch):
    return record_disk(monkeypatch)


def test_all_files_are_on_the_disk_before_they_are_renamed(tmp_path, sources, disk):
    prepare(tmp_path, sources)
    assert check_order(disk) >= 5  # the archive, its two targets, the plain file, the note
    assert any(call[0] == "move" and len(call[3]) == 40 for call in disk)


def test_existing_targets_need_no_network(tmp_path, sources, server, caplog):
    prepare(tmp_path, sources)
    server.close()
    caplog.clear()
    assert prepare(tmp_path, sources) == []
    assert caplog.messages == [f"'{tmp_path}' has everything"]


def test_a_folder_that_has_everything_may_be_read_only(tmp_path, sources, monkeypatch):
    prepare(tmp_path, sources)

    def refuse(*args, **kwargs):
        raise PermissionError(30, "Read-only file system")

    for name in ("unlink", "mkdir", "rename", "rmdir", "open"):
        monkeypatch.setattr(os, name, refuse)
    assert prepare(tmp_path, sources) == []


def test_only_the_missing_targets_are_moved(tmp_path, sources):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "mine.jpg").write_text("mine")
    prepare(tmp_path, sources)
    assert content_of(tmp_path) == {"images/mine.jpg": b"mine", "meta/labels.txt": b"cat\n", "split.json": SPLIT}


def test_a_zip_and_the_whole_of_an_archive(tmp_path, server):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("1.jpg", b"1")
    prepare(tmp_path, [Source("jpg.zip", server.put("/a", buffer.getvalue()), makes={".": "jpg"})])
    assert content_of(tmp_path) == {"jpg/1.jpg": b"1"}


# --- files that the user put there -----------------------------------------------------------------------


def test_an_archive_that_was_put_there_is_used_and_kept(tmp_path, sources, server):
    (tmp_path / "a.tar.gz").write_bytes(TAR)
    prepare(tmp_path, sources)
    assert content_of(tmp_path) == complete({"a.tar.gz": TAR})
    assert [path for path, *_ in server.log] == ["/split.json"]


@pytest.mark.parametrize("wrong", [b"short", TAR[:-1] + bytes([TAR[-1] ^ 1])])
def test_another_file_in_its_place_is_an_error(tmp_path, sources, wrong):
    (tmp_path / "a.tar.gz").write_bytes(wrong)
    expected = len(TAR) if wrong == b"short" else MD5[4:]
    with pytest.raises(ValueError, match=rf"a\.tar\.gz' has .*{expected}"):
        prepare(tmp_path, sources)
    assert content_of(tmp_path) == {"a.tar.gz": wrong}


def test_a_plain_file_is_checked_too(tmp_path):
    (tmp_path / "split.json").write_bytes(b"<!doctype html><p>Virus scan warning")
    with pytest.raises(ValueError, match=r"split\.json' is a web page"):
        prepare(tmp_path, [Source("split.json")])


def test_one_error_lists_all_files_to_download_by_hand(tmp_path, sources, server, caplog):
    by_hand = Source("train.tar", makes={"train": "train"}, page="https://example.org/register")
    gone = Source("gone.zip", server.root + "/gone.zip", makes={"gone": "gone"}, page="https://example.org/gone")
    with pytest.raises(FileNotFoundError) as caught:
        prepare(tmp_path, [by_hand, gone, *sources])
    message = str(caught.value)
    assert "\n" not in message
    assert f"https://example.org/register and put it at '{tmp_path / 'train.tar'}'" in message
    assert f"https://example.org/gone and put it at '{tmp_path / 'gone.zip'}'" in message
    assert "HTTP 404" in message
    assert content_of(tmp_path) == complete()  # the other sources are installed
    (tmp_path / "train.tar").write_bytes(tar_of({"train/1.jpg": b"1"}))
    with pytest.raises(FileNotFoundError) as caught:
        prepare(tmp_path, [by_hand, gone, *sources])
    assert "train.tar" not in str(caught.value)
    assert (tmp_path / "train" / "1.jpg").read_bytes() == b"1"


def test_a_file_put_there_later_removes_the_part(tmp_path, server):
    source = Source("split.json", server.put("/split.json", SPLIT, drops=[5, 0, 0, 0, 0]))
    with pytest.raises(FileNotFoundError):
        prepare(tmp_path, [source])
    assert (tmp_path / "split.json.part").exists()
    (tmp_path / "split.json").write_bytes(SPLIT)
    prepare(tmp_path, [source])
    assert content_of(tmp_path) == {"split.json": SPLIT}


# --- archives that are not as expected ---------------------------------------------------------------------


def test_an_archive_without_a_wanted_member(tmp_path, server):
    source = Source("a.tar.gz", server.put("/a", TAR), makes={"top/images": "images", "top/nothing": "x"})
    with pytest.raises(ValueError, match=r"top/nothing;.* top;.*a\.tar\.gz'$"):
        prepare(tmp_path, [source])
    assert content_of(tmp_path) == {}
    (tmp_path / "a.tar.gz").write_bytes(TAR)
    with pytest.raises(ValueError, match="top/nothing"):
        prepare(tmp_path, [source])
    assert content_of(tmp_path) == {"a.tar.gz": TAR}


def test_the_next_call_downloads_a_damaged_archive_again(tmp_path, server):
    source = Source("a.tar.gz", server.put("/a", TAR[:-100]), makes=MAKES)
    with pytest.raises(ValueError, match="damaged"):
        prepare(tmp_path, [source])
    assert content_of(tmp_path) == {}
    server.put("/a", TAR)
    prepare(tmp_path, [source])
    assert (tmp_path / "images" / "0.jpg").exists()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/set'"):
        prepare(tmp_path / "file" / "set", [Source("a")])


# --- kills and two at once -----------------------------------------------------------------------------------


def test_killed_in_the_download(tmp_path, sources, server):
    gate = threading.Event()
    server.put("/a.tar.gz", TAR, gate=(2**16, gate))
    process = start(tmp_path, sources)
    part = tmp_path / ".a.tar.gz.part"
    wait_for(lambda: part.exists() and part.stat().st_size, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    gate.set()
    kept = part.stat().st_size
    server.put("/a.tar.gz", TAR)
    prepare(tmp_path, sources)
    assert content_of(tmp_path) == complete()
    assert ("/a.tar.gz", f"bytes={kept}-", 206, len(TAR) - kept) in server.log


def test_killed_while_unpacking(tmp_path, server):
    images = {f"top/images/{i}.jpg": b"x" * 500 for i in range(2000)}
    source = Source("a.tar.gz", server.put("/a.tar.gz", tar_of(images)), makes={"top/images": "images"})
    process = start(tmp_path, [source])
    work = tmp_path / ".a.tar.gz.unpack"
    wait_for(lambda: (work / "top" / "images" / "300.jpg").exists(), process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    assert work.exists() and not (tmp_path / "images").exists()
    (work / "top" / "images" / "half.jpg").write_text("of another time")
    prepare(tmp_path, [source])
    assert content_of(tmp_path) == {name.removeprefix("top/"): content for name, content in images.items()}
    assert len(server.log) == 1


@pytest.mark.parametrize("moment", ["first rename", "removal"])
def test_killed_between_the_renames_or_behind_them(tmp_path, sources, server, moment):
    kill = "os.kill(os.getpid(), signal.SIGKILL)"
    patches = {
        "first rename": "import unskew.download.install as p\n"
        f"move = p.move_into_place\np.move_into_place = lambda a, b: (move(a, b), {kill})\n",
        "removal": f"import unskew.download.install as p\np._remove_temporary = lambda hidden: {kill}\n",
    }
    process = start(tmp_path, sources, "import os, signal\n" + patches[moment] + CODE)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert (tmp_path / "images").exists() and (tmp_path / ".a.tar.gz.unpack").exists()
    assert (tmp_path / "meta").exists() == (moment == "removal")
    prepare(tmp_path, sources)
    assert content_of(tmp_path) == complete()
    assert not (tmp_path / ".a.tar.gz.unpack").exists()
    assert [path for path, *_ in server.log] == ["/a.tar.gz", "/split.json"]


def test_of_two_at_once_one_waits(tmp_path, sources, server):
    gate = threading.Event()
    server.put("/a.tar.gz", TAR, gate=(2**14, gate))
    first = start(tmp_path, sources)
    wait_for(lambda: (tmp_path / ".a.tar.gz.part").exists(), first)
    second = start(tmp_path, sources)
    line = second.stdout.readline()
    assert line == f"another process prepares '{tmp_path}': waiting for it\n"
    gate.set()
    (done, _), (rest, _) = first.communicate(timeout=30), second.communicate(timeout=30)
    assert (first.returncode, second.returncode) == (0, 0)
    assert done.count("\n") == 2 and rest == ""
    assert [path for path, *_ in server.log] == ["/a.tar.gz", "/split.json"]
    assert content_of(tmp_path) == complete()


def test_an_interrupt_leaves_no_half_target(tmp_path, sources, monkeypatch):
    def interrupt(archive, folder):
        folder.mkdir()
        (folder / "half").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(install, "extract", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path, sources)
    assert content_of(tmp_path).keys() == {".a.tar.gz", ".a.tar.gz.unpack/half"}
    prepare(tmp_path, sources)
    assert content_of(tmp_path) == complete()
