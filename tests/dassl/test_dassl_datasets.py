"""The datasets of Dassl 0.6.3 on small trees: items, order, draws, names and error messages."""

import importlib
import importlib.util
import json
import os
import pickle
import random
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from dassl_trees import (
    CASES,
    below,
    camelyon17,
    case,
    dataset_cfg,
    described,
    digits,
    domainnet,
    iwildcam,
    pacs,
    stl10,
    subset,
    touch,
    write_all,
    write_list,
)

from unskew.dassl import datasets
from unskew.dassl.data import DATASET_REGISTRY, DatasetBase, Datum, build_dataset
from unskew.dassl.datasets import da, dg, digit5, digit_single, wilds
from unskew.utils.registry import Registry

# Each dataset with its module in Dassl, its folder and its domains.
FACTS = {
    "Office31": ("da.office31", "office31", "amazon webcam dslr"),
    "OfficeHome": ("da.office_home", "office_home", "art clipart product real_world"),
    "VisDA17": ("da.visda17", "visda17", "synthetic real"),
    "DomainNet": ("da.domainnet", "domainnet", "clipart infograph painting quickdraw real sketch"),
    "miniDomainNet": ("da.mini_domainnet", "domainnet", "clipart painting real sketch"),
    "Digit5": ("da.digit5", "digit5", "mnist mnist_m svhn syn usps"),
    "CIFARSTL": ("da.cifarstl", "cifar_stl", "cifar stl"),
    "PACS": ("dg.pacs", "pacs", "art_painting cartoon photo sketch"),
    "VLCS": ("dg.vlcs", "VLCS", "caltech labelme pascal sun"),
    "OfficeHomeDG": ("dg.office_home_dg", "office_home_dg", "art clipart product real_world"),
    "DigitsDG": ("dg.digits_dg", "digits_dg", "mnist mnist_m svhn syn"),
    "DigitSingle": ("dg.digit_single", "digit5", "mnist mnist_m svhn syn usps"),
    "CIFAR10C": ("dg.cifar_c", "", "cifar10 cifar10_c"),
    "CIFAR100C": ("dg.cifar_c", "", "cifar100 cifar100_c"),
    "Camelyon17": ("dg.wilds.camelyon17", "camelyon17_v1.0", ""),
    "FMoW": ("dg.wilds.fmow", "fmow_v1.1", ""),
    "IWildCam": ("dg.wilds.iwildcam", "iwildcam_v2.0", ""),
    "CIFAR10": ("ssl.cifar", "cifar10", ""),
    "CIFAR100": ("ssl.cifar", "cifar100", ""),
    "SVHN": ("ssl.svhn", "svhn", ""),
    "STL10": ("ssl.stl10", "stl10", ""),
}


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """Return a folder with the tree of every dataset."""
    root = tmp_path_factory.mktemp("trees")
    write_all(root)
    return root


def build(root, name, source=(), target=(), **keys):
    return build_dataset(dataset_cfg(root, case(name, source, target, **keys)))


def splits(dataset, root):
    """Return {split: sorted items with relative paths} without missing splits."""
    named = {name: getattr(dataset, name) for name in ("train_x", "train_u", "val", "test")}
    return {name: sorted(below(root, items)) for name, items in named.items() if items is not None}


def files(folder):
    """Return the names in a folder in the order of the file system, without hidden ones."""
    return [name for name in os.listdir(folder) if not name.startswith(".")]


# --- names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FACTS)
def test_names_folders_and_domains(name):
    _, folder, domains = FACTS[name]
    cls = getattr(datasets, name)
    assert DATASET_REGISTRY.get(name) is cls
    assert (cls.dataset_dir, list(cls.domains)) == (folder, domains.split())


