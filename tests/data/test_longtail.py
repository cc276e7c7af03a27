"""Tests of Places-LT, iNaturalist 2018 and CIFAR-100-LT: lists, hold-outs, CIFAR's editions, the published sample."""

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import trees
from cifar_tree import python2_pickle
from PIL import Image
from trees import held, load, remove, with_lines

from unskew import config
from unskew.data.dataset import Datum
from unskew.datasets.cifar100_lt import longtail


def test_places_lt_has_the_images_of_its_lists(tmp_path, warned):
    entries = trees.places_lt(tmp_path)
    dataset = load("places_lt", tmp_path)
    assert held(dataset, tmp_path / "places_lt") == entries
    assert dataset.classnames == ["airfield", "airplane_cabin", "zen_garden"]
    assert all(Path(item.impath).is_file() for item in [*dataset.train_x, *dataset.val, *dataset.test])
    assert not warned()


@pytest.mark.parametrize(
    ("name", "file", "damage", "expected"),
    [
        ("places_lt", "Places_LT_val.txt", remove, "no file"),
        ("places_lt", "Places_LT_val.txt", with_lines("train/a/1.jpg 0", "train/a/2.jpg 3"), "line 2"),
        ("places_lt", "Places_LT_test.txt", with_lines("val/a/1.jpg"), "line 1"),
        ("places_lt", "Places_LT_test.txt", with_lines("val/a/1.jpg -1"), "line 1"),
        ("places_lt", "classnames.txt", with_lines("airfield"), "'airfield'"),
        ("inat2018", "iNaturalist18_val.txt", remove, "no file"),
        ("inat2018", "iNaturalist18_train.txt", with_lines("train_val2018/Aves/8142/a.jpg 8142"), "below 4"),
        ("inat2018", "categories.json", remove, "no file"),
        ("inat2018", "categories.json", with_lines('{"id": 0}'), "categories"),
        ("inat2018", "categories.json", with_lines('[{"id": 0}]'), "categories"),
    ],
)
def test_an_error_in_a_list_has_one_line_and_names_the_file(name, file, damage, expected, tmp_path):
    trees.LONGTAILED[name](tmp_path)
    damage(tmp_path / name / file)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load(name, tmp_path)
    message = str(error.value)
    assert file in message and expected in message and "\n" not in message


# --- the hold-out -----------------------------------------------------------------------------------


def test_inat2018_has_no_val(tmp_path):
    entries = trees.inat2018(tmp_path)
    dataset = load("inat2018", tmp_path)
    assert held(dataset, tmp_path / "inat2018") == {**entries, "val": []}
    assert dataset.classnames == ["Ursus arctos", "Amanita muscaria", "Quercus robur", "Ara macao"]


def test_a_hold_out_is_five_percent_of_the_larger_classes(tmp_path):
    entries = trees.inat2018(tmp_path, counts=(60, 20, 19, 1))
    seeds = [load("inat2018", tmp_path, "DATASET.HOLDOUT", 0.05, "SEED", seed) for seed in (1, 2)]
    first, second = (held(dataset, tmp_path / "inat2018") for dataset in seeds)
    assert first == second
    assert Counter(label for _, label, _ in first["val"]) == {0: 3, 1: 1}
    assert not set(first["train"]) & set(first["val"])
    assert set(first["train"]) | set(first["val"]) == set(entries["train"])
    assert first["test"] == entries["test"]
    whole = load("inat2018", tmp_path, "DATASET.HOLDOUT", 0.5)
    assert Counter(item.label for item in whole.val) == {0: 30, 1: 10}


def test_a_hold_out_of_cifar100_lt(tmp_path):
    trees.cifar100(tmp_path, classes=10, each=25)
    dataset = load("cifar100_lt", tmp_path, "DATASET.HOLDOUT", 0.05, "DATASET.IMBALANCE", 10)
    whole = load("cifar100_lt", tmp_path, "DATASET.IMBALANCE", 10)
    large = {label for label, n in Counter(item.label for item in whole.train_x).items() if n >= 20}
    assert Counter(item.label for item in dataset.val) == dict.fromkeys(large, 1)
    assert large == {0}
    assert sorted(item.impath for item in [*dataset.train_x, *dataset.val]) == sorted(i.impath for i in whole.train_x)


def test_a_hold_out_changes_neither_an_existing_val_nor_few_shots(tmp_path):
    trees.places_lt(tmp_path)
    with_it, without = (load("places_lt", tmp_path, "DATASET.HOLDOUT", part) for part in (0.5, 0.0))
    assert held(with_it, tmp_path) == held(without, tmp_path)
    trees.inat2018(tmp_path)
    few = [load("inat2018", tmp_path, "DATASET.HOLDOUT", part, shots=1) for part in (0.5, 0.0)]
    assert held(few[0], tmp_path) == held(few[1], tmp_path)


@pytest.mark.parametrize("part", [-0.1, 1.0, 5.0])
def test_a_hold_out_is_a_fraction(part, tmp_path):
    trees.inat2018(tmp_path)
    with pytest.raises(ValueError, match=f"HOLDOUT is {part}"):
        load("inat2018", tmp_path, "DATASET.HOLDOUT", part)


