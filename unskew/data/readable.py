"""Search for unreadable images of the user before training. An image that was opened once is not opened again."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm
from yacs.config import CfgNode

from unskew.data.dataset import Datum
from unskew.data.fewshot import Selection, select
from unskew.data.images import Keys, file_keys, read_image
from unskew.data.names import SHOWN, listed
from unskew.data.snapshot import kept
from unskew.utils.errors import DAMAGE
from unskew.utils.files import user_cache, write_atomically

logger = logging.getLogger("unskew")

_AT_ONCE = 1000  # images that wait for a thread; a list of a million would take as long as their reading
_PART = 8  # images of a thread's task


class ReadableSelection(Selection):
    """The images of a run that can be read, and the test images that cannot: arguments of `DatasetBase`."""

    unreadable_test: list[str]


def select_readable(
    cfg: CfgNode, root: Path, train: list[Datum], val: list[Datum], test: list[Datum]
) -> ReadableSelection:
    """Select a run's images, see `select`, and open each of them once.

    With ``DATASET.UNREADABLE skip``, unreadable images are left out and the sample is drawn again without them, so that
    a few-shot sample is complete. Other images never change between train, val and test, which are divided before.

    Args:
        cfg: the run's config.
        root: the folder or CSV file; it identifies the cache.
        train: all training images.
        val: all validation images.
        test: all test images.

    Raises:
        ValueError: images are unreadable and may not be skipped, or a class has no others.
    """
    if cfg.DATASET.UNREADABLE not in ("error", "skip"):
        raise ValueError(f"DATASET.UNREADABLE is '{cfg.DATASET.UNREADABLE}'; it must be error or skip")
    cache, dropped, splits = user_cache(root), set[str](), (train, val, test)
    while True:
        chosen = select(cfg, root, *splits, cache=cache)
        paths = [item.impath for item in (*chosen["train_x"], *chosen["val"], *chosen["test"])]
        found = find_unreadable(paths, cache / "readable.npy")
        if not found:
            break
        if cfg.DATASET.UNREADABLE == "error":
            raise ValueError(f"{len(found)} of {len(paths)} images of '{root}' {_problem(cfg, list(found), root)}")
        dropped |= found.keys()
        splits = tuple([item for item in items if item.impath not in dropped] for items in splits)  # type: ignore[assignment]
        _check_classes(root, (train, val, test), splits)
    if dropped:
        logger.warning(
            f"{len(dropped)} unreadable images of '{root}' are skipped ({listed(_relative(sorted(dropped), root))})"
        )
    tested = [item.impath for item in test if item.impath in dropped]
    return ReadableSelection(**chosen, unreadable_test=_relative(tested, root))


def _problem(cfg: CfgNode, paths: Sequence[str], root: Path) -> str:
    """Return the problem with unreadable images and the ways to solve it."""
    missing = sum(not os.path.lexists(path) for path in paths)
    problem, fix = "cannot be read", "replace or delete them"
    if missing == len(paths):
        problem, fix = "do not exist", "correct their paths"
    elif missing:
        problem = f"cannot be read, since {missing} do not exist and the others are damaged"
    if len(paths) > SHOWN:
        fix = f"`unskew data verify {cfg.DATASET.NAME} --root {root} --full` lists all; {fix}"
    return f"{problem} ({listed(_relative(paths, root))}): {fix}, or leave them out with DATASET.UNREADABLE skip"


def _check_classes(root: Path, before: Sequence[list[Datum]], after: Sequence[list[Datum]]) -> None:
    """Raise ``ValueError`` if a class, or a whole split, has lost all of its images."""
    labels = [{item.label: item.classname for items in splits for item in items} for splits in (before, after)]
    lost = sorted(set(labels[0]) - set(labels[1]))
    if lost:
        raise ValueError(f"no image of the class '{labels[0][lost[0]]}' in '{root}' can be read: replace its images")
    for name, old, new in zip(("train", "val", "test"), before, after, strict=True):
        if old and not new:
            raise ValueError(f"no {name} image of '{root}' can be read: replace the images")


def _relative(paths: Sequence[str], root: Path) -> list[str]:
    folder = root if root.is_dir() else root.parent
    return [os.path.relpath(path, folder) for path in paths]


# --- opening -----------------------------------------------------------------------------------------


def find_unreadable(paths: Sequence[str], cache: Path | None = None) -> dict[str, str]:
    """Return ``{path: error message}`` of the images that cannot be read, in the order of the paths.

    Args:
        paths: image files.
        cache: the file that lists the images that were read before; they are not opened while size and times stay. One
            snapshot asks for an image once.
    """
    seen = kept("readable")  # an earlier run of the sweep has read these
    paths = [path for path in paths if path not in seen]
    if not paths:
        return {}
    keys, known = file_keys(paths), _read_keys(cache)
    new = np.flatnonzero(~np.isin(keys, known)).tolist()
    found = {path: message for path, message in open_all([paths[i] for i in new], _error) if message}
    readable = [keys[i] for i in new if paths[i] not in found]
    if cache is not None and readable:
        _write_keys(cache, np.union1d(known, np.array(readable, np.int64)))
    seen.update(dict.fromkeys(path for path in paths if path not in found))
    return found


def open_all(paths: Sequence[str], function: Callable[[str], str]) -> Iterator[tuple[str, str]]:
    """Yield each path with what ``function`` returns for it, in order; threads share the work."""
    bar = tqdm(total=len(paths), desc="open images", unit="image", delay=2, leave=False, disable=None)
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow releases Python's lock
        rest = iter(paths)
        while batch := list(islice(rest, _AT_ONCE)):
            parts = [batch[first : first + _PART] for first in range(0, len(batch), _PART)]
            for part, results in zip(
                parts, pool.map(lambda part: [function(path) for path in part], parts), strict=True
            ):
                bar.update(len(part))
                yield from zip(part, results, strict=True)


def _error(path: str) -> str:
    """Return the error message of an image, empty if it can be read."""
    try:
        read_image(path)
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def _read_keys(cache: Path | None) -> Keys:
    try:
        keys = np.load(cache, allow_pickle=False) if cache is not None else np.empty(0, np.int64)
        if keys.dtype == np.int64 and keys.ndim == 1:
            return keys
    except DAMAGE as error:  # most often it does not exist
        logger.debug(f"'{cache}' cannot be used ({error}): the images are opened again")
    return np.empty(0, np.int64)


def _write_keys(cache: Path, keys: Keys) -> None:
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cache, lambda file: np.save(file, keys))
    except (OSError, ValueError) as error:
        logger.debug(f"the list of opened images was not cached: {error}")
