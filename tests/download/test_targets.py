"""Tests of installed targets that a power cut or a person has damaged: empty, missing and cut files are found."""

import io
import json
import os
import shutil
import tarfile
import time

import pytest
from serving import Server

from unskew.download import targets
from unskew.download.install import prepare
from unskew.download.sources import Source

NAMES = [f"images/{label}/{number}.jpg" for label in ("cat", "dog") for number in range(150)]


@pytest.fixture
def source():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        for name in [*NAMES, "meta/labels.txt", "meta/none.txt"]:
            info = tarfile.TarInfo(name)
            info.size = 0 if name.endswith("none.txt") else 100
            tar.addfile(info, io.BytesIO(b"x" * info.size))
    server = Server()
    makes = {"images": "pictures", "meta": "meta"}
    yield Source("a.tar.gz", server.put("/a.tar.gz", buffer.getvalue()), makes=makes)
    server.close()


@pytest.fixture
def installed(source, tmp_path):
    prepare(tmp_path, [source])
    return tmp_path


def images(folder):
    return sorted((folder / "pictures").rglob("*.jpg"))


def check(folder, source, published=0):
    targets.check(folder, [source], published, (".jpg",))


def test_the_note_has_number_and_size_of_each_target(installed, source):
    noted = json.loads((installed / targets.NOTE).read_text())
    assert noted == {"a.tar.gz": {"pictures": [300, 30_000], "meta": [2, 100]}}
    check(installed, source, published=300)  # an empty text file of the archive is none of these faults
    assert prepare(installed, [source]) == []


def empty_all(folder):
    for path in images(folder):
        path.write_bytes(b"")
    return "300 of its 300 files are empty"


def empty_one(folder):
    images(folder)[7].write_bytes(b"")
    return f"1 of its 300 files are empty, such as '{images(folder)[7].relative_to(folder / 'pictures')}'"


def remove_one(folder):
    images(folder)[7].unlink()
    return "299 of 300 files"


def cut_one(folder):
    images(folder)[7].write_bytes(b"x" * 60)
    return "29,960 instead of 30,000 bytes"


def break_link(folder):
    images(folder)[7].unlink()
    (folder / "pictures" / "cat" / "link.jpg").symlink_to("nowhere")
    return "1 of its 300 files are empty, such as 'cat/link.jpg'"


@pytest.mark.parametrize("damage", [empty_all, empty_one, remove_one, cut_one, break_link])
def test_damage_is_found_and_the_folder_to_delete_is_named(damage, installed, source):
    fact = damage(installed)
    with pytest.raises(ValueError, match=rf"'{installed / 'pictures'}' is damaged: .*{fact}.*; delete it"):
        check(installed, source)
    with pytest.raises(ValueError, match=rf"'{installed / 'pictures'}' is damaged: "):
        prepare(installed, [source])


@pytest.mark.parametrize("damage", [empty_all, empty_one, break_link])
def test_empty_images_are_damage_whatever_the_note_says(damage, installed, source):
    fact = damage(installed)
    count = targets.tally(installed / "pictures")
    noted = {"a.tar.gz": {"pictures": [count.files, count.size], "meta": [2, 100]}}
    for content in (json.dumps(noted), None, "", "[1]", '{"a.tar.gz": {"pictures": [1]}}', '{"a.tar.gz": 3}'):
        (installed / targets.NOTE).unlink(missing_ok=True)
        if content is not None:
            (installed / targets.NOTE).write_text(content)
        with pytest.raises(ValueError, match=fact):
            check(installed, source)


def test_without_a_note_the_published_number_counts(installed, source):
    (installed / targets.NOTE).unlink()
    (installed / "meta" / "none.txt").unlink()
    check(installed, source, published=300)
    with pytest.raises(ValueError, match=r"pictures' is not complete.* 300 .* 8,189 "):
        check(installed, source, published=8189)
    for path in images(installed):  # as in an archive of arrays: no images to count
        path.rename(path.with_suffix(".bin"))
    check(installed, source, published=8189)


def test_more_files_are_no_damage(installed, source):
    (installed / "pictures" / "cat" / "mine.jpg").write_bytes(b"mine")
    (installed / "pictures" / ".hidden").write_bytes(b"")
    check(installed, source, published=300)


def test_after_the_folder_is_deleted_it_is_installed_again(installed, source):
    empty_all(installed)
    shutil.rmtree(installed / "pictures")
    assert prepare(installed, [source]) == ["a.tar.gz"]
    check(installed, source, published=300)


def test_an_empty_folder_is_not_installed(source, tmp_path):
    (tmp_path / "pictures").mkdir()
    assert prepare(tmp_path, [source]) == ["a.tar.gz"] and len(images(tmp_path)) == 300


def test_linked_class_folders_count_and_links_in_circles_do_not(installed, source):
    (installed / "pictures" / "cat").rename(installed / "elsewhere")
    (installed / "pictures" / "cat").symlink_to(installed / "elsewhere")
    (installed / "elsewhere" / "circle").symlink_to(installed / "pictures")
    assert targets.tally(installed / "pictures", (".jpg",)).images == 300


def test_counting_is_fast(tmp_path):
    for number in range(20):
        (tmp_path / "set" / str(number)).mkdir(parents=True)
        for image in range(500):
            os.close(os.open(tmp_path / "set" / str(number) / f"{image}.jpg", os.O_CREAT))
    started = time.perf_counter()
    assert len(targets.tally(tmp_path / "set").empty) == 10_000
    assert time.perf_counter() - started < 5  # 0.05 s on a free machine
