"""Tests of ImageNet's layouts, names and archives, and of ImageNet-LT's lists."""

import dataclasses
import io
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import pytest
import trees
from open_clip import IMAGENET_CLASSNAMES
from trees import WORDNET, held, load, put, remove, with_lines, write

from unskew.datasets.imagenet import ImageNet

NAMES = list(WORDNET.values())


@pytest.mark.parametrize("images", ["images", ""])
def test_labels_follow_the_sorted_folders_and_test_is_imagenets_val(images, tmp_path, warned):
    entries = trees.imagenet(tmp_path, images)
    dataset = load("imagenet", tmp_path)
    assert held(dataset, tmp_path / "imagenet" / images) == {**entries, "val": []}
    assert dataset.classnames == NAMES and dataset.test_classes is None
    assert {item.label for item in dataset.test if "/n02123045/" in item.impath} == {3}
    assert all(Path(item.impath).is_file() for item in [*dataset.train_x, *dataset.test])
    assert not warned()


def test_few_shots_draw_val_from_the_rest_of_train(tmp_path):
    trees.imagenet(tmp_path)
    few, whole = load("imagenet", tmp_path, shots=2), load("imagenet", tmp_path)
    for items in (few.train_x, few.val):
        assert Counter(item.label for item in items) == dict.fromkeys(range(4), 2)
        assert set(items) <= set(whole.train_x)
    assert not set(few.train_x) & set(few.val)
    assert few.test == whole.test
    base, new = (load("imagenet", tmp_path, "DATASET.SUBSAMPLE_CLASSES", half) for half in ("base", "new"))
    assert (base.classnames, new.classnames) == (NAMES[:2], NAMES[2:])


def test_without_classnames_a_part_of_imagenet_has_no_names(tmp_path):
    trees.imagenet(tmp_path)
    path = tmp_path / "imagenet" / "classnames.txt"
    path.unlink()
    with pytest.raises(FileNotFoundError, match="data prepare imagenet") as error:
        load("imagenet", tmp_path)
    assert str(path) in str(error.value)


def test_without_classnames_a_thousand_folders_get_open_clips_names(tmp_path):
    wnids = [f"n{10_000_000 + 7919 * n:08d}" for n in range(1000)]
    for wnid in wnids:
        (tmp_path / "imagenet" / "train" / wnid).mkdir(parents=True)
        put(tmp_path / "imagenet" / "val" / wnid / "1.JPEG", shade=1)
    dataset = load("imagenet", tmp_path)
    assert dataset.classnames == list(IMAGENET_CLASSNAMES)
    assert [(item.impath.split("/")[-2], item.label) for item in dataset.test] == [
        (wnid, label) for label, wnid in enumerate(wnids)
    ]
    assert dataset.train_x == []


@pytest.mark.parametrize(
    ("file", "damage", "expected"),
    [
        ("", remove, "data prepare imagenet"),
        ("images/train/n01443537", remove, "no folder"),
        ("images/val/n02123045", remove, "class 'tabby cat'"),
        ("images/val", remove, "no folder"),
        ("classnames.txt", with_lines("n01440764 tench", "n01443537"), "got 'n01443537'"),
        ("classnames.txt", with_lines("n01440764 tench", "n09999999 unicorn"), "3 folder(s)"),
    ],
)
def test_an_error_names_the_missing_file(file, damage, expected, tmp_path):
    trees.imagenet(tmp_path)
    damage(tmp_path / "imagenet" / file)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load("imagenet", tmp_path)
    message = str(error.value)
    assert expected in message and "\n" not in message
    assert Path(file).name in message


# --- ImageNet-LT ------------------------------------------------------------------------------------