def test_imports_from_all_modules_of_dassl():
    lines = ["from unskew.dassl import finder", "finder.install(force=True)", "from dassl.data import datasets"]
    for name, (module, *_) in FACTS.items():
        parts = module.split(".")
        for place in ("", *(f".{'.'.join(parts[:n])}" for n in range(1, len(parts) + 1))):
            lines += [f"from dassl.data.datasets{place} import {name}"]
            lines += [f"assert {name} is datasets.{name} is datasets.DATASET_REGISTRY.get('{name}')"]
    lines += ["from dassl.data.datasets.da.digit5 import SVHN, load_mnist", "assert SVHN['test'] == 'test_images'"]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)


def test_the_registry_has_the_order_of_dassl():
    expected = (
        "Digit5 VisDA17 CIFARSTL Office31 DomainNet OfficeHome miniDomainNet PACS VLCS FMoW IWildCam Camelyon17 "
        "CIFAR10C CIFAR100C DigitsDG DigitSingle OfficeHomeDG CIFAR10 CIFAR100 SVHN STL10"
    )
    assert [name for name in DATASET_REGISTRY.registered_names() if name in FACTS] == expected.split()


def test_a_class_of_a_script_replaces_an_offered_one():
    registry = Registry("DATASET")
    registry.offer(dg.PACS)
    assert registry.get("PACS") is dg.PACS
    theirs = registry.register(type("PACS", (DatasetBase,), {}))
    registry.offer(dg.PACS)
    assert registry.get("PACS") is theirs
    with pytest.raises(KeyError, match="PACS"):
        registry.register(type("PACS", (), {}))


# --- domain adaptation -------------------------------------------------------------------------------


def test_office31_numbers_domains_and_sorted_classes(trees):
    dataset = build(trees, "Office31", ["webcam", "amazon"], ["dslr"])
    expected = [
        (f"office31/{domain}/{name}/{file}", label, number, name)
        for number, domain in enumerate(["webcam", "amazon"])
        for label, name in enumerate(["Bike", "Mug", "back_pack"])
        for file in files(trees / "office31" / domain / name)
    ]
    assert below(trees, dataset.train_x) == expected and len(expected) == 18
    assert below(trees, dataset.test) == below(trees, dataset.train_u)
    assert {(item.label, item.domain, item.classname) for item in dataset.test} == {
        *((0, 0, "Bike"), (1, 0, "Mug"), (2, 0, "back_pack"))
    }
    assert (dataset.val, dataset.classnames) == (None, ["Bike", "Mug", "back_pack"])
    assert dataset.dataset_dir == str(trees / "office31")


def test_office_home_has_names_in_lower_case(trees):
    dataset = build(trees, "OfficeHome", ["art"], ["clipart"])
    assert dataset.lab2cname == {0: "bike", 1: "mug", 2: "back_pack"}
    assert dataset.test[0].impath.split("/")[-3:-1] == ["clipart", "Bike"]


def test_visda17_always_trains_on_synthetic_images(trees):
    for source, target in (("synthetic", "real"), ("real", "synthetic")):
        dataset = build(trees, "VisDA17", [source], [target])
        expected = {
            part: [
                (f"visda17/{folder}/{name}/{folder}_{n}.png", label, 0, name)
                for label, name in enumerate(["plane", "bus"])
                for n in range(3)
            ]
            for part, folder in (("train_x", "train"), ("train_u", "validation"), ("test", "validation"))
        }
        assert {part: below(trees, getattr(dataset, part)) for part in expected} == expected


def test_domainnet_reads_its_lists(trees):
    dataset = build(trees, "DomainNet", ["quickdraw", "clipart"], ["infograph"])

    def listed(part, *domains):
        return [
            (f"domainnet/{domain}/{name}/{part}_{n}.jpg", label, number, name)
            for number, domain in enumerate(domains)
            for label, name in enumerate(["zebra", "ant", "bus"])
            for n in (2, 0, 1)
        ]

    assert below(trees, dataset.train_x) == listed("train", "quickdraw", "clipart")
    assert below(trees, dataset.val) == listed("test", "quickdraw", "clipart")
    assert below(trees, dataset.train_u) == listed("train", "infograph")
    assert below(trees, dataset.test) == listed("test", "infograph")
    mini = build(trees, "miniDomainNet", ["sketch"], ["real"])
    assert below(trees, mini.train_x) == listed("train", "sketch")[:6]
    assert (mini.val, mini.classnames) == (None, ["zebra", "ant"])


