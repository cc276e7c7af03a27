"""An import appears whole or not at all, whenever it is killed; the same command continues it."""

import os
from pathlib import Path

import pytest
from filelock import FileLock
from import_sources import Memory, import_images, manifest, some, tree

from unskew.data.importing import write

SOURCE = Memory(some(2, each=2, splits=("train", "val", "test")), ["a/b", "c"])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNSKEW_CACHE", str(tmp_path / "cache"))


EVENTS = (
    (Path, "write_bytes"),
    (Path, "mkdir"),
    (os, "replace"),
    (os, "fsync"),
    (write, "find_unreadable"),
    (write, "write_json"),
    (write.shutil, "rmtree"),
    (Path, "unlink"),
)


def count_events(stop_at: int, replace) -> list[int]:
    """Let each event count, and end the process, as by kill -9, before the one of this number; return the count."""
    count = [0]
    for place, name in EVENTS:
        real = getattr(place, name)

        def call(*args, real=real, **options):
            if count[0] == stop_at:
                os._exit(9)
            count[0] += 1
            return real(*args, **options)

        replace(place, name, call)
    return count


def killed_at(event: int, out: Path) -> bool:
    """Import in a child process that is killed at an event; return whether it was."""
    child = os.fork()
    if child == 0:
        count_events(event, setattr)
        import_images(SOURCE, out)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_a_kill_at_any_point_leaves_nothing_that_looks_finished(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        total = count_events(-1, patch.setattr)
        import_images(SOURCE, tmp_path / "whole")
    whole, seen = tree(tmp_path / "whole"), set()
    for event in (*range(3, total[0] - 6, total[0] // 6), *range(total[0] - 6, total[0])):  # the renaming is at the end
        out = tmp_path / str(event) / "out"
        assert killed_at(event, out)
        if out.exists():
            assert {name: content for name, content in tree(out).items() if name[0] != "."} == whole
        seen.add(out.exists())
        import_images(SOURCE, out)
        assert tree(out) == whole and os.listdir(out.parent) == ["out"]
    assert seen == {True, False}


def test_written_splits_are_not_written_again(tmp_path, monkeypatch):
    real, calls = Memory.images, []

    def interrupted(self, split):
        calls.append(split)
        if split == "val" and len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, split)

    monkeypatch.setattr(Memory, "images", interrupted)
    with pytest.raises(KeyboardInterrupt):
        import_images(SOURCE, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    _, written = import_images(SOURCE, tmp_path / "out")
    assert written and calls == ["train", "val", "val", "test"]
    assert set(manifest(tmp_path / "out")["splits"]) == {"train", "val", "test"}


def test_a_finished_import_is_left_alone(tmp_path):
    first, written = import_images(SOURCE, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    again, later = import_images(Memory(None), tmp_path / "out")  # the source is not opened
    assert (written, later) == (True, False) and first == again
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_another_source_is_refused(tmp_path):
    import_images(SOURCE, tmp_path / "out")
    before = tree(tmp_path / "out")
    with pytest.raises(ValueError, match="memory there"):
        import_images(Memory(SOURCE.content, name="there"), tmp_path / "out")
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    with pytest.raises(ValueError, match="classnames"):
        import_images(SOURCE, tmp_path / "out", str(tmp_path / "names.txt"))
    assert tree(tmp_path / "out") == before


def test_another_source_is_refused_while_the_first_one_is_unfinished(tmp_path):
    assert killed_at(12, tmp_path / "out")
    staging = tmp_path / ".out.import"
    before = tree(staging)
    with pytest.raises(ValueError, match=r"\.out\.import.*unfinished"):
        import_images(Memory(SOURCE.content, name="there"), tmp_path / "out")
    assert tree(staging) == before


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"identity": 3}', '{"identity": {"kind": "x"}}'])
def test_a_folder_of_other_files_is_refused_and_kept(content, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match="--out"):
        import_images(SOURCE, tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"] and tree(tmp_path / "out") == {"manifest.json": content.encode()}


def test_an_empty_folder_is_filled_and_a_file_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    import_images(SOURCE, tmp_path / "out")
    manifest(tmp_path / "out")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="--out"):
        import_images(SOURCE, tmp_path / "file")
    with pytest.raises(ValueError, match="--out"):
        import_images(SOURCE, tmp_path / "file" / "out")


def test_two_imports_at_once_do_not_mix(tmp_path):
    staging = tmp_path / ".out.import"
    staging.mkdir()
    with FileLock(staging / ".lock"), pytest.raises(ValueError, match="another process"):
        import_images(SOURCE, tmp_path / "out")
    import_images(SOURCE, tmp_path / "out")
    assert manifest(tmp_path / "out")["splits"]["train"]["images"] == 4


def test_a_source_that_changes_between_its_labels_and_its_images_is_refused(tmp_path):
    class Changing(Memory):
        def images(self, split):
            yield from list(super().images(split))[:-1]

    with pytest.raises(ValueError, match="changed"):
        import_images(Changing(SOURCE.content, ["a", "b"]), tmp_path / "out")
    assert not (tmp_path / "out").exists()