def test_imagenet_lt_lists_images_of_imagenet(tmp_path):
    entries = trees.imagenet_lt(tmp_path)
    dataset = load("imagenet_lt", tmp_path)
    assert held(dataset, tmp_path / "imagenet" / "images") == entries
    assert dataset.classnames == NAMES
    assert [Counter(item.label for item in dataset.train_x)[label] for label in range(4)] == [6, 3, 1, 1]
    assert all(Path(item.impath).is_file() for item in [*dataset.train_x, *dataset.val, *dataset.test])


@pytest.mark.parametrize("images", ["images", ""])
def test_imagenet_lt_with_its_own_images_and_names(images, tmp_path):
    entries = trees.imagenet_lt(tmp_path)
    shutil.move(tmp_path / "imagenet" / "images", tmp_path / "imagenet_lt" / "images")
    shutil.move(tmp_path / "imagenet" / "classnames.txt", tmp_path / "imagenet_lt")
    if not images:
        for split in ("train", "val"):
            shutil.move(tmp_path / "imagenet_lt" / "images" / split, tmp_path / "imagenet_lt")
    assert held(load("imagenet_lt", tmp_path), tmp_path / "imagenet_lt" / images) == entries


@pytest.mark.parametrize(
    ("file", "damage", "expected"),
    [
        ("ImageNet_LT_train.txt", remove, "no file"),
        ("ImageNet_LT_val.txt", with_lines("train/n02123045/a.JPEG 4"), "line 1: .* 4,"),
    ],
)
def test_a_wrong_list_of_imagenet_lt(file, damage, expected, tmp_path):
    trees.imagenet_lt(tmp_path)
    damage(tmp_path / "imagenet_lt" / file)
    with pytest.raises((ValueError, FileNotFoundError), match=expected) as error:
        load("imagenet_lt", tmp_path)
    assert file in str(error.value)


# --- the archives of ILSVRC2012 ---------------------------------------------------------------------


def tar(path, files):
    """Write an archive of {name: content}."""
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def tar_bytes(path, files):
    tar(path, files)
    content = path.read_bytes()
    path.unlink()
    return content


@pytest.fixture
def archives(tmp_path, monkeypatch):
    """ImageNet's folder with both archives, the list of val and the names; the content of both archives."""
    monkeypatch.setattr(ImageNet, "info", dataclasses.replace(ImageNet.info, classes=len(WORDNET)))
    entries, root = trees.imagenet(tmp_path), tmp_path / "imagenet"
    contents = {path: (root / "images" / path).read_bytes() for items in entries.values() for path, *_ in items}
    shutil.rmtree(root / "images")
    inner = {}
    for wnid in WORDNET:
        files = {path.split("/")[-1]: data for path, data in contents.items() if path.startswith(f"train/{wnid}/")}
        inner[f"{wnid}.tar"] = tar_bytes(root / "inner.tar", files)
    tar(root / "ILSVRC2012_img_train.tar", inner)
    val = {path.split("/")[-1]: data for path, data in contents.items() if path.startswith("val/")}
    tar(root / "ILSVRC2012_img_val.tar", dict(sorted(val.items())))
    write(root / "ImageNet_LT_test.txt", *(f"{path} {label}" for path, label, _ in entries["test"]))
    return root, contents, inner


def laid_out(root):
    images = root / "images"
    files = [path for path in images.rglob("*") if path.is_file()] if images.is_dir() else []
    return {path.relative_to(images).as_posix(): path.read_bytes() for path in files}


def test_the_archives_are_laid_out(archives):
    root, contents, _ = archives
    ImageNet.arrange(root)
    assert laid_out(root) == contents
    assert sorted(path.name for path in (root / "images").iterdir()) == ["train", "val"]
    assert len(load("imagenet", root.parent).train_x) == 24
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    ImageNet.arrange(root)  # no work is left
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_an_archive_with_too_few_classes_is_refused(archives, monkeypatch):
    root, _, inner = archives
    tar(root / "ILSVRC2012_img_train.tar", dict(list(inner.items())[:2]))
    with pytest.raises(ValueError, match=r"ILSVRC2012_img_train\.tar' has 2 .* 4;"):
        ImageNet.arrange(root)
    assert not (root / "images" / "train").exists()


