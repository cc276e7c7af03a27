"""Tiny trees of the published datasets with the real layouts and annotation formats.

``TREES[name](data_root)`` writes a tree and returns its images by published split ("all" without splits): the path
below the folder of images, the label and the class name of each image.
"""

import functools
import io
import json
import shutil
import zlib
from itertools import count
from pathlib import Path

import numpy as np
from cifar_tree import cifar100
from PIL import Image
from scipy.io import savemat

from unskew import config
from unskew.data.dataset import DATASET_REGISTRY, build_dataset
from unskew.utils.registry import discover

FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}


@functools.cache
def image(suffix: str, shade: int) -> bytes:
    """Return an image file of 8 x 8 pixels; the shade decides the pixels."""
    pixels = np.random.RandomState(shade).randint(0, 256, (2, 2, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((8, 8), Image.Resampling.NEAREST).save(file, FORMATS[suffix])
    return file.getvalue()


def put(path: Path, shade: int | None = None) -> None:
    """Write an image; the default shade depends on its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image(path.suffix.lower(), zlib.crc32(path.name.encode()) % 16 if shade is None else shade))


def write(path: Path, *lines: str, end: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + end for line in lines).encode())


def load(name: str, data: Path, *opts, shots: int = -1):
    """Load a dataset, by default with all images."""
    opts = ("DATASET.ROOT", str(data), "DATASET.NUM_SHOTS", shots, *opts)
    return build_dataset(config.load(name, trainer="ZeroshotCLIP", opts=opts))


def of(name):
    """Return the class of a dataset."""
    discover("unskew.datasets")
    return DATASET_REGISTRY.get(name)


def image_root(name, data):
    return data / of(name).dataset_dir / of(name).image_dir


def held(dataset, root):
    """Return the images of a dataset in the format of `TREES`: (path below root, label, class name) by split."""
    return {
        split: [(Path(item.impath).relative_to(root).as_posix(), item.label, item.classname) for item in items or []]
        for split, items in (("train", dataset.train_x), ("val", dataset.val), ("test", dataset.test))
    }


def coop_split(path: Path, entries) -> dict[str, list]:
    """Write a split file in CoOp's format that differs from the loaders' random split."""
    splits = {"train": entries[1::2], "val": entries[::4], "test": entries[2::4]}
    splits = {split: [list(entry) for entry in found] for split, found in splits.items()}
    write(path, json.dumps(splits, indent=4))
    return splits


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def with_lines(*lines: str):
    """Return a function that replaces the content of a file by these lines."""
    return lambda path: write(path, *lines)


def _class_folders(folder: Path, names: dict[str, str], each: int = 10, file: str = "{folder}_{n:04d}.jpg") -> dict:
    entries = []
    for label, (name, classname) in enumerate(names.items()):
        for n in range(1, each + 1):
            entries.append((f"{name}/{file.format(folder=name, n=n)}", label, classname))
    for path, *_ in entries:
        put(folder / path)
    return {"all": entries}


# --- CoOp's datasets --------------------------------------------------------------------------------


def caltech101(data: Path) -> dict:
    folder = data / "caltech-101" / "101_ObjectCategories"
    for ignored in ("BACKGROUND_Google", "Faces_easy"):
        put(folder / ignored / "image_0001.jpg")
    names = {"Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike", "accordion": "accordion"}
    return _class_folders(folder, {**names, "airplanes": "airplane"}, file="image_{n:04d}.jpg")


def dtd(data: Path) -> dict:
    write(data / "dtd" / "images" / "banded" / ".directory", "[Dolphin]")  # the archive has such files
    put(data / "dtd" / "imdb" / "no_class.jpg")
    return _class_folders(data / "dtd" / "images", {name: name for name in ("banded", "blotchy", "chequered")})


def eurosat(data: Path) -> dict:
    names = {
        "AnnualCrop": "Annual Crop Land",
        "Forest": "Forest",
        "HerbaceousVegetation": "Herbaceous Vegetation Land",
        "Highway": "Highway or Road",
        "Industrial": "Industrial Buildings",
        "Pasture": "Pasture Land",
        "PermanentCrop": "Permanent Crop Land",
        "Residential": "Residential Buildings",
        "River": "River",
        "SeaLake": "Sea or Lake",
    }
    return _class_folders(data / "eurosat" / "2750", names, file="{folder}_{n}.jpg")


def food101(data: Path) -> dict:
    write(data / "food-101" / "meta" / "classes.txt", "apple_pie", "baby_back_ribs")
    names = {name: name for name in ("apple_pie", "baby_back_ribs", "tuna_tartare")}
    return _class_folders(data / "food-101" / "images", names, file="{n}005649.jpg")


def oxford_pets(data: Path) -> dict:
    root, found = data / "oxford_pets", {"trainval": [], "test": []}
    breeds = ("Abyssinian", "american_bulldog", "great_pyrenees")
    for split, numbers in (("trainval", range(1, 11)), ("test", range(201, 204))):
        rows = []
        for label, breed in enumerate(breeds):
            for n in numbers:
                found[split].append((f"{breed}_{n}.jpg", label, breed.lower()))
                rows.append(f"{breed}_{n} {label + 1} {1 + (label > 0)} {max(1, label)}")
        write(root / "annotations" / f"{split}.txt", *rows)
    write(root / "images" / "Abyssinian_34.mat", "the archive has such files")
    for path, *_ in found["trainval"] + found["test"]:
        put(root / "images" / path)
    return found


def oxford_flowers(data: Path) -> dict:
    root = data / "oxford_flowers"
    names = {"3": "canterbury bells", "1": "pink primrose", "2": "hard-leaved pocket orchid"}
    labels = np.array([[2] * 10 + [1] * 10 + [3] * 10], np.uint8)  # [1, N]
    entries = [(f"image_{n:05d}.jpg", int(x) - 1, names[str(x)]) for n, x in enumerate(labels[0], start=1)]
    for path, *_ in entries:
        put(root / "jpg" / path)
    savemat(root / "imagelabels.mat", {"labels": labels}, do_compression=True)
    write(root / "cat_to_name.json", json.dumps(names))
    return {"all": entries}


CARS = ("AM General Hummer SUV 2000", "Audi TTS Coupe 2012", "Ram C/V Cargo Van Minivan 2012")


def cars_annotations(path: Path, rows, labels: bool = True) -> None:
    """The devkit's struct array [1, N]; ``rows`` of (file name, class from 1)."""
    boxes = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
    array = np.empty(len(rows), dtype=[(name, object) for name in (*boxes, *(["class"] if labels else []), "fname")])
    for n, (name, number) in enumerate(rows):
        array[n] = (*([[39]], [[116]], [[569]], [[375]]), *([np.array([[number]], np.uint8)] if labels else []), name)
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"annotations": array}, do_compression=True, oned_as="row")