def test_cifar_stl_takes_labels_from_folders(trees):
    dataset = build(trees, "CIFARSTL", ["stl"], ["cifar"])
    folders = files(trees / "cifar_stl" / "stl" / "train")
    expected = [
        (f"cifar_stl/stl/train/{folder}/{file}", int(folder[0]), 0, "")
        for folder in folders
        for file in files(trees / "cifar_stl" / "stl" / "train" / folder)
    ]
    assert below(trees, dataset.train_x) == expected
    assert {Path(item.impath).parts[-4:-2] for item in dataset.test} == {("cifar", "test")}


def test_digit5_draws_with_the_global_generator(tmp_path, monkeypatch):
    assert digit5.DRAWN == {"train": 25_000, "test": 9_000}
    monkeypatch.setattr(digit5, "DRAWN", {"train": 25, "test": 9})
    digits(tmp_path, [("mnist", 32, 11), ("syn", 31, 13), ("usps", 7, 3)])

    def drawn(domain, part, count):
        return random.sample(files(tmp_path / "digit5" / domain / part), count)

    random.seed(3)
    train_x, train_u = drawn("mnist", "train_images", 25), drawn("syn", "train_images", 25)
    test = drawn("syn", "test_images", 9)
    random.seed(3)
    dataset = build(tmp_path, "Digit5", ["usps", "mnist"], ["syn"])
    usps = files(tmp_path / "digit5" / "usps" / "train_images") * 3
    assert [Path(item.impath).name for item in dataset.train_x] == usps + train_x
    assert [Path(item.impath).name for item in dataset.train_u] == train_u
    assert [Path(item.impath).name for item in dataset.test] == test
    for item in dataset.train_x:
        assert (str(item.label), item.classname) == (item.impath[-5],) * 2
    assert [dataset.train_x[i].domain for i in (0, 20, 21)] == [0, 0, 1]


def test_digit5_needs_enough_images(trees):
    with pytest.raises(ValueError, match=r"mnist/train_images' has 5 images.*25000"):
        build(trees, "Digit5", ["mnist"], ["usps"])


def test_the_two_modules_of_digits_read_differently(tmp_path, monkeypatch):
    assert digit_single.FIRST == 10_000
    monkeypatch.setattr(digit_single, "FIRST", 10)
    digits(tmp_path, [("mnist", 11, 4), ("usps", 11, 4)])
    folder = tmp_path / "digit5"
    names = files(folder / "mnist" / "train_images")
    first = digit_single.load_mnist(str(folder / "mnist"))
    assert [os.path.basename(path) for path, _ in first] == names[:10]
    assert len(digit_single.load_usps(str(folder / "usps"))) == 11
    assert len(digit5.load_usps(str(folder / "usps"))) == 33
    assert len(digit5.load_usps(str(folder / "usps"), split="test")) == 4
    assert len(digit5.read_image_list(str(folder / "mnist" / "test_images"), n_max=2, n_repeat=2)) == 4
    dataset = build(tmp_path, "DigitSingle", ["mnist"], ["usps"])
    assert [len(dataset.train_x), len(dataset.val), len(dataset.test)] == [10, 4, 4]
    assert set(dataset.lab2cname.values()) == {""}


# --- domain generalisation ---------------------------------------------------------------------------


def test_pacs_skips_its_damaged_image(trees):
    dataset = build(trees, "PACS", ["sketch"], ["photo", "sketch"])
    assert "sketch/dog/n02103406_4068-1.png 1" in (trees / "pacs/splits/sketch_train_kfold.txt").read_text()

    def listed(domain, part, number=0):
        return [
            (f"pacs/images/{domain}/{name}/{part}_{n}.png", label, number, name)
            for label, name in enumerate(["dog", "elephant"])
            for n in range(2)
        ]

    assert below(trees, dataset.train_x) == listed("sketch", "train")
    assert below(trees, dataset.val) == listed("sketch", "crossval")
    assert below(trees, dataset.test) == [
        *(*listed("photo", "train"), *listed("photo", "crossval")),
        *(*listed("sketch", "train", 1), *listed("sketch", "crossval", 1)),
    ]


