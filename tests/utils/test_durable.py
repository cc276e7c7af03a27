"""Tests of writes that survive power cuts: what is on the disk before a rename, links, permissions, leftovers."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from disks import check_order, record_disk

from unskew.utils import files
from unskew.utils.files import make_folder, move_into_place, remove_leftovers, write_atomically, write_json

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def disk(monkeypatch):
    return record_disk(monkeypatch)


def test_a_file_is_on_the_disk_before_its_rename_and_its_folder_after(tmp_path, disk):
    write_atomically(tmp_path / "text", "content")
    write_atomically(tmp_path / "text", lambda file: file.write(b"other"))
    write_json([1], tmp_path / "deep" / "a.json")
    assert check_order(disk) == 3


def fill(folder):
    (folder / "train" / "cat").mkdir(parents=True)
    (folder / "train" / "cat" / "1.jpg").write_bytes(b"1")
    (folder / "list.txt").write_text("1")


def test_a_folder_is_on_the_disk_with_all_that_it_holds(tmp_path, disk):
    make_folder(tmp_path / "images", fill)
    (tmp_path / "work").mkdir()
    fill(tmp_path / "work")
    move_into_place(tmp_path / "work", tmp_path / "set")
    assert check_order(disk) == 2 and (tmp_path / "set" / "train" / "cat" / "1.jpg").read_bytes() == b"1"


def test_a_link_stays_a_link(tmp_path, disk):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "real").write_text("old")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "disk" / "real")
    write_atomically(link, "new")
    assert link.is_symlink() and (tmp_path / "disk" / "real").read_text() == "new"
    assert check_order(disk) == 1 and [path.name for path in (tmp_path / "disk").iterdir()] == ["real"]
    (tmp_path / "dangling").symlink_to(tmp_path / "disk" / "later")
    write_atomically(tmp_path / "dangling", "new")
    assert (tmp_path / "dangling").is_symlink() and (tmp_path / "disk" / "later").read_text() == "new"


def test_permissions_stay_and_new_files_have_those_of_the_umask(tmp_path):
    (tmp_path / "private").write_text("old")
    (tmp_path / "private").chmod(0o640)
    before = os.umask(0o027)
    try:
        for name in ("private", "new"):
            write_atomically(tmp_path / name, "content")
        make_folder(tmp_path / "folder", fill)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"private": 0o640, "new": 0o640, "folder": 0o750}


def test_a_pipe_stays_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE)
    write_atomically(tmp_path / "pipe", "content")
    assert reader.communicate(timeout=20)[0] == b"content" and (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("name", ["a" * 255, "ü" * 127])
def test_the_longest_names_can_be_written(name, tmp_path):
    write_atomically(tmp_path / name, "content")
    make_folder(tmp_path / "in" / name, fill)
    assert (tmp_path / name).read_text() == "content" and (tmp_path / "in" / name / "list.txt").is_file()


def test_an_error_of_the_disk_while_syncing_keeps_the_old_file(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"file'.*room") as error:
        write_atomically(tmp_path / "file", "new")
    assert error.value.errno == errno.ENOSPC
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"file": "old"}


# --- leftovers ----------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from unskew.utils.files import make_folder, write_atomically

def die(*args):
    if args and isinstance(args[0], Path):
        (args[0] / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)

folder = Path(sys.argv[2])
write_atomically(folder / "file", die) if sys.argv[1] == "file" else make_folder(folder / "folder", die)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_next_write_removes_what_a_killed_process_has_left(kind, tmp_path):
    command = [sys.executable, "-c", KILLED, kind, str(tmp_path)]
    killed = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60)
    assert killed.returncode == -signal.SIGKILL and len(list(tmp_path.iterdir())) == 1
    write_atomically(tmp_path / "other", "content")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_files_of_living_and_of_unknown_processes_stay_for_a_day(tmp_path):
    mine = files.temporary_path(tmp_path / "mine")
    system = mine.name.split(".")[2].partition("-")[0]
    assert mine.name.startswith(f".mine.{system}-{os.getpid()}-")
    elsewhere = tmp_path / f".elsewhere.{'0' * 8}-999999999-{'1' * 8}.tmp"
    foreign = tmp_path / ".notes.tmp"
    for path in (mine, elsewhere, foreign):
        path.write_text("content")
    remove_leftovers(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    for path in (mine, elsewhere, foreign):
        os.utime(path, (time.time() - 90_000,) * 2)
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [foreign]


def test_a_folder_that_does_not_exist_has_no_leftovers(tmp_path):
    remove_leftovers(tmp_path / "none")
    (tmp_path / "file").touch()
    remove_leftovers(tmp_path / "file")
