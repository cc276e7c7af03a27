"""Selection of a run's images: a few-shot sample or all images, of all classes or one half of them."""

import contextlib
import logging
import math
import random
from collections import Counter
from pathlib import Path
from typing import TypedDict

from yacs.config import CfgNode

from unskew.data.dataset import Datum
from unskew.data.sampling import sample_fewshot, split_off
from unskew.data.snapshot import remember
from unskew.data.splits import entries, relative
from unskew.utils.files import cache_folder, read_json, write_json
from unskew.utils.safe_pickle import read_fewshot

logger = logging.getLogger("unskew")

# A class with fewer training images gives none to the hold-out.
HOLDOUT_FROM = 20

# The keys below DATASET that `select` reads.
SELECTION = ("NUM_SHOTS", "NUM_VAL_SHOTS", "SEED", "HOLDOUT", "TRAIN_ON_VAL", "SUBSAMPLE_CLASSES")

_Sample = tuple[list[Datum], list[Datum]]  # train and val


class Selection(TypedDict):
    """The images of a run: arguments of `DatasetBase`."""

    train_x: list[Datum]
    val: list[Datum]
    test: list[Datum]


def select(
    cfg: CfgNode, root: str | Path, train: list[Datum], val: list[Datum], test: list[Datum], cache: Path | None = None
) -> Selection:
    """Select the images of a run.

    The keys below ``cfg.DATASET`` decide:

    - ``NUM_SHOTS``: training images per class; -1 for all images.
    - ``NUM_VAL_SHOTS``: val images per class; -1 for min(NUM_SHOTS, 4), as in CoOp. A dataset without val takes them
      from the training images that were not sampled, never from test.
    - ``SEED``: the sample's seed. If it is negative, ``cfg.SEED`` is used; if both are, each run has another sample.
    - ``HOLDOUT``: without val and with all images, this part of each class's training images is val, for every seed.
    - ``TRAIN_ON_VAL``: the selected val images are added to train, and val is empty.
    - ``SUBSAMPLE_CLASSES``: all, base or new.

    A published ``root/split_fewshot/shot_K-seed_S.pkl`` is used if it exists. Each sample is recorded as JSON.

    Args:
        cfg: the run's config.
        root: the dataset's folder.
        train: all training images.
        val: all validation images; may be empty.
        test: all test images.
        cache: the folder of the recorded samples; default `cache_folder` of ``root``.

    Raises:
        ValueError: a key is out of its range, or the published file holds other images.
    """
    node = cfg.DATASET
    shots, val_shots = node.NUM_SHOTS, node.NUM_VAL_SHOTS
    if shots != -1 and shots < 1:
        raise ValueError(f"DATASET.NUM_SHOTS is {shots}; it must be 1 or more, or -1 for all images")
    if val_shots < -1:
        raise ValueError(f"DATASET.NUM_VAL_SHOTS is {val_shots}; it must be 0 or more, or -1 for min(NUM_SHOTS, 4)")
    if not 0 <= node.HOLDOUT < 1:
        raise ValueError(f"DATASET.HOLDOUT is {node.HOLDOUT}; it must be 0 or more and below 1")
    if shots != -1 and train:  # a test-only set has nothing to draw
        val_shots = expected_shots(cfg)["val"]
        seed = cfg.SEED if node.SEED < 0 else node.SEED
        train, val = _fewshot(Path(root), cache, train, val, shots, val_shots, seed)
    elif node.HOLDOUT and not val:
        train, val = split_off(train, node.HOLDOUT, random.Random(0), least=HOLDOUT_FROM)
    if node.TRAIN_ON_VAL:
        train, val = [*train, *val], []
    return _subsample_classes(node.SUBSAMPLE_CLASSES, Selection(train_x=train, val=val, test=test))


# --- few-shot samples --------------------------------------------------------------------------------


def expected_shots(cfg: CfgNode) -> dict[str, int]:
    """Return the images per class that a few-shot run draws for train_x and val; nothing for a run on all images."""
    shots, val_shots = cfg.DATASET.NUM_SHOTS or -1, cfg.DATASET.NUM_VAL_SHOTS  # scripts for Dassl may set None
    return {} if shots < 1 else {"train_x": shots, "val": min(shots, 4) if val_shots == -1 else val_shots}


