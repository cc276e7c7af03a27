"""Tests of JSON files, atomic folders and cache folders."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from unskew.utils.files import cache_folder, make_folder, read_json, user_cache, write_json

ROOT = Path(__file__).resolve().parents[2]

# --- JSON --------------------------------------------------------------------------------------------


def test_json_survives_the_disk(tmp_path):
    path = tmp_path / "new" / "folder" / "a.json"
    content = {"train": [["ü.jpg", 1, 'd"og'], [os.fsdecode(b"\xff.jpg"), 0, ""]], "none": None}
    write_json(content, path)
    assert read_json(path) == read_json(str(path)) == content


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json([1], path)
    with pytest.raises(TypeError):
        write_json([object()], path)
    assert read_json(path) == [1] and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"{'a': 1}"])
def test_a_file_that_is_not_json_is_named(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json'.* JSON") as error:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        read_json(tmp_path / "none.json")


# --- folders -----------------------------------------------------------------------------------------


def test_a_folder_appears_complete(tmp_path):
    folder = tmp_path / "new" / "images"

    def fill(path):
        assert path.parent == folder.parent and not folder.exists()  # on the same disk, and not visible yet
        (path / "a").write_text("content")

    make_folder(str(folder), fill)
    assert (folder / "a").read_text() == "content"
    assert list(folder.parent.iterdir()) == [folder]
    assert folder.stat().st_mode & 0o777 == 0o755  # others may read it


@pytest.mark.parametrize("error", [OSError("disk full"), ValueError("bad image"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing(tmp_path, error):
    def fill(path):
        (path / "a").write_text("half")
        raise error

    with pytest.raises(type(error)):
        make_folder(tmp_path / "images", fill)
    assert not list(tmp_path.iterdir())


def test_a_file_of_the_same_name_is_an_error(tmp_path):
    (tmp_path / "images").write_text("a file")
    with pytest.raises(OSError, match="images"):
        make_folder(tmp_path / "images", lambda path: (path / "a").touch())
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_the_folder_of_the_faster_process_is_kept(tmp_path):
    folder = tmp_path / "images"

    def fill(path):
        (path / "a").write_text("second")
        make_folder(folder, lambda other: (other / "a").write_text("first"))  # another process in the meantime

    make_folder(folder, fill)
    assert (folder / "a").read_text() == "first" and list(tmp_path.iterdir()) == [folder]


MAKE = """
import os, sys, time
from pathlib import Path
from unskew.utils.files import make_folder

def fill(path):
    for number in range(100):
        (path / str(number)).write_text(sys.argv[2])
        time.sleep(0.001)

print("ready", flush=True)
sys.stdin.readline()
make_folder(sys.argv[1], fill)
"""


def test_two_processes_at_once(tmp_path):
    folder = tmp_path / "images"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MAKE, str(folder), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for name in ("one", "two")
    ]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    deadline = time.monotonic() + 30
    while not folder.exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert len(list(folder.iterdir())) == 100  # complete from the first moment
    for process in processes:
        process.communicate()
    assert [process.returncode for process in processes] == [0, 0]
    assert len({path.read_text() for path in folder.iterdir()}) == 1
    assert list(tmp_path.iterdir()) == [folder]


# --- cache folders --------------------------------------------------------------------------


def test_environment_variables_set_the_root_of_the_caches(monkeypatch, tmp_path):
    def parent(**variables):
        for name in ("XDG_CACHE_HOME", "UNSKEW_CACHE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return user_cache("data/pets").parent

    monkeypatch.setenv("HOME", str(tmp_path))
    assert parent() == parent(XDG_CACHE_HOME="", UNSKEW_CACHE="") == tmp_path / ".cache" / "unskew"
    assert parent(XDG_CACHE_HOME="/xdg") == Path("/xdg/unskew")
    assert parent(UNSKEW_CACHE="/own") == parent(XDG_CACHE_HOME="/xdg", UNSKEW_CACHE="/own") == Path("/own")


def test_each_folder_has_its_own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("UNSKEW_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    found = [user_cache(folder) for folder in ("a/pets", "b/pets", "a/birds", tmp_path / "a" / "pets", "a/pets/")]
    assert [path.name.rpartition("-")[0] for path in found] == ["pets", "pets", "birds", "pets", "pets"]
    assert len(set(found)) == 3 and found[0] == found[3] == found[4]
    assert not (tmp_path / "cache").exists()  # the function only returns the path


def test_a_writable_folder_is_its_own_cache(tmp_path):
    assert cache_folder(tmp_path) == tmp_path
    assert cache_folder(tmp_path / "not" / "yet") == tmp_path / "not" / "yet"


AS_ANOTHER_USER = """
import os, sys
from unskew.utils.files import cache_folder
if os.geteuid() == 0:  # root may write everywhere
    os.seteuid(65534)
print(*map(cache_folder, sys.argv[1:]), sep="\\n")
"""


def test_a_read_only_folder_has_a_cache_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("UNSKEW_CACHE", str(tmp_path / "cache"))
    with tempfile.TemporaryDirectory() as base:  # tmp_path is closed to other users
        Path(base).chmod(0o755)
        for name, mode in {"closed": 0o555, "open": 0o777}.items():
            (Path(base) / name).mkdir()
            (Path(base) / name).chmod(mode)
        folders = [Path(base) / name for name in ("open", "open/new", "closed", "closed/new")]
        command = [sys.executable, "-c", AS_ANOTHER_USER, *map(str, folders)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert done.returncode == 0, done.stderr
        expected = [folders[0], folders[1], user_cache(folders[2]), user_cache(folders[3])]
        assert done.stdout.splitlines() == [str(path) for path in expected]
