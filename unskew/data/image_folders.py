"""The images in a folder of class folders. The list is cached: a million files take minutes on a network disk."""

import gc
import hashlib
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from unskew.data.dataset import Datum
from unskew.data.snapshot import remember
from unskew.utils.errors import DAMAGE
from unskew.utils.files import cache_folder, read_json, user_cache, write_json

logger = logging.getLogger("unskew")

# HEIC files of phones are listed although Pillow cannot read them: an error is better than their silent loss.
EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff"),
    *(".webp", ".avif", ".jp2", ".tga", ".heic", ".heif"),
)

# Folders that operating systems, disks and archives leave, in small letters. Hidden folders are skipped too.
LEFT_OVER = frozenset(
    [
        *("@eadir", "__macosx", "lost+found", "$recycle.bin", "system volume information"),
        *("#recycle", "@recycle", "#snapshot"),
    ]
)

# The file in the user's folder that names its classes, in the format of DATASET.CLASSNAMES.
OWN_NAMES = "classnames.json"

# A cache is not worth it for fewer files.
CACHE_FROM = 10_000

# Seconds. A folder that changed just before it was listed may change again with the same modification time.
_SETTLED = 2.0

# A separator that no path contains.
_SEPARATOR = "//"


def class_folders(folder: str | Path) -> list[str]:
    """Return the sorted names of the subfolders of a folder without hidden and left-over ones.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"there is no folder '{folder}'; check the data root, or prepare the dataset again")
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not is_left_over(entry.name) and _is_folder(entry))


def is_left_over(name: str) -> bool:
    """Return whether a file or folder is hidden, or left by an operating system, a disk or an archive."""
    return name.startswith(".") or name.lower() in LEFT_OVER


def _is_folder(entry: os.DirEntry) -> bool:
    # entry.is_dir() raises for a link to itself.
    return os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()


def list_images(folder: str | Path, cache: Path | None = None) -> dict[str, list[str]]:
    """Return ``{class folder: its images}``, both sorted.

    Images are paths relative to their class folder, at any depth. A list of ``CACHE_FROM`` images or more is cached
    and used until the modification time of a folder changes, which happens when a file is added or removed.

    Args:
        folder: the folder of class folders.
        cache: the folder of the cache; default `cache_folder` of the folder's parent.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    folder = Path(folder)
    names = class_folders(folder)
    path = Path(cache or cache_folder(folder.parent)) / f".listing-{folder.name}.json"
    cached = _read_cache(path, folder, names)
    if cached is not None:
        return cached
    started = time.time()
    with ThreadPoolExecutor(16) as pool:  # a network disk answers slowly, but many requests at once
        listed = list(pool.map(_walk, (folder / name for name in names)))
    images = {name: sorted(paths) for name, (paths, _) in zip(names, listed, strict=True)}
    if sum(map(len, images.values())) >= CACHE_FROM:
        subfolders = {name: sorted(inner) for name, (_, inner) in zip(names, listed, strict=True) if inner}
        _write_cache(path, folder, images, subfolders, started)
    return images


def _walk(folder: Path) -> tuple[list[str], list[str]]:
    """Return the images and the folders below a folder, relative to it."""
    images: list[str] = []
    folders: list[str] = []
    waiting = [""]
    while waiting:
        inner = waiting.pop()
        with os.scandir(folder / inner) as entries:
            for entry in entries:
                if is_left_over(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):  # links may form a cycle
                    folders.append(f"{inner}{entry.name}/")
                    waiting.append(folders[-1])
                elif entry.name.lower().endswith(EXTENSIONS):
                    images.append(inner + entry.name)
    return images, folders


def _state(folder: Path, names: Iterable[str], subfolders: Mapping[str, list[str]]) -> tuple[str, float]:
    """Return a hash of what is listed and of all folders' names and modification times, and the latest time."""
    inside = [f"{name}/{inner}" for name in names for inner in ("", *subfolders.get(name, ()))]
    times = [os.stat(os.path.join(folder, path)).st_mtime_ns for path in ("", *inside)]
    content = "\n".join([*EXTENSIONS, *sorted(LEFT_OVER), str(times[0]), *map("{} {}".format, inside, times[1:])])
    return hashlib.sha256(os.fsencode(content)).hexdigest(), max(times) / 1e9  # fsencode: names may not be UTF-8


def _read_cache(path: Path, folder: Path, names: list[str]) -> dict[str, list[str]] | None:
    try:
        content = read_json(path)
        if content["state"] == _state(folder, names, content["below"])[0]:
            return {name: joined.split(_SEPARATOR) if joined else [] for name, joined in content["images"].items()}
    except FileNotFoundError:
        pass
    except DAMAGE as error:
        logger.debug(f"'{path}' cannot be used ({error}): the folder is listed again")
    return None


def _write_cache(
    path: Path, folder: Path, images: dict[str, list[str]], subfolders: dict[str, list[str]], started: float
) -> None:
    try:
        state, changed = _state(folder, images, subfolders)
        if started - changed > _SETTLED:
            joined = {name: _SEPARATOR.join(paths) for name, paths in images.items()}
            write_json({"state": state, "below": subfolders, "images": joined}, path)
    except OSError as error:  # a full disk, or a folder that was removed
        logger.debug(f"the list of '{folder}' was not cached: {error}")


def user_images(root: str | Path) -> dict[str, list[str]]:
    """Return `list_images` of the user's folder; within a snapshot the folder is listed once."""
    return remember(("images", os.path.realpath(root)), lambda: list_images(root, user_cache(root)))


def list_subfolder(folder: Path, images: Iterable[str], cache: Path) -> dict[str, list[str]]:
    """Return `list_images` of a folder whose images are known from the list of its parent folder.

    Args:
        folder: the folder of class folders.
        images: its images as the parent's list has them, without the images behind links.
        cache: see `list_images`, which lists the folder if a class folder is a link.
    """
    listed: dict[str, list[str]] = {name: [] for name in class_folders(folder)}
    for path in images:
        name, _, image = path.partition("/")
        if image and name in listed:
            listed[name].append(image)
    if any(not found and os.path.islink(folder / name) for name, found in listed.items()):
        return list_images(folder, cache)
    return listed


def folder_items(folder: Path, classes: Mapping[str, tuple[int, str]]) -> list[Datum]:
    """Return the images of class folders, class by class.

    Args:
        folder: the folder of class folders.
        classes: ``{folder's name: (label, class name)}``.

    Raises:
        FileNotFoundError: the folder, or the folder of a class, does not exist.
    """
    return listed_items(folder, list_images(folder), classes)


def listed_items(folder: Path, listed: Mapping[str, list[str]], classes: Mapping[str, tuple[int, str]]) -> list[Datum]:
    """Return the images of class folders, class by class, from the result of `list_images`; see `folder_items`."""
    items: list[Datum] = []
    with _garbage_collection_paused():
        for name, (label, classname) in classes.items():
            if name not in listed:
                raise FileNotFoundError(
                    f"there is no folder '{folder / name}' for class '{classname}'; prepare it again"
                )
            prefix = f"{folder / name}/"
            items += [Datum(prefix + image, label, 0, classname) for image in listed[name]]
    return items


@contextmanager
def _garbage_collection_paused() -> Iterator[None]:
    # While a million objects are created, the search for cycles takes longer than their creation.
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
