"""Dassl's datasets and its data manager: pickles, class numbering, few-shot draws, loaders."""

import io
import logging
import pickle
import random
import sys
import tarfile
import zipfile
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from serving import Server

from unskew.dassl import data
from unskew.dassl.config import get_cfg_default
from unskew.dassl.data import DATASET_REGISTRY, DataManager, DatasetBase, DatasetWrapper, Datum
from unskew.utils.safe_pickle import read_fewshot

MODULE = "dassl.data.datasets.base_dataset"


class TheirDatum:
    """A stand-in for Dassl's Datum: four attributes behind properties."""

    def __init__(self, impath, label, domain, classname):
        self._impath, self._label, self._domain, self._classname = impath, label, domain, classname


TheirDatum.__module__, TheirDatum.__qualname__ = MODULE, "Datum"


@pytest.fixture
def offer(monkeypatch):
    """Return a function that makes a class importable as Dassl's Datum."""

    def offer(datum):
        for name in ("dassl", "dassl.data", "dassl.data.datasets", MODULE):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        sys.modules[MODULE].Datum = datum

    return offer


@pytest.fixture
def lines(caplog, monkeypatch):
    """Return a function that returns the log lines so far."""
    monkeypatch.setattr(logging.getLogger("unskew"), "propagate", True)
    caplog.set_level("INFO", "unskew")
    return lambda: [record.getMessage() for record in caplog.records]


def write_images(folder, count):
    folder.mkdir(exist_ok=True)
    for i in range(count):
        Image.fromarray(np.full((10, 10, 3), i, np.uint8)).save(folder / f"{i}.png")
    return [str(folder / f"{i}.png") for i in range(count)]


def classes_of(items):
    return sorted({(item.label, item.classname) for item in items})


def labelled(names, first=0, count=4):
    return [Datum(f"{name}-{i}.png", label, 0, name) for label, name in enumerate(names, first) for i in range(count)]


# --- Datum -------------------------------------------------------------------------------------------


def test_datum_has_dassls_attributes():
    item = Datum(impath="a.png", label=np.int64(3), classname="cat")
    assert (item.impath, item.label, item.domain, item.classname) == ("a.png", 3, 0, "cat")
    assert (item._impath, item._label, item._domain, item._classname) == ("a.png", 3, 0, "cat")
    item._label = 5  # how an image is relabelled in place
    assert item.label == 5
    assert Datum("b.png", -1).label == -1  # an image without label
    with pytest.raises(ValueError, match=r"c\.png.*-2"):
        Datum("c.png", -2)
    with pytest.raises(ValueError, match="3"):
        Datum(3)


@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_pickles_go_both_ways(offer, protocol, tmp_path):
    offer(TheirDatum)
    theirs = pickle.dumps({"train": [TheirDatum("a.png", 2, 1, "cat")], "val": []}, protocol)
    offer(Datum)
    (item,) = pickle.loads(theirs)["train"]
    assert type(item) is Datum
    assert repr(item) == repr(Datum("a.png", 2, 1, "cat"))
    item.note = "kept"
    ours = pickle.dumps({"train": [item]}, protocol)
    assert pickle.loads(ours)["train"][0].note == "kept"
    offer(TheirDatum)
    (back,) = pickle.loads(ours)["train"]
    assert type(back) is TheirDatum
    assert vars(back) == {"_impath": "a.png", "_label": 2, "_domain": 1, "_classname": "cat", "note": "kept"}
    (tmp_path / "shot_1-seed_1.pkl").write_bytes(ours)
    assert read_fewshot(tmp_path / "shot_1-seed_1.pkl") == {"train": [("a.png", 2, "cat")]}


# --- DatasetBase -------------------------------------------------------------------------------------


def test_items_with_equal_values_are_different():
    twins = [Datum(impath="a.png", label=0) for _ in range(2)]
    assert len(set(twins)) == 2 and twins.index(twins[1]) == 1


def test_classes_are_those_of_the_training_images():
    """PromptKD trains on all classes and tests on the new half, whose labels start from 0 again."""
    train, test = labelled(["cat", "dog", "emu"]), labelled(["emu"])
    dataset = DatasetBase(train_x=train, val=labelled(["dog"]), test=test)
    assert (dataset.num_classes, dataset.classnames) == (3, ["cat", "dog", "emu"])
    assert dataset.lab2cname == {0: "cat", 1: "dog", 2: "emu"}
    assert (dataset.train_x, dataset.test, dataset.train_u) == (train, test, None)
    assert dataset.templates == ["a photo of a {}."]  # what this project's trainers ask for