def test_vlcs_reads_only_jpg_files_and_has_no_names(trees):
    dataset = build(trees, "VLCS", ["pascal"], ["sun", "caltech"])
    expected = [
        (f"VLCS/{folder}/test/{label}/{file}", label, number, "")
        for number, folder in enumerate(["SUN", "CALTECH"])
        for label in range(3)
        for file in files(trees / "VLCS" / folder / "test" / str(label))
        if file.endswith(".jpg")
    ]
    assert below(trees, dataset.test) == expected and len(expected) == 18
    assert {Path(item.impath).parts[-4:-2] for item in dataset.val} == {("PASCAL", "crossval")}


def test_a_domain_of_digits_dg_and_office_home_dg_has_a_train_and_a_val_part(trees):
    dataset = build(trees, "OfficeHomeDG", ["art", "product"], ["clipart"])
    assert [len(dataset.train_x), len(dataset.val), len(dataset.test)] == [12, 12, 12]
    assert dataset.classnames == ["alarm_clock", "bike"]
    assert [Path(item.impath).parts[-3] for item in dataset.test] == ["train"] * 6 + ["val"] * 6
    assert [item.domain for item in dataset.val] == [0] * 6 + [1] * 6
    read = dg.DigitsDG.read_data(str(trees / "office_home_dg"), ["art", "product"], "val")
    assert below(trees, read) == below(trees, dataset.val)


def test_cifar10c_trains_on_clean_images(trees):
    keys = {"CIFAR_C_TYPE": "fog", "CIFAR_C_LEVEL": 3}
    dataset = build(trees, "CIFAR10C", ["cifar10"], ["cifar10_c"], **keys)
    assert splits(dataset, trees) == {
        "train_x": sorted(
            (f"cifar10/train/{name}/{file}", label, 0, "")
            for label, name in enumerate(["ant", "cat"])
            for file in files(trees / "cifar10" / "train" / name)
        ),
        "test": sorted(
            (f"cifar10_c/fog/3/{name}/{file}", label, 0, "")
            for label, name in enumerate(["ant", "cat"])
            for file in files(trees / "cifar10_c" / "fog" / "3" / name)
        ),
    }
    assert dataset.dataset_dir == str(trees)


def test_archives_beside_the_folder_are_extracted(tmp_path):
    pacs(tmp_path / "made")
    with zipfile.ZipFile(tmp_path / "pacs.zip", "w") as archive:
        for path in (tmp_path / "made").rglob("*.*"):
            archive.write(path, path.relative_to(tmp_path / "made"))
    dataset = build(tmp_path, "PACS", ["art_painting"], ["photo"])
    assert len(dataset.train_x) == 4 and Path(dataset.train_x[0].impath).is_relative_to(tmp_path / "pacs")
    assert described(build(tmp_path, "PACS", ["art_painting"], ["photo"])) == described(dataset)


# --- WILDS -------------------------------------------------------------------------------------------


def test_images_of_wilds_subsets():
    """The columns are those of the package wilds; domains are numbered per split in the order of a set."""
    reader = object.__new__(wilds.FMoW)
    reader.dataset_dir, reader.label_to_name = "/data/fmow_v1.1", reader.load_classnames()
    columns = {"full_idxs": [4, 5, 9], "y_array": [61, 0, 17], "metadata_array": [(0, 3, 61), (2, 1, 0), (0, 3, 17)]}
    items = reader.read_data(subset([2, 1], **columns))
    numbers = {domain: number for number, domain in enumerate({3, 33})}
    assert [(i.impath, i.label, i.domain, i.classname) for i in items] == [
        ("/data/fmow_v1.1/images/rgb_img_9.png", 17, numbers[3], "fire_station"),
        ("/data/fmow_v1.1/images/rgb_img_5.png", 0, numbers[33], "airport"),
    ]
    reader.relabel_domain = False
    assert [item.domain for item in reader.read_data(subset([0, 1], **columns))] == [3, 33]