def stanford_cars(data: Path) -> dict:
    root, found = data / "stanford_cars", {"trainval": [], "test": []}
    names = ("2000 AM General Hummer SUV", "2012 Audi TTS Coupe", "2012 Ram C/V Cargo Van Minivan")
    files = {"trainval": ("cars_train", 30), "test": ("cars_test", 9)}
    annotations = {"trainval": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
    for split, (folder, images) in files.items():
        rows = [(f"{n:05d}.jpg", (n * 2) % 3 + 1) for n in range(1, images + 1)]  # the classes are mixed
        cars_annotations(root / annotations[split], rows)
        found[split] = [(f"{folder}/{name}", number - 1, names[number - 1]) for name, number in rows]
        for path, *_ in found[split]:
            put(root / path)
    cars_annotations(root / "devkit" / "cars_test_annos.mat", [("00001.jpg", 1)], labels=False)
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": np.array(CARS, dtype=object)}, oned_as="row")
    return found


def fgvc_aircraft(data: Path) -> dict:
    root, number, found = data / "fgvc_aircraft", count(34309), {}
    variants = ("707-320", "Cessna 172", "F/A-18")
    write(root / "variants.txt", *variants)
    for split, images in (("train", 4), ("val", 3), ("test", 2)):
        rows = [(f"{next(number):07d}", name) for _ in range(images) for name in variants]
        write(root / f"images_variant_{split}.txt", *(f"{file} {name}" for file, name in rows))
        found[split] = [(f"images/{file}.jpg", variants.index(name), name) for file, name in rows]
        for path, *_ in found[split]:
            put(root / path)
    return found


def sun397(data: Path) -> dict:
    root, found, number = data / "sun397", {}, count(10)
    scenes = {
        "/a/abbey": "abbey",
        "/a/apartment_building/outdoor": "outdoor apartment_building",
        "/u/underwater/ocean_deep": "ocean_deep underwater",
    }
    write(root / "ClassName.txt", *scenes)
    for split, file, images in (("trainval", "Training_01.txt", 10), ("test", "Testing_01.txt", 4)):
        rows = [(f"{scene}/sun_aa{next(number)}.jpg", scene) for scene in scenes for _ in range(images)]
        write(root / file, *(path for path, _ in rows))
        found[split] = [(path[1:], list(scenes).index(scene), scenes[scene]) for path, scene in rows]
        for path, *_ in found[split]:
            put(root / "SUN397" / path)
    return found


def ucf101(data: Path) -> dict:
    root, found = data / "ucf101", {}
    # The videos of one class have another spelling than their class.
    actions = {"ApplyEyeMakeup": "Apply_Eye_Makeup", "HandstandPushups": "Handstand_Pushups", "YoYo": "Yo_Yo"}
    lists = root / "ucfTrainTestlist"
    write(lists / "classInd.txt", *(f"{n} {name}" for n, name in enumerate(actions, start=1)), end="\r\n")
    for split, file, groups in (("trainval", "trainlist01.txt", range(8, 18)), ("test", "testlist01.txt", range(1, 5))):
        rows, found[split] = [], []
        for label, (action, name) in enumerate(actions.items()):
            for group in groups:
                video = f"v_{action.replace('Handstand', 'HandStand')}_g{group:02d}_c01"
                rows.append(f"{action}/{video}.avi" + (f" {label + 1}" if split == "trainval" else ""))
                found[split].append((f"{name}/{video}.jpg", label, name))
        write(lists / file, *rows, end="\r\n")
        for path, *_ in found[split]:
            put(root / "UCF-101-midframes" / path)
    return found


# --- ImageNet and the long-tailed sets --------------------------------------------------------------

WORDNET = {"n01440764": "tench", "n01443537": "goldfish", "n01484850": "great white shark", "n02123045": "tabby cat"}


def classnames_txt(folder: Path) -> None:
    """Write CoOp's file, not in the order of the labels."""
    write(folder / "classnames.txt", *(f"{wnid} {name}" for wnid, name in reversed(WORDNET.items())))


def imagenet(data: Path, images: str = "images", train: int = 6, val: int = 4) -> dict:
    root, number, found = data / "imagenet", count(293), {"train": [], "test": []}
    for label, (wnid, name) in enumerate(WORDNET.items()):
        for n in range(train):
            found["train"].append((f"train/{wnid}/{wnid}_{10026 + n}.JPEG", label, name))
        for _ in range(val):
            found["test"].append((f"val/{wnid}/ILSVRC2012_val_{next(number):08d}.JPEG", label, name))
    for path, label, _ in found["train"] + found["test"]:
        put(root / images / path, shade=100 + 2 * label + zlib.crc32(path.encode()) % 2)
    classnames_txt(root)
    return found


def imagenet_lt(data: Path) -> dict:
    """Write lists of the images of ImageNet's tree."""
    held = imagenet(data)
    lists = {"train": held["train"][:6] + held["train"][6:9] + held["train"][12:13] + held["train"][18:19]}
    lists.update(val=[entry for entry in held["train"] if entry[0].endswith("10031.JPEG")][1:], test=held["test"])
    for split, entries in lists.items():
        rows = (f"{path} {label}" for path, label, _ in entries)
        write(data / "imagenet_lt" / f"ImageNet_LT_{split}.txt", *rows)
    return lists


def imagenetv2(data: Path) -> dict:
    classnames_txt(data / "imagenetv2")
    folders = {str(n): name for n, name in enumerate(WORDNET.values())}
    folder = data / "imagenetv2" / "imagenetv2-matched-frequency-format-val"
    return _class_folders(folder, folders, each=3, file="{n:040x}.jpeg")


def imagenet_sketch(data: Path) -> dict:
    classnames_txt(data / "imagenet-sketch")
    return _class_folders(data / "imagenet-sketch" / "images", WORDNET, each=3, file="sketch_{n}.JPEG")


def _some_classes(root: Path, folder: str, labels: tuple[int, ...], file: str) -> dict:
    """Write ImageNet-A or -R: some of ImageNet's classes, and a README among the folders."""
    classnames_txt(root)
    write(root / folder / "README.txt", "the archive has one")
    wnids = {wnid: name for label, (wnid, name) in enumerate(WORDNET.items()) if label in labels}
    found = _class_folders(root / folder, wnids, each=3, file=file)["all"]
    return {"all": [(path, labels[place], name) for path, place, name in found]}


def imagenet_a(data: Path) -> dict:
    return _some_classes(data / "imagenet-adversarial", "imagenet-a", (0, 2), "0.00{n}_fountain _ snail_0.5.jpg")


def imagenet_r(data: Path) -> dict:
    return _some_classes(data / "imagenet-rendition", "imagenet-r", (1, 2, 3), "art_{n}.jpg")


def places_lt(data: Path) -> dict:
    root, found = data / "places_lt", {"train": [], "val": [], "test": []}
    for label, (scene, images) in enumerate({"airfield": 5, "airplane_cabin": 2, "zen_garden": 1}.items()):
        found["train"] += [(f"train/{scene}/{n:08d}.jpg", label, scene) for n in range(images)]
        found["val"] += [(f"train/{scene}/{n:08d}.jpg", label, scene) for n in range(90, 92)]
        found["test"] += [(f"val/{scene}/Places365_val_{label}{n:07d}.jpg", label, scene) for n in range(3)]
    for split, entries in found.items():
        write(root / f"Places_LT_{split}.txt", *(f"{path} {label}" for path, label, _ in entries))
        for path, *_ in entries:
            put(root / path)
    write(root / "classnames.txt", *(f"{scene} {scene}" for scene in ("airfield", "airplane_cabin", "zen_garden")))
    return found


def inat2018(data: Path, counts=(40, 20, 19, 1)) -> dict:
    root, found = data / "inat2018", {"train": [], "test": []}
    names = ("Ursus arctos", "Amanita muscaria", "Quercus robur", "Ara macao")
    for label, (name, images) in enumerate(zip(names, counts, strict=True)):
        for split, each in (("train", images), ("test", 3)):
            found[split] += [(f"train_val2018/Aves/{label}/{split}{n:030x}.jpg", label, name) for n in range(each)]
    for split, file in (("train", "train"), ("test", "val")):
        write(root / f"iNaturalist18_{file}.txt", *(f"{path} {label}" for path, label, _ in found[split]))
        for path, *_ in found[split]:
            put(root / path)
    categories = [{"id": n, "name": name, "supercategory": "Aves"} for n, name in enumerate(names)]
    write(root / "categories.json", json.dumps(categories[::-1]))
    return found


COOP = {
    tree.__name__: tree
    for tree in (
        *(caltech101, dtd, eurosat, food101, oxford_pets, oxford_flowers, stanford_cars, fgvc_aircraft),
        *(sun397, ucf101),
    )
}
VARIANTS = {tree.__name__: tree for tree in (imagenetv2, imagenet_sketch, imagenet_a, imagenet_r)}
LONGTAILED = {"imagenet_lt": imagenet_lt, "places_lt": places_lt, "inat2018": inat2018, "cifar100_lt": cifar100}
TREES = {**COOP, "imagenet": imagenet, **VARIANTS, **LONGTAILED}
