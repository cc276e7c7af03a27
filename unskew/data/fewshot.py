"""What a run sees of a dataset: its few-shot sample, or all images, then one half of the classes."""

import contextlib
import logging
import math
import random
from collections import Counter
from pathlib import Path

from unskew.data.dataset import Datum
from unskew.data.sampling import sample_fewshot, split_off
from unskew.data.splits import entries, relative
from unskew.utils.files import cache_folder, read_json, write_json
from unskew.utils.safe_pickle import read_fewshot

logger = logging.getLogger("unskew")

# A class with fewer training images gives none of them to the hold-out.
HOLDOUT_FROM = 20


def select(
    cfg, root, train: list[Datum], val: list[Datum] | None, test: list[Datum], cache=None
) -> dict[str, list[Datum]]:
    """What a run sees of a dataset.

    Reads ``cfg.DATASET.SEED``, where that is negative ``cfg.SEED`` (both negative: another sample each time),
    ``cfg.DATASET.NUM_SHOTS`` (-1: all images), ``NUM_VAL_SHOTS`` (-1: min(NUM_SHOTS, 4), as CoOp), ``HOLDOUT`` and
    ``SUBSAMPLE_CLASSES`` (all, base, new). A dataset without val gets its few-shot val from the training images
    that were not sampled, never from test; with all images and ``HOLDOUT`` above 0, that part of each class's
    training images, the same for every seed. A published ``root/split_fewshot/shot_K-seed_S.pkl`` is used where
    there is one, and each sample is written beside it as JSON.

    Args:
        root: the dataset's own folder. cache: where to write, in place of ``root`` (see `cache_folder`).

    Returns:
        ``{"train_x": .., "val": .., "test": ..}``, the arguments of `DatasetBase`.

    Raises:
        ValueError: one of these keys has a value out of its range, or the published file is not of these images.
    """
    node, val = cfg.DATASET, val or []
    shots, val_shots = node.NUM_SHOTS, node.NUM_VAL_SHOTS
    if shots != -1 and shots < 1:
        raise ValueError(f"DATASET.NUM_SHOTS is {shots}; it must be 1 or more, or -1 for all images")
    if val_shots < -1:
        raise ValueError(f"DATASET.NUM_VAL_SHOTS is {val_shots}; it must be 0 or more, or -1 for min(NUM_SHOTS, 4)")
    if not 0 <= node.HOLDOUT < 1:
        raise ValueError(f"DATASET.HOLDOUT is {node.HOLDOUT}; it is a part of the training images: 0 or more, below 1")
    if shots != -1 and train:  # a test-only set has nothing to draw
        val_shots = min(shots, 4) if val_shots == -1 else val_shots
        seed = cfg.SEED if node.SEED < 0 else node.SEED
        train, val = _fewshot(Path(root), cache, train, val, shots, val_shots, seed)
    elif node.HOLDOUT and not val:
        train, val = split_off(train, node.HOLDOUT, random.Random(0), least=HOLDOUT_FROM)
    return _subsample_classes(node.SUBSAMPLE_CLASSES, train_x=train, val=val, test=test)


# --- few-shot samples --------------------------------------------------------------------------------


def _fewshot(root: Path, cache, train, val, shots: int, val_shots: int, seed: int):
    """The few-shot train and val of one seed: the published file's, else drawn as CoOp draws."""
    if seed < 0:
        return _draw(train, val, shots, val_shots, random.Random())
    name, rng = f"shot_{shots}-seed_{seed}", random.Random(seed)
    published = root / "split_fewshot" / f"{name}.pkl"
    if published.is_file():
        sample = _published(published, root, train, val, shots, val_shots, rng)
    else:
        sample = _draw(train, val, shots, val_shots, rng)
    suffix = "" if val_shots == min(shots, 4) else f"-val_{val_shots}"
    _record(sample, root, Path(cache or cache_folder(root)) / "split_fewshot" / f"{name}{suffix}.json")
    return sample


def _draw(train, val, shots: int, val_shots: int, rng: random.Random):
    sample = sample_fewshot(train, shots, rng)
    return sample, _draw_val(train, val, sample, val_shots, rng)


def _draw_val(train, val, sample: list[Datum], val_shots: int, rng: random.Random) -> list[Datum]:
    if not val_shots:
        return []
    if not val:
        taken = {item.impath for item in sample}
        val = [item for item in train if item.impath not in taken]
        without = len({item.label for item in train}) - len({item.label for item in val})
        if without:
            logger.warning(f"{without} class(es) have no image for val: all of theirs are in the few-shot sample")
    return sample_fewshot(val, val_shots, rng)


def _published(path: Path, root: Path, train, val, shots: int, val_shots: int, rng: random.Random):
    """The sample in a pickle; its val too where it has the wanted number of images, which CoOp's ImageNet has not."""
    known = {relative(item.impath, root): item for item in [*train, *val]}
    found = {split: [_find(entry, known, path) for entry in items] for split, items in read_fewshot(path).items()}
    sampled, available = (Counter(item.label for item in items) for items in (found["train"], train))
    wrong = [label for label in available if sampled[label] != min(shots, available[label])]
    if wrong or set(map(id, found["train"])) & set(map(id, found.get("val", []))):
        problem = f"{sampled[wrong[0]]} images of class {wrong[0]}" if wrong else "an image in both train and val"
        raise ValueError(f"'{path}' is no {shots}-shot sample, it has {problem}: delete it to draw one anew")
    logger.info(f"The few-shot sample is that of '{path}'")
    if val_shots and _most_per_class(found.get("val", [])) == val_shots:
        return found["train"], found["val"]
    return found["train"], _draw_val(train, val, found["train"], val_shots, rng)


def _most_per_class(items) -> int:
    return max(Counter(item.label for item in items).values(), default=0)


def _find(entry: tuple[str, int, str], known: dict[str, Datum], source: Path) -> Datum:
    """The image that a path of another machine means: the one that its longest known tail names."""
    parts = entry[0].replace("\\", "/").split("/")
    for start in range(len(parts)):
        item = known.get("/".join(parts[start:]))
        if item is not None and item.label == entry[1]:
            return item
    raise ValueError(
        f"'{source}' names '{entry[0]}' with label {entry[1]}, which is not among the dataset's training images: "
        "delete the file to draw the sample anew"
    )


def _record(sample, root: Path, path: Path) -> None:
    """Write down which images a sample has; the same seed draws the same ones whether that is possible or not."""
    content = {split: entries(items, root) for split, items in zip(("train", "val"), sample, strict=True)}
    with contextlib.suppress(OSError, ValueError):  # there is none, or it is broken
        if read_json(path) == content:
            return
    try:
        write_json(content, path)
    except OSError as error:
        logger.debug(f"the few-shot sample was not written down: {error}")


# --- halves of the classes ---------------------------------------------------------------------------


def _subsample_classes(subsample: str, **splits: list[Datum]) -> dict[str, list[Datum]]:
    """The first (base) or second (new) half of the classes, relabelled from 0; of an odd number base has more."""
    if subsample not in ("all", "base", "new"):
        raise ValueError(f"DATASET.SUBSAMPLE_CLASSES is '{subsample}'; it must be all, base or new")
    if subsample == "all":
        return splits
    labels = sorted({item.label for items in splits.values() for item in items})
    half = math.ceil(len(labels) / 2)
    kept = {label: new for new, label in enumerate(labels[:half] if subsample == "base" else labels[half:])}
    return {
        split: [Datum(i.impath, kept[i.label], i.domain, i.classname) for i in items if i.label in kept]
        for split, items in splits.items()
    }
