"""Tests of caches whose folder cannot be used: a run gives the same numbers, with one warning."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from unskew.utils import files
from unskew.utils.files import cache_folder, cache_problem, cached_folder, unwritable, user_cache

ROOT = Path(__file__).resolve().parents[2]

RUN = """
import sys
from unskew.cli.main import main
sys.exit(main(sys.argv[1:]))
"""

FULL = """
import errno, os, sys
from pathlib import Path
real = Path.open
def full(self, mode="r", *rest, **options):
    if "w" in mode and os.environ["UNSKEW_CACHE"] in str(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return real(self, mode, *rest, **options)
Path.open = full
"""


def unusable(kind, tmp_path):
    if kind == "file":
        (tmp_path / "file").write_text("not a folder")
    return {
        "long": str(tmp_path / ("c" * 300)),
        "file": str(tmp_path / "file"),
        "below a file": str(tmp_path / "file" / "cache"),
        "not UTF-8": os.fsencode(tmp_path) + b"/\xff",
        "full": str(tmp_path / "full"),
    }[kind]


def call(cache, data_root, *words, before=""):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "UNSKEW_CACHE": cache, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", before + RUN, *words, "--root", data_root],
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("kind", ["long", "file", "not UTF-8", "full"])
def test_a_run_needs_no_cache_and_warns_once(kind, data_root, tmp_path):
    """Features, a CSV's lists and samples: the two trainers have five stores of features between them."""
    words = ("sweep", "-d", "digits", "-t", "ZeroshotCLIP", "TaskRes", "--shots", "1", "--seeds", "1", "--output")
    opts = ("--opts", "OPTIM.MAX_EPOCH", "1", "INPUT.VIEWS", "1", "DATALOADER.NUM_WORKERS", "0")
    before = FULL if kind == "full" else ""
    done = call(unusable(kind, tmp_path), data_root, *words, str(tmp_path / "out"), *opts, before=before)
    assert done.returncode == 0, done.stderr
    assert "69." in done.stdout  # ZeroshotCLIP
    assert len(re.findall("UNSKEW_CACHE", done.stderr)) == 1 and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("kind", ["file", "long"])
def test_rendered_images_live_in_a_temporary_folder_where_no_place_can_be_written(kind, tmp_path):
    """The root of the data is a file too, so that neither place exists."""
    (tmp_path / "data").write_text("not a folder")
    words = ("train", "-d", "digits", "-t", "ZeroshotCLIP", "--shots", "1", "--output-dir", str(tmp_path / "out"))
    done = call(unusable(kind, tmp_path), str(tmp_path / "data"), *words)
    assert done.returncode == 0, done.stderr
    assert "accuracy: 69." in done.stdout
    assert len(re.findall("UNSKEW_CACHE", done.stderr)) <= 1 and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("long", "too long"), ("file", "not a folder"), ("below a file", "not a folder"), ("not UTF-8", "UTF-8")],
)
def test_the_reason_is_known_before_a_file_is_written(kind, reason, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UNSKEW_CACHE", os.fsdecode(unusable(kind, tmp_path)))
    assert reason in cache_problem()
    monkeypatch.setenv("UNSKEW_CACHE", str(tmp_path / "new" / "cache"))
    assert cache_problem() == "" and not (tmp_path / "new").exists()


def test_a_file_in_the_place_of_a_folder_has_a_cache_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("UNSKEW_CACHE", str(tmp_path / "cache"))
    (tmp_path / "file").write_text("")
    assert cache_folder(tmp_path / "file" / "set") == user_cache(tmp_path / "file" / "set")
    assert unwritable(tmp_path / ("a" * 300) / "b") == os.strerror(errno.ENAMETOOLONG)
    assert len(os.fsencode(user_cache(tmp_path / ("ü" * 127)).name)) <= 255


def test_a_folder_in_the_cache_is_used_again(tmp_path, monkeypatch):
    monkeypatch.setenv("UNSKEW_CACHE", str(tmp_path / "cache"))
    (tmp_path / "file").write_text("")
    made = []

    def fill(path):
        made.append(path)
        (path / "a").touch()

    root = tmp_path / "file"
    assert cached_folder(root, "images", fill) == cached_folder(root, "images", fill) == user_cache(root) / "images"
    monkeypatch.setenv("UNSKEW_CACHE", str(tmp_path / "file"))
    files._temporary_cache.cache_clear()
    temporary = cached_folder(root, "images", fill)
    assert cached_folder(root, "images", fill) == temporary and (temporary / "a").is_file() and len(made) == 2


def test_lists_and_samples_are_not_kept_where_the_cache_cannot_be_used(tmp_path, monkeypatch):
    from PIL import Image

    from unskew.data import image_folders

    monkeypatch.setattr(image_folders, "CACHE_FROM", 1)
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "pets" / name / "1.png")
    expected = {"cat": ["1.png"], "dog": ["1.png"]}
    for kind in ("long", "file", "not UTF-8"):
        monkeypatch.setenv("UNSKEW_CACHE", os.fsdecode(unusable(kind, tmp_path)))
        assert image_folders.list_images(tmp_path / "pets", user_cache(tmp_path / "pets")) == expected
