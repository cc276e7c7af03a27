"""Writing of an import. The folder appears complete or not at all; an interrupted import resumes at its split.

Everything is written into the hidden folder ``.NAME.import`` beside the folder ``NAME``, and renamed at the end.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from filelock import FileLock, Timeout
from tqdm import tqdm

from unskew import __version__
from unskew.data.image_folders import OWN_NAMES
from unskew.data.importing.formats import file_bytes
from unskew.data.importing.plan import Plan, has_label, make_plan
from unskew.data.importing.source import Label, Source
from unskew.data.names import class_order, listed
from unskew.data.readable import find_unreadable
from unskew.utils.errors import DAMAGE
from unskew.utils.files import expand, move_into_place, read_json, unwritable, write_atomically, write_error, write_json

logger = logging.getLogger("unskew")

MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"  # in the format of the tool sha256sum

_VERSION = 1

_LOCK = ".lock"

_AT_ONCE = 1000  # images that are opened together after they are written


def import_images(source: Source, out: str | Path, classnames: str = "") -> tuple[dict[str, Any], bool]:
    """Write the images of a source into ``out/{train,val,test}/<class>/``.

    Args:
        source: the source, not opened.
        out: the folder to create.
        classnames: a file of class names instead of the source's.

    Returns:
        The manifest, and whether this call wrote it; an import that was finished earlier is left as it is.

    Raises:
        ValueError: the folder holds something else, or the source is damaged, see `make_plan`.
        OSError: the folder cannot be written, or the disk is full.
    """
    out = Path(os.path.realpath(expand(out)))
    identity = source.identity | _names_identity(classnames)
    if (manifest := _finished(out, identity)) is not None:
        return manifest, False
    staging = out.with_name(f".{out.name}.import")
    _check_place(out, staging, identity)
    source.open()
    plan = make_plan(source, classnames)
    with _locked(staging):
        if (manifest := _finished(out, identity)) is not None:  # another process was faster
            shutil.rmtree(staging, ignore_errors=True)
            return manifest, False
        write_json(identity, _parts(staging) / "identity.json")
        written = {split: _write_once(source, plan, split, staging) for split in plan.counts}
        splits = {split: facts for split, facts in written.items() if facts["images"]}
        manifest = {
            "version": _VERSION,
            "identity": identity,
            **source.facts,
            "splits": splits,
            "classes": _classes(plan, splits),
            "versions": {"unskew": __version__, **source.versions()},
        }
        _finish(staging, out, manifest)
    return manifest, True


def _names_identity(classnames: str) -> dict[str, str]:
    if not classnames:
        return {}
    file = expand(classnames)
    content = file.read_bytes() if file.is_file() else b""  # `make_plan` reports a missing file
    return {"classnames": f"sha256 {hashlib.sha256(content).hexdigest()}"}


def _classes(plan: Plan, splits: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the name and the source's label of each folder, in the order of the dataset `folder`.

    Raises:
        ValueError: fewer than two classes have images.
    """
    labels = {folder: label for label, folder in plan.folders.items()}
    filled = set[str]().union(*(facts["classes"] for facts in splits.values()))
    if len(filled) < 2:
        raise ValueError(f"{len(filled)} class(es) of {len(labels)} have image files: two or more are needed")
    if empty := [plan.names[labels[folder]] for folder in labels if folder not in filled]:
        logger.warning(f"{len(empty)} class(es) have no image file and are left out: {listed(empty)}")
    order = class_order(filled, "the import")
    return {folder: {"name": plan.names[labels[folder]], "label": labels[folder]} for folder in order}


# --- the place ---------------------------------------------------------------------------------------


def _parts(staging: Path) -> Path:
    """Return the folder of an import's unfinished split and of its records."""
    return staging / ".parts"


def _finished(out: Path, identity: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the manifest of a finished import of this source, ``None`` if the folder does not exist or is empty.

    Raises:
        ValueError: the folder holds something else.
    """
    if not os.path.lexists(out) or (out.is_dir() and not os.listdir(out)):
        return None
    try:
        manifest = read_json(out / MANIFEST)
        known = manifest["identity"]
        if known == identity and manifest["version"] == _VERSION:
            _tidy(out)
            return manifest
        problem = _difference(known, identity)
    except DAMAGE:
        problem = "is not empty and holds no import"
    raise ValueError(f"'{out}' {problem}: give a new folder with --out")


def _difference(known: Mapping[str, str], identity: Mapping[str, str]) -> str:
    one, two = (f"{facts['kind']} {facts['source']}" for facts in (known, identity))
    if one != two:
        return f"holds the import of {one}, not of {two}"
    keys = sorted(key for key in {**known, **identity} if known.get(key) != identity.get(key))
    return f"holds an import of {one} that differs in {', '.join(keys) or 'its version'}"


def _check_place(out: Path, staging: Path, identity: Mapping[str, str]) -> None:
    """Raise an error if the folder cannot be created, or another source's import waits there."""
    if problem := unwritable(out.parent):
        raise ValueError(f"'{out}' cannot be created: {problem}; choose another folder with --out")
    with contextlib.suppress(FileNotFoundError):
        known = read_json(_parts(staging) / "identity.json")
        if known != identity:
            problem = _difference(known, identity)
            raise ValueError(f"'{staging}' {problem}, unfinished: finish it, or delete that folder")


@contextlib.contextmanager
def _locked(staging: Path) -> Iterator[None]:
    """Keep other processes out of the unfinished import."""
    path = staging / _LOCK
    try:
        _parts(staging).mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=0)
        lock.acquire()
    except Timeout:
        raise ValueError(f"another process imports into '{staging}': wait until it ends") from None
    except OSError as error:
        raise write_error(path, error) from error
    try:
        yield
    finally:
        lock.release()