@pytest.mark.parametrize("name", ["inat2018", "cifar100_lt"])
def test_only_trainers_that_fit_on_val_hold_images_out(name):
    parts = {
        trainer: config.load(name, trainer=trainer).DATASET.HOLDOUT
        for trainer in ("GLA", "Ensemble", "FineTune", "Backdoor", "LinearProbe", "ZeroshotCLIP")
    }
    assert parts == {"GLA": 0.05, "Ensemble": 0.05, **dict.fromkeys(list(parts)[2:], 0.0)}
    assert config.load(name, trainer="GLA").DATASET.LONGTAIL
    assert config.load(name, trainer="GLA").DATASET.NUM_SHOTS == -1


# --- CIFAR-100 --------------------------------------------------------------------------------------


def pixels_of(item):
    """Return the pixels in CIFAR's format: [3072], one channel after the other."""
    return np.asarray(Image.open(item.impath)).transpose(2, 0, 1).reshape(-1)


@pytest.mark.parametrize("edition", ["python", "binary"])
def test_both_editions_of_cifar100(edition, tmp_path):
    found = trees.cifar100(tmp_path, edition, classes=20, each=4)
    dataset = load("cifar100_lt", tmp_path, "DATASET.IMBALANCE", 10)
    assert dataset.classnames == [f"thing_{n:02d}" for n in range(20)]
    assert dataset.val == [] and len(dataset.test) == 20
    for (pixels, labels), items in ((found["test"], dataset.test), (found["train"], dataset.train_x)):
        place = {row.tobytes(): n for n, row in enumerate(pixels)}
        numbers = [place[pixels_of(item).tobytes()] for item in items]  # a changed pixel is a KeyError
        assert [item.label for item in items] == [labels[n] for n in numbers]
        assert len(set(numbers)) == len(items)
    again = load("cifar100_lt", tmp_path, "DATASET.IMBALANCE", 10, "SEED", 9)
    assert held(again, tmp_path) == held(dataset, tmp_path)
    assert not list((tmp_path / "cifar100").glob(".*"))  # no temporary file is left


def test_both_editions_give_the_same_dataset(tmp_path):
    for edition in ("python", "binary"):
        trees.cifar100(tmp_path / edition, edition, classes=20, each=4)
    python, binary = (load("cifar100_lt", tmp_path / edition) for edition in ("python", "binary"))
    assert held(python, tmp_path / "python") == held(binary, tmp_path / "binary")
    assert all((pixels_of(a) == pixels_of(b)).all() for a, b in zip(python.test, binary.test, strict=True))


@pytest.mark.parametrize("imbalance", [10, 50, 100])
def test_the_published_long_tailed_sample(imbalance):
    labels = np.random.RandomState(4).permutation(np.repeat(np.arange(100), 500))
    sample = longtail([Datum(str(n), int(label), 0, "x") for n, label in enumerate(labels)], imbalance)
    np.random.seed(0)  # noqa: NPY002 - as in the published code
    expected = []
    for i in range(100):
        members = np.where(labels == i)[0]
        np.random.shuffle(members)  # noqa: NPY002
        expected += members[: int(500 * (1 / imbalance) ** (i / 99))].tolist()
    assert [int(item.impath) for item in sample] == expected
    assert len(expected) == {10: 19573, 50: 12608, 100: 10847}[imbalance]


@pytest.mark.parametrize("imbalance", [1, 20, 0, -10])
def test_another_imbalance_is_refused(imbalance, tmp_path):
    trees.cifar100(tmp_path, classes=3)
    with pytest.raises(ValueError, match=f"IMBALANCE .* 10, 50, 100; got {imbalance}"):
        load("cifar100_lt", tmp_path, "DATASET.IMBALANCE", imbalance)


class Runs:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


@pytest.mark.parametrize("file", ["train", "test", "meta"])
def test_a_pickle_runs_nothing(file, tmp_path):
    trees.cifar100(tmp_path, classes=3)
    ran, path = tmp_path / "ran", tmp_path / "cifar100" / "cifar-100-python" / file
    path.write_bytes(pickle.dumps({"data": Runs(ran), "fine_label_names": Runs(ran)}, protocol=2))
    with pytest.raises(ValueError, match="exec") as error:
        load("cifar100_lt", tmp_path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert not ran.exists()
    pickle.loads(path.read_bytes())
    assert ran.exists()  # pickle.loads runs it


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("edition", "file", "damage", "names", "expected"),
    [
        ("python", "", remove, "cifar100'", "cifar-100-binary"),
        ("python", "train", cut, "python/train'", "arrays"),
        ("python", "train", remove, "python/train'", ""),
        ("python", "meta", lambda path: path.write_bytes(python2_pickle([1])), "python/meta'", "holds a list"),
        ("python", "meta", lambda path: path.write_bytes(python2_pickle({})), "'train'", "not CIFAR-100's"),
        ("binary", "train.bin", cut, "binary/train.bin'", "cut short"),
        ("binary", "test.bin", remove, "binary/test.bin'", ""),
        ("binary", "test.bin", lambda path: path.write_bytes(b""), "'test'", "not CIFAR-100's"),
        ("binary", "fine_label_names.txt", with_lines("apple"), "'train'", "labels to 2, but 1 names"),
    ],
)
def test_a_damaged_cifar100_is_named(edition, file, damage, names, expected, tmp_path):
    trees.cifar100(tmp_path, edition, classes=3)
    damage(tmp_path / "cifar100" / f"cifar-100-{edition}" / file)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load("cifar100_lt", tmp_path)
    message = str(error.value)
    assert names in message and expected in message and "\n" not in message
