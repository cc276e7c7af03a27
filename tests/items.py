"""Helpers for tests of datasets: lists of images, config keys for `select`, and published files."""

import gzip
import json
import pickle
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import patch

from unskew.data.dataset import Datum

DASSL = "dassl.data.datasets.base_dataset"


def make(root, classes, images, split="train", first=0):
    """Return `images` per class; the classes are reversed, so that the first label is not 0."""
    return [
        Datum(f"{root}/{split}/{label}/{first + image}.png", label, 0, f"class {label}")
        for label in reversed(range(classes))
        for image in range(images)
    ]


def config(shots=2, seed=1, val_shots=-1, subsample="all", holdout=0.0):
    dataset = SimpleNamespace(
        NUM_SHOTS=shots,
        NUM_VAL_SHOTS=val_shots,
        SEED=-1,
        SUBSAMPLE_CLASSES=subsample,
        HOLDOUT=holdout,
        TRAIN_ON_VAL=False,
    )
    return SimpleNamespace(SEED=seed, DATASET=dataset)


def paths(items):
    return [item.impath for item in items]


# --- published files ---------------------------------------------------------------------------------

PUBLISHED = ("oxford_pets", "eurosat")


def unzip(name):
    return json.loads(gzip.decompress((Path(__file__).parent / "data" / name).read_bytes()))


def published_split(dataset):
    """Return the content of CoOp's split file."""
    content = unzip(f"{dataset}_split.json.gz")
    if dataset == "oxford_pets":
        return content
    return {
        split: [
            [f"{folder}/{folder}_{number}.jpg", label, name]
            for label, (folder, name) in enumerate(content["classes"])
            for number in content[split][label]
        ]
        for split in ("train", "val", "test")
    }


def published_sample(dataset, shots, seed):
    """Return a published sample ``{"train": [[image, label, class name], ..], "val": ..}``."""
    return unzip(f"{dataset}_fewshot.json.gz")[f"shot_{shots}-seed_{seed}"]


# --- pickles, as codebases on Dassl write them -------------------------------------------------------


def datum_class(module):
    """Return a class like Dassl's Datum."""

    class Datum:
        def __init__(self, impath="", label=0, domain=0, classname=""):
            self._impath, self._label, self._domain, self._classname = impath, label, domain, classname

    Datum.__module__, Datum.__qualname__ = module, "Datum"
    return Datum


def dump(content, path, classes=(), protocol=pickle.HIGHEST_PROTOCOL):
    """Pickle objects of classes whose modules exist only during the call."""
    modules = {}
    for cls in classes:
        parts = cls.__module__.split(".")
        modules |= {".".join(parts[:n]): ModuleType(".".join(parts[:n])) for n in range(1, len(parts) + 1)}
        setattr(modules[cls.__module__], cls.__name__, cls)
    path.parent.mkdir(parents=True, exist_ok=True)
    with patch.dict(sys.modules, modules), path.open("wb") as file:
        pickle.dump(content, file, protocol=protocol)
    return path


def dump_fewshot(path, module=DASSL, protocol=pickle.HIGHEST_PROTOCOL, **splits):
    """Write a few-shot file; splits are lists of (path, label, class name)."""
    cls = datum_class(module)
    content = {split: [cls(impath, label, 0, name) for impath, label, name in items] for split, items in splits.items()}
    return dump(content, path, [cls], protocol)