def test_classes_of_iwildcam_and_fmow(tmp_path):
    iwildcam(tmp_path)
    reader = object.__new__(wilds.IWildCam)
    reader.dataset_dir = str(tmp_path / "iwildcam_v2.0")
    assert reader.load_classnames() == {0: "empty", 1: "tayassu pecari", 2: "deer, red"}
    assert (len(wilds.CATEGORIES), wilds.CATEGORIES[0], wilds.CATEGORIES[-1]) == (62, "airport", "zoo")
    assert wilds.CATEGORIES == sorted(wilds.CATEGORIES)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-pickle",)


def preloaded(root, content):
    folder = root / "camelyon17_v1.0"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "zhou_preloaded.pkl").write_bytes(pickle.dumps(content))


def theirs(path, label, domain):
    """Return an item that pickles as Dassl's."""
    return Datum(str(path), label, domain, ("healthy tissue", "tumor tissue")[label])


def test_the_list_of_wilds_images_is_read_without_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "wilds", None)
    paths = [tmp_path / f"{n}.png" for n in range(12)]
    touch(*paths)
    train = [theirs(path, n % 2, n // 6) for n, path in enumerate(paths)]
    modules = ("dassl", "dassl.data", "dassl.data.datasets", "dassl.data.datasets.base_dataset")
    for name in modules:
        monkeypatch.setitem(sys.modules, name, type(sys)(name))
    sys.modules[modules[-1]].Datum = Datum
    preloaded(tmp_path, {"train": train, "val": train[:2], "test": train[2:4]})
    dataset = build(tmp_path, "Camelyon17")
    assert below(tmp_path, dataset.train_x) == below(tmp_path, train)
    assert [len(dataset.val), len(dataset.test), dataset.train_u] == [2, 2, None]
    assert dataset.label_to_name == {0: "healthy tissue", 1: "tumor tissue"}

    random.seed(2)
    groups = [train[0:6:2], train[1:6:2], train[6::2], train[7::2]]
    expected = [item for group in groups for item in random.sample(group, 2)]
    random.seed(2)
    assert below(tmp_path, build(tmp_path, "Camelyon17", NUM_SHOTS=2).train_x) == below(tmp_path, expected)

    paths[0].unlink()
    with pytest.raises(ValueError, match=r"zhou_preloaded\.pkl.*0\.png.*delete"):
        build(tmp_path, "Camelyon17")
    preloaded(tmp_path, {"train": [Evil()], "val": [], "test": []})
    with pytest.raises(ValueError, match="zhou_preloaded"):
        build(tmp_path, "Camelyon17")
    preloaded(tmp_path, {"train": []})
    with pytest.raises(ValueError, match="zhou_preloaded"):
        build(tmp_path, "Camelyon17")
    assert not (tmp_path / "made-by-a-pickle").exists()


def test_without_the_package_wilds(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wilds", None)
    camelyon17(tmp_path)
    with pytest.raises(ValueError, match=r"Camelyon17 needs the package wilds: .*pip install"):
        build(tmp_path, "Camelyon17")


# --- semi-supervised learning ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100", "SVHN"])
def test_labelled_images_are_drawn_per_class(trees, name):
    folder = trees / name.lower() / "train"
    random.seed(4)
    labelled, unlabelled, val = [], [], []
    for label, cls in enumerate(["ant", "cat"]):
        names = [(f"{name.lower()}/train/{cls}/{file}", label, 0, "") for file in files(folder / cls)]
        rest = names[2:]  # floor(0.25 * 10)
        random.shuffle(rest)
        val += names[:2]
        labelled += rest[:2]  # floor(5 / 2)
        unlabelled += rest[2:]
    random.seed(4)
    dataset = build(trees, name, NUM_LABELED=5, VAL_PERCENT=0.25)
    assert [below(trees, items) for items in (dataset.train_x, dataset.train_u, dataset.val)] == [
        *(labelled, unlabelled, val)
    ]
    assert len(dataset.test) == 4 and dataset.num_classes == 2
    random.seed(4)
    everything = build(trees, name, NUM_LABELED=5, VAL_PERCENT=0.25, ALL_AS_UNLABELED=True)
    assert below(trees, everything.train_u) == unlabelled + labelled
    assert build(trees, name, NUM_LABELED=5, VAL_PERCENT=0.0).val is None


def test_stl10_reads_a_published_fold(tmp_path):
    stl10(tmp_path, train=300, fold=(299, 256, 0, 17))  # Dassl reads these numbers modulo 256
    dataset = build(tmp_path, "STL10", STL10_FOLD=1)
    assert below(tmp_path, dataset.train_x) == [
        (f"stl10/train/{n:06d}_{n % 3}.jpg", n % 3, 0, "") for n in (299, 256, 0, 17)
    ]
    assert {item.label for item in dataset.train_u} == {-1} and len(dataset.train_u) == 6
    assert sorted(below(tmp_path, dataset.test)) == [
        (f"stl10/test/{n:06d}_{n % 3}.jpg", n % 3, 0, "") for n in range(5)
    ]
    everything = build(tmp_path, "STL10", STL10_FOLD=1, ALL_AS_UNLABELED=True)
    assert below(tmp_path, everything.train_u) == below(tmp_path, [*dataset.train_u, *dataset.train_x])


# --- mistakes of the user ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "keys", "told"),
    [
        (("OfficeHome", ["art"], ["paint"]), {}, "'paint'.*real_world"),
        (("OfficeHome", [], ["art"]), {}, "SOURCE_DOMAINS"),
        (("CIFAR10C", ["cifar10"], ["cifar10_c"]), {}, "CIFAR_C_TYPE.*gaussian_noise"),
        (("CIFAR10C", ["cifar10"], ["cifar10_c"]), {"CIFAR_C_TYPE": "fog", "CIFAR_C_LEVEL": 6}, "CIFAR_C_LEVEL.*6"),
        (("CIFAR10C", ["cifar10_c"], ["cifar10"]), {"CIFAR_C_TYPE": "fog"}, "SOURCE_DOMAINS.*cifar10"),
        (("CIFAR10C", ["cifar10"], ["cifar10"]), {"CIFAR_C_TYPE": "fog"}, "TARGET_DOMAINS.*cifar10_c"),
        (("CIFAR10",), {}, "NUM_LABELED.*-1"),
        (("CIFAR10",), {"NUM_LABELED": 1}, "NUM_LABELED.*at least 2"),
        (("STL10",), {}, "STL10_FOLD.*-1"),
    ],
)
def test_invalid_keys(trees, arguments, keys, told):
    with pytest.raises(ValueError, match=told) as caught:
        build(trees, *arguments, **keys)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in FACTS if name not in ("Camelyon17", "FMoW", "IWildCam")])