def test_a_subset_of_the_classes_relabelled_as_coop_does():
    def subsample(items, labels):
        new = {label: place for place, label in enumerate(labels)}
        return [Datum(i.impath, new[i.label], i.domain, i.classname) for i in items if i.label in new]

    items = labelled(["cat", "dog", "emu", "fox"])
    splits = [subsample(items, [2, 3]) for _ in range(3)]
    dataset = DatasetBase(train_x=splits[0], val=splits[1], test=splits[2])
    assert (dataset.num_classes, dataset.classnames) == (2, ["emu", "fox"])
    assert classes_of(dataset.test) == [(0, "emu"), (1, "fox")]


def test_labels_with_a_gap_count_as_in_dassl():
    dataset = DatasetBase(train_x=labelled(["cat"]) + labelled(["emu"], first=2))
    assert (dataset.num_classes, dataset.classnames, dataset.lab2cname) == (3, ["cat", "emu"], {0: "cat", 2: "emu"})


def test_subclasses_may_use_the_private_attributes():
    class Mine(DatasetBase):
        @staticmethod
        def get_num_classes(data_source):
            return 7

        def __init__(self, items):
            super().__init__(train_x=items, test=items)
            self._test = items[:1]
            self.extra = self._train_x + self._test

    items = labelled(["cat"])
    dataset = Mine(items)
    assert (dataset.num_classes, dataset._num_classes, dataset._lab2cname) == (7, 7, {0: "cat"})
    assert (dataset.test, len(dataset.extra), dataset._classnames) == (items[:1], 5, ["cat"])


def test_no_training_images_is_an_error():
    with pytest.raises(ValueError, match="DatasetBase: train_x"):
        DatasetBase(test=labelled(["cat"]))


def test_domains():
    class Shapes(DatasetBase):
        domains = ("photo", "sketch")

    dataset = Shapes(labelled(["cat"]))
    dataset.check_input_domains(["photo"], ["sketch"])
    with pytest.raises(ValueError, match="'paint'"):
        dataset.check_input_domains(["photo"], ["paint"])
    with pytest.raises(ValueError, match=r"DATASET\.SOURCE_DOMAINS"):
        dataset.check_input_domains([], ["photo"])


def test_fewshot_draws_are_those_of_pythons_global_generator(lines):
    dataset = DatasetBase(labelled(["cat", "dog"], count=9))
    train, val = labelled(["cat", "dog"], count=9), labelled(["dog", "cat"], count=2)
    random.seed(5)
    expected = [item for start in (0, 9) for item in random.sample(train[start : start + 9], 3)]
    repeated = [item for start in (0, 2) for item in random.choices(val[start : start + 2], k=3)]
    random.seed(5)
    assert dataset.generate_fewshot_dataset(train, num_shots=3) == expected
    assert dataset.generate_fewshot_dataset(val, num_shots=3, repeat=True) == repeated
    assert dataset.generate_fewshot_dataset(val, num_shots=3) == val  # too few: all of them
    assert dataset.generate_fewshot_dataset(train, num_shots=-1) is train
    assert lines()[0] == "Creating a 3-shot dataset"
    first, second = dataset.generate_fewshot_dataset(train, val, num_shots=1)
    assert [len(first), len(second)] == [2, 2]
    assert list(dataset.split_dataset_by_label(val)) == [0, 1]
    assert list(dataset.split_dataset_by_domain(val)) == [0]


def test_addresses_of_google_drive():
    for url in ("https://drive.google.com/uc?id=1a-_Z", "https://drive.google.com/file/d/1a-_Z/view?usp=sharing"):
        assert data._source("set.zip", url, from_gdrive=True).urls == ("drive:1a-_Z",)
    assert data._source("set.zip", "https://x.org/?id=3", from_gdrive=False).urls == ("https://x.org/?id=3",)