def _fewshot(
    root: Path, cache: Path | None, train: list[Datum], val: list[Datum], shots: int, val_shots: int, seed: int
) -> _Sample:
    """Return the few-shot train and val of one seed from the published file; without one, draw them as CoOp does."""
    if seed < 0:
        return _draw(train, val, shots, val_shots, random.Random())
    name, rng = f"shot_{shots}-seed_{seed}", random.Random(seed)
    published = root / "split_fewshot" / f"{name}.pkl"
    if published.is_file():
        sample = _read_published(published, root, train, val, shots, val_shots, rng)
    else:
        sample = _draw(train, val, shots, val_shots, rng)
    suffix = "" if val_shots == min(shots, 4) else f"-val_{val_shots}"
    record = Path(cache or cache_folder(root)) / "split_fewshot" / f"{name}{suffix}.json"
    paths = (tuple(item.impath for item in items) for items in sample)
    remember(("sample", record, *paths), lambda: _record(sample, root, record))
    return sample


def _draw(train: list[Datum], val: list[Datum], shots: int, val_shots: int, rng: random.Random) -> _Sample:
    sample = sample_fewshot(train, shots, rng, warn=False)
    return sample, _draw_val(train, val, sample, val_shots, rng)


def _draw_val(
    train: list[Datum], val: list[Datum], sample: list[Datum], val_shots: int, rng: random.Random
) -> list[Datum]:
    if not val_shots:
        return []
    if not val:
        taken = {item.impath for item in sample}
        val = [item for item in train if item.impath not in taken]
        if not val:  # the summary of the dataset warns of single classes
            logger.warning("val is empty: all training images are in the few-shot sample; choose fewer shots")
    return sample_fewshot(val, val_shots, rng, warn=False)


def _read_published(
    path: Path, root: Path, train: list[Datum], val: list[Datum], shots: int, val_shots: int, rng: random.Random
) -> _Sample:
    """Return the sample in a pickle. Its val is used if it has ``val_shots`` images per class, else val is drawn."""
    known = {relative(item.impath, root): item for item in [*train, *val]}
    published = {split: [_find(entry, known, path) for entry in items] for split, items in read_fewshot(path).items()}
    sample, published_val = published["train"], published.get("val", [])
    sampled, available = (Counter(item.label for item in items) for items in (sample, train))
    wrong = [label for label in available if sampled[label] != min(shots, available[label])]
    if wrong or set(map(id, sample)) & set(map(id, published_val)):
        problem = f"{sampled[wrong[0]]} images of class {wrong[0]}" if wrong else "an image in both train and val"
        raise ValueError(f"'{path}' is not a {shots}-shot sample, it has {problem}: delete it to draw a new sample")
    logger.info(f"The few-shot sample is from '{path}'")
    if val_shots and max(Counter(item.label for item in published_val).values(), default=0) == val_shots:
        return sample, published_val
    return sample, _draw_val(train, val, sample, val_shots, rng)


def _find(entry: tuple[str, int, str], known: dict[str, Datum], source: Path) -> Datum:
    """Return the image that a path of another machine names: its longest known tail identifies it."""
    parts = entry[0].replace("\\", "/").split("/")
    for start in range(len(parts)):
        item = known.get("/".join(parts[start:]))
        if item is not None and item.label == entry[1]:
            return item
    raise ValueError(
        f"'{source}' names '{entry[0]}' with label {entry[1]}, which is not among the dataset's training images: "
        "delete the file to draw a new sample"
    )


def _record(sample: _Sample, root: Path, path: Path) -> None:
    """Write the list of a sample's images for the user; a run never reads it, so a failure does not matter."""
    content = {split: entries(items, root) for split, items in zip(("train", "val"), sample, strict=True)}
    with contextlib.suppress(OSError, ValueError):  # missing or broken
        if read_json(path) == content:
            return
    try:
        write_json(content, path)
    except OSError as error:
        logger.debug(f"the few-shot sample was not recorded: {error}")


# --- halves of the classes ---------------------------------------------------------------------------


def _subsample_classes(subsample: str, selection: Selection) -> Selection:
    """Return the first (base) or second (new) half of the classes, relabelled from 0; base has the middle class."""
    if subsample not in ("all", "base", "new"):
        raise ValueError(f"DATASET.SUBSAMPLE_CLASSES is '{subsample}'; it must be all, base or new")
    if subsample == "all":
        return selection
    train, val, test = selection["train_x"], selection["val"], selection["test"]
    labels = sorted({item.label for item in (*train, *val, *test)})
    half = math.ceil(len(labels) / 2)
    kept = {label: new for new, label in enumerate(labels[:half] if subsample == "base" else labels[half:])}

    def relabelled(items: list[Datum]) -> list[Datum]:
        return [Datum(i.impath, kept[i.label], i.domain, i.classname) for i in items if i.label in kept]

    return Selection(train_x=relabelled(train), val=relabelled(val), test=relabelled(test))