def test_a_missing_folder_names_the_source_and_the_layout(tmp_path, name):
    cls = getattr(datasets, name)
    if cls.data_url:
        (tmp_path / cls.dataset_dir).mkdir()  # a missing folder is downloaded
    first, last = (cls.domains[0], cls.domains[-1]) if cls.domains else ("", "")
    keys = {"NUM_LABELED": 4, "STL10_FOLD": 0, "CIFAR_C_TYPE": "fog"}
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path))) as caught:
        build(tmp_path, name, [first], [last], **keys)
    text = str(caught.value)
    assert text.startswith(f"{name}: ") and "http" in text and "\n" not in text
    assert str(tmp_path / cls.dataset_dir / cls.layout) in text


def test_a_stray_file_among_the_class_folders(tmp_path):
    touch(tmp_path / "office31" / "amazon" / "Mug" / "1.jpg", tmp_path / "office31" / "amazon" / "Thumbs.db")
    with pytest.raises(FileNotFoundError, match=r"Thumbs\.db"):
        build(tmp_path, "Office31", ["amazon"], ["amazon"])


def test_damaged_lists_and_names(tmp_path):
    domainnet(tmp_path)
    list_file = tmp_path / "domainnet" / "splits_mini" / "real_train.txt"
    write_list(list_file, ["real/ant/a b.jpg 1", "", "real/ant/2.jpg"])
    with pytest.raises(ValueError, match=r"real_train\.txt', line 3.*'real/ant/2\.jpg'"):
        build(tmp_path, "miniDomainNet", ["real"], ["real"])
    write_list(list_file, ["real/ant/a b.jpg 1", ""])
    assert below(tmp_path, build(tmp_path, "miniDomainNet", ["real"], ["real"]).train_x) == [
        ("domainnet/real/ant/a b.jpg", 1, 0, "ant")
    ]
    touch(tmp_path / "digit5" / "usps" / "train_images" / "7.jpg")
    with pytest.raises(ValueError, match=r"7\.jpg.*label"):
        build(tmp_path, "DigitSingle", ["usps"], ["usps"])
    touch(tmp_path / "cifar_stl" / "stl" / "train" / "cat" / "1.jpg")
    with pytest.raises(ValueError, match=r"train/cat.*label"):
        build(tmp_path, "CIFARSTL", ["stl"], ["stl"])
    stl10(tmp_path, train=3, fold=(0, 3))
    with pytest.raises(ValueError, match=r"line 2 of .*fold_indices\.txt.*below 3"):
        build(tmp_path, "STL10", STL10_FOLD=1)
    touch(tmp_path / "stl10" / "train" / "000000_x.jpg")
    with pytest.raises(ValueError, match=r"000000_x\.jpg.*none"):
        build(tmp_path, "STL10", STL10_FOLD=0)