def packed(kind, files):
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return buffer.getvalue()
    with tarfile.open(fileobj=buffer, mode="w:gz" if kind == "tar.gz" else "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_archives_are_extracted_into_their_folder(tmp_path, kind):
    content = packed(kind, {"images/a/1.png": b"new", "labels.txt": b"0"})
    (tmp_path / "set" / "images" / "b").mkdir(parents=True)
    (tmp_path / "set" / "images" / "b" / "2.png").write_text("was there")
    target = tmp_path / "set" / f"set.{kind}"
    server = Server()
    for _ in range(2):
        address = server.put("/set", content)
        DatasetBase(labelled(["cat"])).download_data(address, str(target), from_gdrive=False)
    server.close()
    assert len(server.log) == 1  # the second time the archive was there
    found = {str(path.relative_to(target.parent)): path.read_bytes() for path in target.parent.rglob("*.*g")}
    assert found == {"images/a/1.png": b"new", "images/b/2.png": b"was there"}
    assert sorted(path.name for path in target.parent.iterdir()) == sorted(["images", "labels.txt", target.name])


def test_a_damaged_archive_is_removed(tmp_path):
    (tmp_path / "set.zip").write_bytes(packed("zip", {"1.png": bytes(1000)})[:200])
    with pytest.raises(ValueError, match=r"set\.zip"):
        DatasetBase(labelled(["cat"])).download_data("http://localhost/", tmp_path / "set.zip", from_gdrive=False)
    assert [path.name for path in tmp_path.iterdir()] == ["set.zip"]


# --- the manager -------------------------------------------------------------------------------------


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    monkeypatch.setattr(DATASET_REGISTRY, "_table", {})
    monkeypatch.setattr(DATASET_REGISTRY, "_package", "")  # a discovery here would be lost with this table

    @DATASET_REGISTRY.register()
    class Digits(DatasetBase):
        def __init__(self, cfg):
            items = [Datum(path, i % 2, i % 2, "ab"[i % 2]) for i, path in enumerate(write_images(tmp_path, 12))]
            super().__init__(train_x=items[:8], train_u=items[:4], val=items[8:], test=items[6:])

    cfg = get_cfg_default()
    cfg.merge_from_list(["DATASET.NAME", "Digits", "INPUT.SIZE", (8, 8), "DATASET.SOURCE_DOMAINS", ["photo"]])
    cfg.merge_from_list(["DATALOADER.TRAIN_X.BATCH_SIZE", 4, "INPUT.TRANSFORMS", ["random_flip", "normalize"]])
    cfg.merge_from_list(["DATALOADER.TEST.BATCH_SIZE", 4])
    return cfg


def test_data_manager(cfg, lines):
    dm = DataManager(cfg)
    assert (dm.num_classes, dm.num_source_domains, dm.lab2cname) == (2, 1, {0: "a", 1: "b"})
    assert (dm._num_classes, dm._num_source_domains, dm._lab2cname) == (2, 1, {0: "a", 1: "b"})
    loaders = (dm.train_loader_x, dm.train_loader_u, dm.val_loader, dm.test_loader)
    assert [len(loader) for loader in loaders] == [2, 1, 1, 2]
    assert next(iter(dm.train_loader_x))["img"].shape == (4, 3, 8, 8)
    said = lines()
    assert said[:-1] == [
        "Loading dataset: Digits",
        "Building transform_train",
        "+ resize to 8x8",
        "+ random flip",
        "+ to torch tensor of range [0, 1]",
        "+ normalization (mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])",
        "Building transform_test",
        "+ resize the smaller edge to 8",
        "+ 8x8 center crop",
        "+ to torch tensor of range [0, 1]",
        "+ normalization (mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])",
    ]
    assert [row.split() for row in said[-1].splitlines()[1:-1]] == [
        ["Dataset", "Digits"],
        ["Source", "['photo']"],
        ["#", "classes", "2"],
        ["#", "train_x", "8"],
        ["#", "train_u", "4"],
        ["#", "val", "4"],
        ["#", "test", "6"],
    ]


def test_the_shots_may_be_none(cfg):
    cfg.DATASET.NUM_SHOTS = None  # a script that draws no sample may set it
    assert len(DataManager(cfg).dataset.train_x) == 8


def test_custom_transforms_and_wrapper(cfg, lines):
    class Wrapper(DatasetWrapper):
        def __getitem__(self, index):
            image = Image.open(self.data_source[index].impath)
            return {"img": self._transform_image(self.transform, image), "shot": index}

    dm = DataManager(cfg, lambda image: torch.ones(1), lambda image: torch.zeros(1), Wrapper)
    assert next(iter(dm.train_loader_x))["img"].tolist() == [[1.0]] * 4
    batch = next(iter(dm.test_loader))
    assert (batch["img"].tolist(), batch["shot"].tolist()) == ([[0.0]] * 4, [0, 1, 2, 3])
    assert lines()[1:3] == ["* Using custom transform for training", "* Using custom transform for testing"]


def test_loaders_draw_from_the_global_generator(cfg):
    dm = DataManager(cfg, lambda image: torch.ones(1))
    own = data.build_data_loader(cfg, "RandomSampler", dm.dataset.train_x, 4, tfm=dm.tfm_train)
    for loader in (dm.train_loader_x, own):
        orders = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            orders.append([index for batch in loader for index in batch["index"].tolist()])
        torch.manual_seed(1)
        plain = torch.utils.data.DataLoader(range(8), 4, sampler=torch.utils.data.RandomSampler(range(8)))
        assert orders[0] == orders[1] == [index for batch in plain for index in batch.tolist()] != orders[2]
    assert own.drop_last and own.batch_size == 4


def test_no_transform(cfg, lines):
    cfg.INPUT.NO_TRANSFORM = True
    assert data.build_transform(cfg) is None
    assert isinstance(DataManager(cfg).test_loader.dataset[0]["img"], Image.Image)
    assert "Note: no transform is applied!" in lines()


def test_an_unknown_dataset_is_an_error_with_suggestions(cfg):
    cfg.DATASET.NAME = "Digit"
    with pytest.raises(ValueError, match="Digits"):
        data.build_dataset(cfg)
