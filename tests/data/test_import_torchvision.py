"""Import of torchvision's dataset classes from tiny files in their real formats; nothing reaches a network."""

import hashlib
import struct

import numpy as np
import pytest
import torchvision
from cifar_tree import python2_pickle
from import_sources import images, import_images, manifest, picture
from PIL import Image
from trees import load

from unskew.data.importing.torchvision import TorchVision

vision = torchvision.datasets


@pytest.fixture(autouse=True)
def _own_cache_and_no_network(tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no network")

    monkeypatch.setenv("UNSKEW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("socket.create_connection", unreachable)


def run(name, tmp_path):
    import_images(TorchVision(name, tmp_path / "data"), tmp_path / "out")
    return images(tmp_path / "out")


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return hashlib.md5(content).hexdigest()


def pixels(content):
    return np.asarray(Image.open(content))


def test_cifar10_becomes_lossless_png(tmp_path, monkeypatch):
    folder, rng, found = tmp_path / "data" / "cifar-10-batches-py", np.random.RandomState(0), {}
    for split, name in (("train_list", "data_batch_1"), ("test_list", "test_batch")):
        data, labels = rng.randint(0, 256, (6, 3072)).astype(np.uint8), [0, 1, 2, 0, 1, 2]
        md5 = put(folder / name, python2_pickle({"data": data, "labels": labels}))
        monkeypatch.setattr(vision.CIFAR10, split, [[name, md5]])
        found[name] = data.reshape(6, 3, 32, 32).transpose(0, 2, 3, 1)
    md5 = put(folder / "batches.meta", python2_pickle({"label_names": ["plane", "car", "bird"]}))
    monkeypatch.setattr(vision.CIFAR10, "meta", {**vision.CIFAR10.meta, "md5": md5})
    run("CIFAR10", tmp_path)
    for split, name in (("train", "data_batch_1"), ("test", "test_batch")):
        for n, expected in enumerate(found[name]):
            path = tmp_path / "out" / split / ("plane", "car", "bird")[n % 3] / f"{n:08d}.png"
            assert (pixels(path) == expected).all()
    facts = manifest(tmp_path / "out")
    assert {split: entry["from"] for split, entry in facts["splits"].items()} == {
        "train": "train=True",
        "test": "train=False",
    }
    assert facts["versions"]["torchvision"] == torchvision.__version__.split("+")[0]


def test_mnist_in_its_idx_files(tmp_path):
    folder, rng, found = tmp_path / "data" / "MNIST" / "raw", np.random.RandomState(0), {}
    for split, name, count in (("train", "train", 20), ("test", "t10k", 10)):
        data, labels = rng.randint(0, 256, (count, 28, 28)).astype(np.uint8), np.arange(count, dtype=np.uint8) % 10
        put(folder / f"{name}-images-idx3-ubyte", struct.pack(">4i", 2051, count, 28, 28) + data.tobytes())
        put(folder / f"{name}-labels-idx1-ubyte", struct.pack(">2i", 2049, count) + labels.tobytes())
        found[split] = data
    run("MNIST", tmp_path)
    for split, data in found.items():
        for n, expected in enumerate(data):
            (path,) = (tmp_path / "out" / split).glob(f"*/{n:08d}.png")
            assert path.parent.name.startswith(str(n % 10)) and (pixels(path) == expected).all()
    assert load("folder", tmp_path / "out").classnames[3] == "3 - three"


def test_eurosat_and_other_classes_with_a_loader_keep_their_files(tmp_path):
    """Files that cannot be decoded show that no image is read and encoded again."""
    content = {}
    for name in ("Forest", "River"):
        for n in range(3):
            content.setdefault(f"train/{name}", []).append(b"\xff\xd8" + f"{name} {n}".encode())
            put(tmp_path / "data" / "eurosat" / "2750" / name / f"{n}.jpg", content[f"train/{name}"][n])
    assert run("EuroSAT", tmp_path) == content
    facts = manifest(tmp_path / "out")["splits"]["train"]
    assert (facts["from"], len(facts["unreadable"])) == ("all", 6)


def test_a_class_with_three_splits(tmp_path):
    """DTD has files of splits, and its class names are folders."""
    root = tmp_path / "data" / "dtd" / "dtd"
    content = {}
    for place, split in enumerate(("train", "val", "test")):
        rows = []
        for n, name in enumerate(("banded", "dotted") * 2):
            rows.append(f"{name}/{name}_{place}{n}.jpg")
            content.setdefault(f"{split}/{name}", []).append(picture(10 * place + n))
            put(root / "images" / rows[-1], picture(10 * place + n))
        put(root / "labels" / f"{split}1.txt", "\n".join(rows).encode())
    assert run("DTD", tmp_path) == content


def test_classes_without_a_loader_that_list_their_files_keep_them(tmp_path):
    """Oxford-IIIT Pet has the splits trainval and test, and converts its images."""
    root, content = tmp_path / "data" / "oxford-iiit-pet", {}
    for split, file, first in (("train", "trainval", 0), ("test", "test", 50)):
        rows = []
        for n in range(4):
            name = ("Abyssinian", "great_pyrenees")[n % 2]
            rows.append(f"{name}_{first + n} {n % 2 + 1} 1 1")
            put(root / "images" / f"{name}_{first + n}.jpg", picture(first + n))
            content.setdefault(f"{split}/{('Abyssinian', 'Great Pyrenees')[n % 2]}", []).append(picture(first + n))
        put(root / "annotations" / f"{file}.txt", "\n".join(rows).encode())
    (root / "annotations" / "trimaps").mkdir()
    assert run("OxfordIIITPet", tmp_path) == content
    assert manifest(tmp_path / "out")["splits"]["train"]["from"] == "split=trainval"


def test_images_that_are_opened_lazily_keep_their_files(tmp_path):
    """Caltech-101 has no loader and no list of files, but its items know their file."""
    content = {}
    for name in ("accordion", "airplanes"):
        for n in range(1, 4):
            content.setdefault(f"train/{name}", []).append(picture(len(content) * 10 + n))
            path = tmp_path / "data" / "caltech101" / "101_ObjectCategories" / name / f"image_{n:04d}.jpg"
            put(path, content[f"train/{name}"][-1])
    (tmp_path / "data" / "caltech101" / "Annotations").mkdir()
    (tmp_path / "data" / "caltech101" / "101_ObjectCategories" / "BACKGROUND_Google").mkdir()
    assert run("Caltech101", tmp_path) == content


def test_items_of_a_class_without_files_and_names(tmp_path, monkeypatch, warned):
    class FakeData(vision.FakeData):
        def __init__(self, transform=None):
            super().__init__(size=12, image_size=(3, 6, 5), num_classes=3)

    monkeypatch.setattr(vision, "FakeData", FakeData)
    run("FakeData", tmp_path)
    assert any("--classnames" in line for line in warned())
    for n in range(12):
        image, label = FakeData()[n]
        assert (pixels(tmp_path / "out" / "train" / str(label) / f"{n:08d}.png") == np.asarray(image)).all()


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("cifar10", "CIFAR10"),
        ("Nothing", "'Nothing'"),
        ("VisionDataset", "'VisionDataset'"),
        ("EMNIST", "split"),
        ("CocoDetection", "annFile"),
        ("CIFAR100", "--root"),
        ("SVHN", "--root"),
        ("FER2013", "--root"),
    ],
)
def test_a_class_that_cannot_be_imported_is_one_line(name, match, tmp_path):
    with pytest.raises(ValueError, match=match) as error:
        run(name, tmp_path)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_items_that_are_no_image_and_label_are_refused(tmp_path, monkeypatch):
    class Boxes(vision.FakeData):
        def __init__(self, transform=None):
            super().__init__(size=4, image_size=(3, 6, 5))

        def __getitem__(self, index):
            return super().__getitem__(index)[0], {"boxes": []}

    monkeypatch.setattr(vision, "FakeData", Boxes)
    with pytest.raises(ValueError, match="boxes"):
        run("FakeData", tmp_path)
    monkeypatch.setattr(Boxes, "__getitem__", lambda self, index: ("x", 1, 2))
    with pytest.raises(ValueError, match="FakeData"):
        run("FakeData", tmp_path)


def test_splits_that_number_their_classes_differently_are_refused(tmp_path, monkeypatch):
    """A class that numbers the folders of each split by themselves shifts labels where a folder is missing."""

    class FakeData(vision.FakeData):
        def __init__(self, train=True):
            super().__init__(size=4, image_size=(3, 6, 5), num_classes=2)
            self.classes = ["cat", "dog", "owl"] if train else ["dog", "owl"]

    monkeypatch.setattr(vision, "FakeData", FakeData)
    with pytest.raises(ValueError, match=r"test.*label 0"):
        run("FakeData", tmp_path)