# --- an installed Dassl ------------------------------------------------------------------------------

DUMP = """
import json, random, sys

sys.path.insert(0, sys.argv[1])
from dassl_trees import CASES, dataset_cfg, described
from dassl.data.datasets import build_dataset

found = []
for keys in CASES:
    random.seed(5)
    found.append(described(build_dataset(dataset_cfg(sys.argv[2], keys))))
json.dump(found, open(sys.argv[3], "w"))
"""


def test_items_equal_those_of_an_installed_dassl(trees, tmp_path):
    spec = importlib.util.find_spec("dassl")
    if spec is None or not str(spec.origin).endswith(".py"):
        pytest.skip("Dassl is not installed")
    arguments = [str(Path(__file__).parents[1]), str(trees), str(tmp_path / "found.json")]
    subprocess.run([sys.executable, "-c", DUMP, *arguments], cwd=tmp_path, check=True)
    found = json.loads((tmp_path / "found.json").read_text())
    for keys, theirs in zip(CASES, found, strict=True):
        random.seed(5)
        ours = json.loads(json.dumps(described(build_dataset(dataset_cfg(trees, keys)))))
        assert ours == theirs, keys["NAME"]


def test_every_case_of_the_comparison_has_images(trees):
    for keys in CASES:
        dataset = build_dataset(dataset_cfg(trees, keys))
        assert len(dataset.train_x) > 1 and len(dataset.test) > 1, keys["NAME"]
    assert {keys["NAME"] for keys in CASES} == FACTS.keys() - {"Camelyon17", "FMoW", "IWildCam"}
    assert da.Digit5 is digit5.Digit5


def test_domains_with_other_class_folders_are_refused(tmp_path):
    touch(*(tmp_path / "office31" / "amazon" / name / "1.jpg" for name in ("bike", "cup", "pen")))
    touch(*(tmp_path / "office31" / "webcam" / name / "1.jpg" for name in ("bike", "pen")))
    with pytest.raises(ValueError, match=r"Office31.*webcam/pen/1\.jpg.*same class folders"):
        build(tmp_path, "Office31", ["amazon"], ["webcam"])