def test_without_archives_there_is_no_work(tmp_path):
    (tmp_path / "imagenet").mkdir()
    ImageNet.arrange(tmp_path / "imagenet")
    assert not list((tmp_path / "imagenet").iterdir())


def test_unpacking_train_resumes_after_an_archive_that_was_cut_short(archives):
    root, contents, _ = archives
    archive = root / "ILSVRC2012_img_train.tar"
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) * 6 // 10])  # within the third class
    with pytest.raises(ValueError, match="download") as error:
        ImageNet.arrange(root)
    assert str(archive) in str(error.value) and "\n" not in str(error.value)
    work = root / "images" / ".train.unpack"
    assert not (root / "images" / "train").exists()
    done = sorted(path.name for path in work.iterdir() if not path.name.startswith("."))
    assert done == ["n01440764", "n01443537"]
    first = next(iter((work / done[0]).iterdir()))
    first.write_bytes(b"is not unpacked again")
    put(work / ".n01484850" / "half.JPEG")
    archive.write_bytes(whole)
    ImageNet.arrange(root)
    assert laid_out(root) == {**contents, f"train/{done[0]}/{first.name}": b"is not unpacked again"}


@pytest.mark.parametrize("where", ["member", "boundary"])
def test_unpacking_val_resumes_after_an_archive_that_was_cut_short(where, archives):
    root, contents, _ = archives
    archive = root / "ILSVRC2012_img_val.tar"
    whole = archive.read_bytes()
    with tarfile.open(archive) as opened:
        member = opened.getmembers()[9]
    archive.write_bytes(whole[: member.offset_data + 40] if where == "member" else whole[: member.offset])
    with pytest.raises(ValueError, match="download") as error:
        ImageNet.arrange(root)
    assert str(archive) in str(error.value)
    assert not (root / "images" / "val").exists()
    archive.write_bytes(whole)
    ImageNet.arrange(root)
    assert laid_out(root) == contents


@pytest.mark.parametrize("name", ["ILSVRC2012_val_99999999.JPEG", "../../evil.JPEG", "notes.txt"])
def test_an_unknown_file_in_the_val_archive_is_refused(name, archives, tmp_path):
    root, contents, _ = archives
    archive, before = root / "ILSVRC2012_img_val.tar", set(tmp_path.rglob("*"))
    tar(archive, {name: b"?", **{path.split("/")[-1]: data for path, data in contents.items()}})
    with pytest.raises(ValueError, match=r"ImageNet_LT_test\.txt") as error:
        ImageNet.arrange(root)
    assert str(archive) in str(error.value) and f"'{name}'" in str(error.value)
    assert not (root / "images" / "val").exists()
    new = (
        {path for path in tmp_path.rglob("*") if path.is_file()}
        - before
        - {root / ".prepare.lock", root / ".prepared.json"}
    )
    assert all((root / "images") in path.parents for path in new)


@pytest.mark.parametrize("evil", [{"../../../evil.JPEG": b"?"}, None])
def test_a_train_archive_with_other_content_is_refused(evil, archives, tmp_path):
    root, _, inner = archives
    content = b"no archive at all" if evil is None else tar_bytes(root / "inner.tar", evil)
    tar(root / "ILSVRC2012_img_train.tar", {**inner, "n09999999.tar": content})
    with pytest.raises(ValueError, match=r"ILSVRC2012_img_train\.tar' is damaged") as error:
        ImageNet.arrange(root)
    assert "\n" not in str(error.value)
    assert not (root / "images" / "train").exists()
    assert not list(tmp_path.rglob("evil*"))


def test_val_needs_its_list(archives):
    root, _, _ = archives
    (root / "ImageNet_LT_test.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"ImageNet_LT_test\.txt"):
        ImageNet.arrange(root)
    assert not (root / "images" / "val").exists()
