"""Number and size of the files of an installed dataset, which show later that files are empty or missing.

`record` notes them in ``.prepared.json`` when a source is unpacked. Targets that the user put there have no note.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from unskew.download.sources import Source
from unskew.utils.files import read_json, write_json

NOTE = ".prepared.json"


@dataclass
class Tally:
    """The files of a target, without hidden ones.

    Attributes:
        files: their number.
        size: their bytes.
        images: the number of those with the extension of an image.
        empty: relative paths of files without content; a link that leads nowhere counts.
    """

    files: int
    size: int
    images: int
    empty: list[str]


def tally(target: Path, extensions: tuple[str, ...] = ()) -> Tally:
    """Count the files of a target; ``extensions`` are those of images. A million files take seconds on a local disk."""
    if not target.is_dir():
        sizes = [("", target.stat().st_size)]
    else:
        with os.scandir(target) as entries:
            first = [entry.name for entry in entries if not entry.name.startswith(".")]
        folders = [name for name in first if os.path.isdir(target / name)]  # a class folder may be a link
        with ThreadPoolExecutor(16) as pool:  # a network disk answers slowly, but many requests at once
            listed = list(pool.map(lambda name: list(_walk(target, name)), folders))
        sizes = [(name, _size(target / name)) for name in first if name not in set(folders)]
        sizes += [pair for pairs in listed for pair in pairs]
    images = sum(name.lower().endswith(extensions) for name, _ in sizes) if extensions else 0
    return Tally(len(sizes), sum(size for _, size in sizes), images, [name for name, size in sizes if not size])


def _walk(target: Path, folder: str) -> Iterator[tuple[str, int]]:
    """Yield each file below a folder with its size; links to folders are not followed."""
    waiting = [folder]
    while waiting:
        inner = waiting.pop()
        with os.scandir(target / inner) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                path = f"{inner}/{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(path)
                else:
                    yield path, _size(entry)


def _size(file: os.PathLike) -> int:
    try:
        return os.stat(file).st_size if not isinstance(file, os.DirEntry) else file.stat().st_size
    except OSError:
        return 0


def record(folder: Path, source: str, targets: Iterable[str]) -> None:
    """Note the number and the size of the files of targets that were just unpacked."""
    counts = {target: tally(folder / target) for target in targets}
    known = _read(folder)
    noted = {**known.get(source, {}), **{target: [count.files, count.size] for target, count in counts.items()}}
    write_json({**known, source: noted}, folder / NOTE)


def _read(folder: Path) -> dict[str, dict]:
    with contextlib.suppress(OSError, ValueError):  # missing or damaged: as if the user had put the files there
        content = read_json(folder / NOTE)
        if isinstance(content, dict) and all(isinstance(noted, dict) for noted in content.values()):
            return content
    return {}


def check(folder: Path, sources: Sequence[Source], images: int = 0, extensions: tuple[str, ...] = ()) -> None:
    """Check the targets of sources that are in a dataset's folder.

    Args:
        folder: the dataset's folder.
        sources: sources whose targets exist.
        images: the published number of images, which the targets must hold together if they hold image files; 0:
            unknown.
        extensions: those of image files.

    Raises:
        ValueError: files are empty, or fewer or smaller than when they were unpacked, or fewer than published; the
            message names the folder to delete.
    """
    known, found = _read(folder), {}
    for source in sources:
        for target in source.targets:
            path = folder / target
            if path.exists():
                found[path] = count = tally(path, extensions)
                problem = _problem(count, known.get(source.name, {}).get(target), extensions)
                if problem:
                    raise ValueError(f"'{path}' is damaged: {problem}; delete it and run the same command again")
    total = sum(count.images for count in found.values())
    if 0 < total < images:
        largest = max(found, key=lambda path: found[path].images)
        raise ValueError(
            f"'{largest}' is not complete: there are {total:,} images, and {images:,} are published; delete it and run "
            "the same command again"
        )


def _problem(count: Tally, noted: object, extensions: tuple[str, ...]) -> str:
    match noted:
        case [int(files), int(size)]:
            pass
        case _:  # the user put the target there
            files = size = 0
    if count.files < files:
        return f"it has {count.files:,} of {files:,} files"
    # An archive may hold an empty file, but no empty image.
    empty = [name for name in count.empty if not files or name.lower().endswith(extensions)]
    if empty:
        example = f", such as '{min(empty)}'" if min(empty) else ""
        return f"{len(empty):,} of its {count.files:,} files are empty{example}"
    if count.size < size:
        return f"its files have {count.size:,} instead of {size:,} bytes"
    return ""
