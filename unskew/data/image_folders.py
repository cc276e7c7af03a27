"""The images in a folder of class folders, listed once: a million files take minutes to list on a network disk."""

import hashlib
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from unskew.utils.files import cache_folder, read_json, write_json

logger = logging.getLogger("unskew")

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")

# Fewer files are listed faster than a cache is worth.
CACHE_FROM = 10_000

# A folder that changed just before it was listed may change again without its time showing it.
_SETTLED = 2.0

# No path has this in it.
_BETWEEN = "//"


def class_folders(folder) -> list[str]:
    """The names of the folders in a folder, sorted; hidden ones are left out.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"there is no folder '{folder}'; check the data root, or prepare the dataset again")
    with os.scandir(folder) as found:
        return sorted(entry.name for entry in found if not entry.name.startswith(".") and _is_folder(entry))


def _is_folder(entry: os.DirEntry) -> bool:
    # A link to itself makes is_dir() fail.
    return os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()


def list_images(folder, cache=None) -> dict[str, list[str]]:
    """``{class folder: its images}``, both sorted; images are paths relative to their class folder, at any depth.

    From ``CACHE_FROM`` images on the list is kept in a file beside the folder and read from there as long as no folder
    has changed (its time of change does when a file comes or goes).

    Args:
        cache: where to keep it; `cache_folder` of the folder's parent unless given.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    folder = Path(folder)
    names = class_folders(folder)
    path = Path(cache or cache_folder(folder.parent)) / f".listing-{folder.name}.json"
    kept = _read(path, folder, names)
    if kept is not None:
        return kept
    started = time.time()
    with ThreadPoolExecutor(16) as pool:  # on a network disk it is the waiting that takes long
        listed = list(pool.map(_list, (folder / name for name in names)))
    images = {name: sorted(found) for name, (found, _) in zip(names, listed, strict=True)}
    if sum(map(len, images.values())) >= CACHE_FROM:
        below = {name: sorted(inner) for name, (_, inner) in zip(names, listed, strict=True) if inner}
        _keep(path, folder, images, below, started)
    return images


def _list(folder: Path) -> tuple[list[str], list[str]]:
    """The images below a folder and the folders below it, relative to it."""
    images, folders, waiting = [], [], [""]
    while waiting:
        inner = waiting.pop()
        with os.scandir(folder / inner) as found:
            for entry in found:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):  # links may go round in circles
                    folders.append(f"{inner}{entry.name}/")
                    waiting.append(folders[-1])
                elif entry.name.lower().endswith(EXTENSIONS):
                    images.append(inner + entry.name)
    return images, folders


def _state(folder: Path, names, below: dict[str, list[str]]) -> tuple[str, float]:
    """A hash of what counts as an image and of all folders' names and times of change; the latest of these times."""
    inside = [f"{name}/{inner}" for name in names for inner in ("", *below.get(name, ()))]
    times = [os.stat(os.path.join(folder, path)).st_mtime_ns for path in ("", *inside)]
    content = "\n".join([*EXTENSIONS, str(times[0]), *map("{} {}".format, inside, times[1:])])
    # fsencode: names that are not UTF-8
    return hashlib.sha256(os.fsencode(content)).hexdigest(), max(times) / 1e9


def _read(path: Path, folder: Path, names: list[str]) -> dict[str, list[str]] | None:
    try:
        content = read_json(path)
        if content["state"] == _state(folder, names, content["below"])[0]:
            return {name: found.split(_BETWEEN) if found else [] for name, found in content["images"].items()}
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.debug(f"'{path}' cannot be used ({error}): the folder is listed again")
    return None


def _keep(path: Path, folder: Path, images: dict[str, list[str]], below: dict[str, list[str]], started: float) -> None:
    try:
        state, changed = _state(folder, images, below)
        if started - changed > _SETTLED:
            joined = {name: _BETWEEN.join(found) for name, found in images.items()}
            write_json({"state": state, "below": below, "images": joined}, path)
    except OSError as error:  # a full disk, or a folder that went away: it is listed again next time
        logger.debug(f"the list of '{folder}' was not kept: {error}")
