"""Tests of images that cannot be read: found before training, skipped, counted, and never waited for."""

import os
import socket
import time
from pathlib import Path

import numpy as np
import pictures
import pytest
from PIL import Image
from trees import dtd, load, write

import unskew
from unskew.cli.main import main
from unskew.data import readable, verify
from unskew.data.images import read_image
from unskew.engine import fingerprint
from unskew.engine.run_dir import RunDir
from unskew.runs import tables
from unskew.runs.tables import text_tables


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNSKEW_CACHE", str(tmp_path / "cache"))


def save_png(picture, path, place):
    picture.save(path.with_suffix(".png"))


@pytest.fixture
def digits(tmp_path):
    """Class folders of digits with the splits train, val and test."""
    return pictures.write(tmp_path / "digits", save_png, ("train", "val", "test", "test"))


def chosen(root, split, count):
    """Return the first images of different classes."""
    return [sorted(folder.iterdir())[0] for folder in sorted((root / split).iterdir())][:count]


# --- kinds of damage ---------------------------------------------------------------------------------


def cut(path, whole):
    path.write_bytes(whole[: len(whole) // 2])


def linked(target):
    def damage(path, whole):
        path.symlink_to(target)

    return damage


def bind(path, whole):
    with socket.socket(socket.AF_UNIX) as server:
        folder = os.getcwd()
        os.chdir(path.parent)  # the path of a socket is short
        server.bind(path.name)
        os.chdir(folder)


KINDS = {
    "truncated": cut,
    "empty": lambda path, whole: path.write_bytes(b""),
    "text": lambda path, whole: path.write_text("no image"),
    "pipe": lambda path, whole: os.mkfifo(path),
    "device": linked("/dev/zero"),
    "socket": bind,
    "folder": lambda path, whole: path.mkdir(),
    "dangling link": linked("nowhere"),
    "link to itself": lambda path, whole: path.symlink_to(path.name),
    "PNG of zeros": lambda path, whole: path.write_bytes(whole[:33] + bytes(len(whole))),
    "PNG of rubbish": lambda path, whole: path.write_bytes(whole[:60] + np.random.default_rng(0).bytes(200)),
}


def damage(path, kind="text"):
    whole = path.read_bytes()
    path.unlink()
    KINDS[kind](path, whole)


@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_of_file_is_waited_for(kind, tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(path)
    damage(path, kind)
    started = time.perf_counter()
    with pytest.raises((ValueError, FileNotFoundError), match=r"x\.png") as error:
        read_image(path)
    assert "\n" not in str(error.value) and time.perf_counter() - started < 5
    assert list(readable.find_unreadable([str(path)])) == [str(path)]


def test_a_decompression_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("L", (20, 20)).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"x\.png"):
        read_image(tmp_path / "x.png")


# --- before training ---------------------------------------------------------------------------------


def test_all_unreadable_images_are_named_before_training(digits, tmp_path, capsys):
    bad = [path for split in ("train", "val", "test") for path in chosen(digits, split, 1)]
    for path, kind in zip(bad, ("truncated", "pipe", "empty"), strict=True):
        damage(path, kind)
    out = tmp_path / "out"
    argv = ["train", "-d", "folder", "--root", str(digits), "-t", "CoOp", "-b", "micro", "--output-dir", str(out)]
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "3 of 120" in line and "UNREADABLE" in line
    assert all(str(path.relative_to(digits)) in line for path in bad)
    assert not list(out.rglob("done")) and not list(out.rglob("model*"))


def test_only_a_few_names_are_shown(digits):
    for path in chosen(digits, "test", 8):
        damage(path)
    with pytest.raises(ValueError, match=rf"8 of 120.* and 5 more.*verify folder --root {digits} --full"):
        load("folder", digits)


def test_missing_images_of_a_csv_file_are_named_at_once(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    write(tmp_path / "x.csv", "path,label,split", "a.png,0,train", "b.png,1,train", "c.png,0,test", "a/d.png,1,test")
    with pytest.raises(ValueError, match=r"3 of 4.* do not exist .*'b\.png', 'c\.png', 'a/d\.png'"):
        load("csv", tmp_path / "x.csv")
    (tmp_path / "b.png").touch()
    with pytest.raises(ValueError, match=r"3 of 4.* 2 do not exist and the others"):
        load("csv", tmp_path / "x.csv")


def test_photos_that_pillow_cannot_read_are_not_lost_without_a_word(digits):
    for folder in sorted((digits / "test").iterdir())[:2]:
        (folder / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
        picture = next(folder.glob("*.png"))
        Image.open(picture).convert("RGB").save(folder / "saved by a browser.jfif", "JPEG")
    with pytest.raises(ValueError, match=r"2 of 124 .*HEIC"):
        load("folder", digits)
    assert len(load("folder", digits, "DATASET.UNREADABLE", "skip").test) == 62


def test_an_unknown_value_names_the_key(digits):
    with pytest.raises(ValueError, match=r"DATASET\.UNREADABLE"):
        load("folder", digits, "DATASET.UNREADABLE", "ignore")


def test_only_the_images_of_the_run_are_opened(digits):
    whole = load("folder", digits, shots=1)
    used = {item.impath for item in (*whole.train_x, *whole.val, *whole.test)}
    damage(next(path for path in sorted((digits / "train").rglob("*.png")) if str(path) not in used))
    assert len(load("folder", digits, shots=1).train_x) == 10


# --- skipping ----------------------------------------------------------------------------------------


SKIP = ("DATASET.UNREADABLE", "skip")


def paths(dataset, split):
    return [item.impath for item in getattr(dataset, split)]


def test_skipped_images_move_no_other_image(tmp_path):
    root = pictures.write(tmp_path / "x", save_png, ("",))  # divided at random
    before = load("folder", root)
    bad = [paths(before, split)[0] for split in ("train_x", "val", "test")]
    for path in bad:
        damage(Path(path))
    after = load("folder", root, *SKIP)
    for split, path in zip(("train_x", "val", "test"), bad, strict=True):
        assert paths(after, split) == [name for name in paths(before, split) if name != path]
    assert after.classnames == before.classnames
    assert after.unreadable_test == [os.path.relpath(bad[2], root)] and before.unreadable_test == []


def test_a_few_shot_sample_is_complete(digits):
    before = load("folder", digits, *SKIP, shots=2)
    for path in paths(before, "train_x")[::2]:
        damage(Path(path))
    after, again = (load("folder", digits, *SKIP, shots=2) for _ in range(2))
    assert sorted(item.label for item in after.train_x) == sorted(2 * list(range(10)))
    assert not set(paths(before, "train_x")[::2]) & set(paths(after, "train_x"))
    assert paths(after, "train_x") == paths(again, "train_x")
    assert paths(after, "test") == paths(before, "test") and after.unreadable_test == []


def test_a_class_without_readable_images_is_an_error(digits):
    for path in digits.glob("*/three/*"):
        damage(path)
    with pytest.raises(ValueError, match="three"):
        load("folder", digits, *SKIP)


def test_a_split_without_readable_images_is_an_error(digits):
    for path in digits.glob("test/*/*"):
        damage(path)
    with pytest.raises(ValueError, match="test"):
        load("folder", digits, *SKIP)


def test_skipped_test_images_are_in_the_metrics_and_marked_in_tables(digits, tmp_path):
    bad = chosen(digits, "test", 2)
    for path in bad:
        damage(path, "truncated")
    opts = {"DATASET.TEMPLATE": pictures.TEMPLATE, "DATALOADER.NUM_WORKERS": 0, "DATASET.UNREADABLE": "skip"}
    place = {"backbone": "micro", "root": digits, "output": tmp_path / "out"}
    run = unskew.train("folder", "ZeroshotCLIP", **place, opts=opts)
    assert run.metrics["unreadable_test"] == 2
    assert run.metrics["unreadable_test_names"] == [str(path.relative_to(digits)) for path in bad]
    assert len(run.predictions["labels"]) == 58
    rows = tables.collect(tmp_path / "out")
    other = {**rows[0], "trainer": "CoOp"}
    del other["unreadable_test"]
    table = text_tables.table([*rows, other]).splitlines()
    (marked,), (plain,) = ([line for line in table if f"| {name}" in line] for name in ("ZeroshotCLIP", "CoOp"))
    assert "†" in marked and "†" not in plain and table[-1].startswith("†") and "2" in table[-1]


def test_the_key_counts_only_where_it_is_set(digits):
    folder = ("DATASET.ROOT", str(digits))
    hashes = []
    for opts in ((), ("DATASET.UNREADABLE", "error"), SKIP):
        run = unskew.Run("folder", "ZeroshotCLIP", "micro", opts=(*folder, *opts))
        hashes.append(fingerprint.config_hash(run.config))
    assert hashes[0] == hashes[1] != hashes[2]
    published = fingerprint.identity(unskew.Run("digits", "ZeroshotCLIP").config)
    assert not {"DATASET.UNREADABLE", "DATASET.UPRIGHT"} & set(published)


# --- the cache ---------------------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch):
    """The paths that were opened so far."""
    found = []
    monkeypatch.setattr(readable, "read_image", lambda path: (found.append(path), read_image(path))[1])
    return found


def test_no_image_is_opened_twice(digits, opened):
    load("folder", digits)
    assert len(opened) == 120
    load("folder", digits, shots=1)
    assert len(opened) == 120
    changed = chosen(digits, "test", 1)[0]
    times = changed.stat()
    whole = changed.read_bytes()
    changed.write_bytes(bytes(len(whole)))
    os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))  # the same size and modification time
    with pytest.raises(ValueError, match="1 of 120"):
        load("folder", digits)
    assert opened[120:] == [str(changed)]


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00", "text", "matrix"])
def test_a_damaged_cache_is_written_again(content, digits, opened, tmp_path):
    load("folder", digits)
    (cache,) = (tmp_path / "cache").rglob("readable.npy")
    if content in ("text", "matrix"):
        np.save(cache, np.array(["a"]) if content == "text" else np.zeros((2, 2), np.int64))
    else:
        cache.write_bytes(content)
    load("folder", digits)
    assert len(opened) == 240
    load("folder", digits)
    assert len(opened) == 240


def test_a_cache_that_cannot_be_written_does_not_matter(digits, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UNSKEW_CACHE", str(tmp_path / "file" / "cache"))
    assert len(load("folder", digits).test) == 60


# --- verify ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "csv"])
def test_verify_lists_all_unreadable_images(kind, digits, capsys):
    root = digits
    if kind == "csv":
        rows = [f"{path.relative_to(digits)},{path.parts[-2]},{path.parts[-3]}" for path in digits.rglob("*.png")]
        root = digits / "digits.csv"
        write(root, "path,label,split", *rows)
    assert main(["data", "verify", kind, "--root", str(root)]) == 0
    assert "120 of 120" in capsys.readouterr().out
    bad = chosen(digits, "test", 3)
    for path, damaged in zip(bad, ("pipe", "empty", "device"), strict=True):
        damage(path, damaged)
    assert main(["data", "verify", kind, "--root", str(root)]) == 2
    out, err = capsys.readouterr()
    assert all(str(path) in out for path in bad) and "3 of 120" in err


def test_verify_opens_a_sample_of_many_images(digits, capsys, monkeypatch):
    monkeypatch.setattr(verify, "SAMPLE", 50)
    assert main(["data", "verify", "folder", "--root", str(digits)]) == 0
    assert "50 of 120" in capsys.readouterr().out
    assert main(["data", "verify", "folder", "--root", str(digits), "--full"]) == 0
    assert "120 of 120" in capsys.readouterr().out


def test_verify_counts_the_orientations_of_a_published_dataset(tmp_path, capsys):
    dtd(tmp_path / "data")
    exif = Image.Exif()
    for orientation, path in enumerate(sorted((tmp_path / "data" / "dtd").rglob("banded_*.jpg"))[:4], start=1):
        exif[0x0112] = orientation  # one of the four is upright
        Image.new("RGB", (8, 8)).save(path, exif=exif)
    main(["data", "verify", "dtd", "--root", str(tmp_path / "data")])
    assert "3 of the 30 " in capsys.readouterr().out
    main(["data", "verify", "dtd", "--root", str(tmp_path / "data"), "--opts", "DATASET.UPRIGHT", "True"])
    assert "of the 30 " not in capsys.readouterr().out


def test_finished_runs_are_not_checked_again(digits, tmp_path, opened):
    place = {"backbone": "micro", "root": digits, "output": tmp_path / "out"}
    run = unskew.train("folder", "ZeroshotCLIP", **place, opts={"DATALOADER.NUM_WORKERS": 0})
    assert RunDir(run.path).is_finished and len(opened) == 120