# --- one split ---------------------------------------------------------------------------------------


def _write_once(source: Source, plan: Plan, split: str, staging: Path) -> dict[str, Any]:
    """Write a split and return its record, or return the record that an interrupted import left."""
    record, part = _parts(staging) / f"{split}.json", _parts(staging) / split
    if (staging / split).is_dir():
        logger.info(f"{split}: written before the interruption")
        return read_json(record)
    shutil.rmtree(part, ignore_errors=True)
    with _sums(staging, split).open("w", encoding="utf-8", buffering=1) as sums:
        facts = {"from": source.splits[split], **_write(source, plan, split, part, sums)}
    if unreadable := facts["unreadable"]:
        logger.warning(f"{split}: {len(unreadable):,} image(s) cannot be read, for instance '{unreadable[0]}'")
    if missing := facts["without image"]:
        logger.warning(f"{split}: {missing:,} row(s) have a label but no image and are left out")
    if facts["images"] + missing != plan.counts[split].total():
        raise ValueError(f"{source} has changed while it was read: start the import again")
    write_json(facts, record)
    if facts["images"]:
        with _writing(staging / split):
            move_into_place(part, staging / split)
    return facts


def _sums(staging: Path, split: str) -> Path:
    return _parts(staging) / f"{split}.sums"


def _write(source: Source, plan: Plan, split: str, part: Path, sums: TextIO) -> dict[str, Any]:
    """Write the images of a split and the lines of ``SUMS``; return the facts for the manifest.

    The number in a file's name is the image's place in the source.
    """
    counts: Counter[str] = Counter()
    unreadable: list[str] = []
    waiting: list[str] = []  # written and not yet opened
    digest = hashlib.sha256()
    missing = 0
    bar = tqdm(total=plan.counts[split].total(), desc=f"import {split}", unit="image", leave=False, disable=None)
    with bar:
        for place, (label, stored) in enumerate(source.images(split)):
            if not has_label(label):
                continue
            bar.update()
            if (encoded := file_bytes(stored)) is None:
                missing += 1
                continue
            folder = _folder(source, plan, label)
            name = f"{place:08d}{encoded[0]}"
            _put(part / folder / name, encoded[1], new=folder not in counts)
            counts[folder] += 1
            line = f"{hashlib.sha256(encoded[1]).hexdigest()}  {split}/{folder}/{name}\n"
            with _writing(sums.name):
                sums.write(line)
            digest.update(line.encode())
            waiting.append(f"{part}/{folder}/{name}")
            if len(waiting) == _AT_ONCE:
                unreadable += find_unreadable(waiting)
                waiting.clear()
    unreadable += find_unreadable(waiting)
    return {
        "images": counts.total(),
        "without image": missing,
        "unreadable": [os.path.relpath(path, part) for path in unreadable],
        "sha256": digest.hexdigest(),  # of the split's lines in SUMS
        "classes": dict(sorted(counts.items())),
    }


def _folder(source: Source, plan: Plan, label: Label) -> str:
    if label not in plan.folders:
        raise ValueError(f"{source} has changed while it was read: start the import again")
    return plan.folders[label]


def _put(path: Path, content: bytes, new: bool) -> None:
    with _writing(path):
        if new:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@contextlib.contextmanager
def _writing(path: str | Path) -> Iterator[None]:
    """Name the file in an error of writing, and what to do."""
    try:
        yield
    except OSError as error:
        raise write_error(path, error) from error


# --- the end -----------------------------------------------------------------------------------------


def _finish(staging: Path, out: Path, manifest: Mapping[str, Any]) -> None:
    """Write the files beside the splits, and rename the folder."""

    def join(file: BinaryIO) -> None:
        for split in manifest["splits"]:
            with _sums(staging, split).open("rb") as part:
                shutil.copyfileobj(part, file)

    write_atomically(staging / SUMS, join)
    names = {folder: facts["name"] for folder, facts in manifest["classes"].items()}
    if any(folder != name for folder, name in names.items()):
        write_json(names, staging / OWN_NAMES)
    write_atomically(staging / MANIFEST, f"{json.dumps(manifest, indent=1)}\n")
    with _writing(out):
        move_into_place(staging, out)
    _tidy(out)


def _tidy(out: Path) -> None:
    """Delete the records of a finished import, which a kill after the renaming would leave."""
    shutil.rmtree(_parts(out), ignore_errors=True)
    with contextlib.suppress(OSError):
        (out / _LOCK).unlink()
