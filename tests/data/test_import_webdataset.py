"""Import of WebDataset tars: keys, labels, names, splits, and damaged or hostile members."""

import gzip
import io
import json
import os
import tarfile

import pytest
from import_sources import images, import_images, manifest, picture, tree
from trees import load

from unskew.data.importing import webdataset
from unskew.data.importing.webdataset import WebDataset


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNSKEW_CACHE", str(tmp_path / "cache"))


def member(name, content=b"", kind=tarfile.REGTYPE, link="", size=None):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(content) if size is None else size
    return info, content


def write_tar(path, members, mode="w"):
    """Write a tar of ``(name, content)`` or of members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for entry in members:
            info, content = entry if isinstance(entry[0], tarfile.TarInfo) else member(*entry)
            tar.addfile(info, io.BytesIO(content))
    return path


def samples(first, count, label=lambda n: str(n % 2), image="jpg", other="cls"):
    for n in range(first, first + count):
        yield f"{n:06d}.{image}", picture(n)
        yield f"{n:06d}.{other}", label(n).encode()


def run(tmp_path, *tars, split="", classnames=""):
    import_images(WebDataset([str(tmp_path / tar) for tar in tars], split), tmp_path / "out", classnames)
    return images(tmp_path / "out")


def test_shards_with_braces_and_splits_in_their_names(tmp_path):
    for shard in range(12):
        write_tar(tmp_path / f"train-{shard:03d}.tar", samples(2 * shard, 2))
    write_tar(tmp_path / "val.tar.gz", samples(100, 2), "w:gz")
    write_tar(tmp_path / "x-test-a.tar", samples(200, 2))
    write_tar(tmp_path / "x-test-b.tar", samples(202, 2))
    names = tmp_path / "names.txt"
    names.write_text("great white shark\ncat\n")
    found = run(tmp_path, "train-{000..011}.tar", "val.tar.gz", "x-test-{a,b}.tar", classnames=str(names))
    assert found == {
        f"{split}/{folder}": [picture(first + n) for n in range(label, count, 2)]
        for split, first, count in (("train", 0, 24), ("val", 100, 2), ("test", 200, 4))
        for label, folder in enumerate(("great white shark", "cat"))
    }
    assert load("folder", tmp_path / "out").classnames == ["cat", "great white shark"]
    facts = manifest(tmp_path / "out")
    assert facts["tars"]["test"] == ["x-test-a.tar", "x-test-b.tar"] and len(facts["tars"]["train"]) == 12


def test_wildcards_and_folders_of_splits(tmp_path):
    for n, split in enumerate(("train", "test")):
        for shard in range(2):
            write_tar(tmp_path / split / f"{shard}.tar", samples(100 * n + 2 * shard, 2))
    found = run(tmp_path, "*/*.tar")
    assert {folder: len(content) for folder, content in found.items()} == {
        f"{split}/{label}": 2 for split in ("train", "test") for label in (0, 1)
    }


def test_patterns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a08", "a09", "a10", "b", "{b}", "c1", "c2"):
        (tmp_path / name).touch()

    def found(*patterns):
        return [str(path) for path in webdataset.find_tars(patterns)]

    assert found("a{08..10}") == ["a08", "a09", "a10"] == found("a*")
    assert found("{b}", "b", "b") == ["{b}", "b"]
    assert found("c{2..1}") == ["c2", "c1"] == found("{c2,c1}")
    for pattern in ("a{08..11}", "d*", "https://x.org/a.tar", "pipe:true"):
        with pytest.raises(FileNotFoundError):
            found(pattern)
    with pytest.raises(ValueError, match="999999999"):
        found("{0..999999999999}")


@pytest.mark.parametrize(
    ("other", "label", "names"),
    [
        ("cls", lambda n: ("cat", "dog")[n % 2], ["cat", "dog"]),
        ("txt", lambda n: ("cat\n", "dog")[n % 2], ["cat", "dog"]),
        ("json", lambda n: json.dumps({"label": n % 2, "classname": ("wolf", "ape/man")[n % 2]}), ["ape/man", "wolf"]),
        ("json", lambda n: json.dumps({"cls": f"c{n % 2}", "width": 8}), ["c0", "c1"]),
        ("json", lambda n: json.dumps({"class_name": ("a", "b")[n % 2]}), ["a", "b"]),
        ("json", lambda n: json.dumps(n % 2), ["0", "1"]),
    ],
)
def test_labels_and_names_of_each_kind(other, label, names, tmp_path):
    write_tar(tmp_path / "a.tar", samples(0, 8, label, other=other))
    run(tmp_path, "a.tar")
    assert load("folder", tmp_path / "out").classnames == names


def test_names_in_json_beside_numbers_in_cls_and_captions_that_are_no_labels(tmp_path):
    members = []
    for n in range(8):
        members += [
            (f"d.x/{n}.JPG", picture(n)),
            (f"d.x/{n}.txt", f"a photo,\nnumber {n}".encode()),
            (f"d.x/{n}.json", json.dumps({"label_name": ("a", "b")[n % 2]}).encode()),
            (f"d.x/{n}.cls", str(n % 2).encode()),
            (f"d.x/{n}.emb.npy", b"\x80not read"),
        ]
    write_tar(tmp_path / "a.tar", [*members, ("README", b"x"), ("d.x/._1.jpg", b"junk"), ("only.npy", b"x")])
    found = run(tmp_path, "a.tar")
    assert found == {"train/a": [picture(n) for n in (0, 2, 4, 6)], "train/b": [picture(n) for n in (1, 3, 5, 7)]}


GOOD = list(samples(0, 4))
TOO_LARGE = webdataset._LARGEST + 1
HOSTILE = {
    "an absolute path": ([("/tmp/x.jpg", b"x"), ("/tmp/x.cls", b"0")], "/tmp/x.jpg"),
    "a path above": ([("../x.jpg", b"x"), ("../x.cls", b"0")], r"\.\./x.jpg"),
    "a symbolic link": ([member("9.jpg", kind=tarfile.SYMTYPE, link="/etc/passwd"), ("9.cls", b"0")], "9.jpg"),
    "a hard link": ([member("9.jpg", kind=tarfile.LNKTYPE, link="000000.jpg"), ("9.cls", b"0")], "9.jpg"),
    "a device": ([member("9.jpg", kind=tarfile.CHRTYPE)], "9.jpg"),
    "a pipe": ([member("9.jpg", kind=tarfile.FIFOTYPE)], "9.jpg"),
    "two images": ([("9.jpg", b"x"), ("9.png", b"y"), ("9.cls", b"0")], "two images.*9.png"),
    "two labels": ([("9.jpg", b"x"), ("9.cls", b"0"), ("9.cls", b"1")], r"two \.cls"),
    "the same image twice": ([("9.jpg", b"x"), ("9.jpg", b"y"), ("9.cls", b"0")], "two images"),
    "no label": ([("9.jpg", b"x")], "'9'.* no label"),
    "no image": ([("9.cls", b"0")], "'9'.* no image"),
    "a label apart from its image": ([("9.jpg", b"x"), ("8.jpg", b"x"), ("8.cls", b"0"), ("9.cls", b"0")], "'9'"),
    "a binary label": ([("9.jpg", b"x"), ("9.cls", b"\xff\xfe")], "'9'"),
    "a damaged json": ([("9.jpg", b"x"), ("9.json", b"[" * 100_000)], "'9'.*json"),
    "a list as label": ([("9.jpg", b"x"), ("9.json", b'{"label": [1, 2]}')], "'9'.*json"),
    "a fraction as label": ([("9.jpg", b"x"), ("9.json", b'{"label": 1.5}')], "'9'.*json"),
    "words beside numbers": ([("9.jpg", b"x"), ("9.cls", b"cat")], "'cat'"),
    "two names": (
        [
            *(("7.jpg", b"x"), ("7.json", b'{"label": 0, "classname": "a"}')),
            *(("9.jpg", b"x"), ("9.json", b'{"label": 0, "classname": "b"}')),
        ],
        "'a' and 'b'",
    ),
}


@pytest.mark.parametrize("damage", HOSTILE)
def test_a_hostile_member_is_one_line_and_nothing_is_written(damage, tmp_path):
    members, match = HOSTILE[damage]
    write_tar(tmp_path / "a.tar", [*GOOD, *members])
    refused(tmp_path, match)


def refused(tmp_path, match, name="a.tar"):
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=match) as error:
        import_images(WebDataset([str(tmp_path / name)]), tmp_path / "deep" / "out")
    assert "\n" not in str(error.value)
    assert tree(tmp_path) == before and not (tmp_path / "deep").exists()


def test_cut_and_foreign_files_are_one_line(tmp_path):
    whole = write_tar(tmp_path / "a.tar", samples(0, 40)).read_bytes()
    packed = gzip.compress(whole)
    for content in (whole[:3000], b"no tar" * 1000, b"", packed[:1000], packed[:-9] + b"\0" * 9, b"\x1f\x8bx"):
        (tmp_path / "a.tar").write_bytes(content)
        refused(tmp_path, "a.tar")


def test_bombs_are_refused_early(tmp_path, monkeypatch):
    """A sparse file, a label of 300 MB, and a gzip of zeros; none of them is kept in memory."""
    sparse = tarfile.TarInfo("9.jpg")
    sparse.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(10**12), "GNU.sparse.numblocks": "1"}
    write_tar(tmp_path / "a.tar", [*GOOD, (sparse, b"")])
    refused(tmp_path, "9.jpg")
    monkeypatch.setattr(webdataset, "_LARGEST", 1000)
    write_tar(tmp_path / "a.tar", [*GOOD, ("9.jpg", b"x"), ("9.cls", b"0" * 1001)])
    refused(tmp_path, "9.cls.*1000")
    head = tarfile.TarInfo("9.bin")
    head.size = 4 * 2**30
    (tmp_path / "a.tar").write_bytes(gzip.compress(head.tobuf() + bytes(10**6)))
    refused(tmp_path, "too much|more than")


def test_the_split_must_be_clear(tmp_path):
    for name in ("train-0.tar", "other.tar"):
        write_tar(tmp_path / name, GOOD)
    with pytest.raises(ValueError, match=r"other\.tar.*--split"):
        run(tmp_path, "train-0.tar", "other.tar")
    with pytest.raises(ValueError, match=r"--split.*'middle'"):
        run(tmp_path, "other.tar", split="middle")
    assert set(run(tmp_path, "other.tar", split="validation")) == {"val/0", "val/1"}
    assert os.path.isdir(tmp_path / "out" / "val")
