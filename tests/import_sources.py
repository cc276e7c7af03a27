"""Images and a source in memory for tests of `unskew data import`."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from unskew.data.importing import import_images
from unskew.data.importing.source import Source, Stored

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


def picture(shade: int, form: str = "JPEG") -> bytes:
    """Return an image file of 8 x 8 pixels; each shade has other bytes."""
    pixels = np.random.RandomState(shade).randint(0, 256, (8, 8, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


class Memory(Source):
    """A source of ``{split: [(label, bytes)]}``."""

    kind = "memory"

    def __init__(self, splits, names=(), name="here"):
        super().__init__({"source": name})
        self.content, self.names = splits, names

    def open(self):
        self.splits = {split: f"the {split}" for split in self.content}
        self.classnames = dict(enumerate(self.names))

    def labels(self, split):
        yield from (label for label, _ in self.content[split])

    def images(self, split):
        yield from ((label, Stored(content)) for label, content in self.content[split])


def some(classes=3, each=4, splits=("train", "test"), labels=None):
    """Return the content of a `Memory`, class after class in turn, all images different."""
    labels = range(classes) if labels is None else labels
    return {
        split: [(label, picture(1000 * n + i * classes + c)) for i in range(each) for c, label in enumerate(labels)]
        for n, split in enumerate(splits)
    }


def tree(folder: Path) -> dict[str, bytes]:
    """Return the content of all files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def images(folder: Path) -> dict[str, list[bytes]]:
    """Return the images below a folder of an import by ``split/class folder``."""
    found: dict[str, list[bytes]] = {}
    for path in sorted(folder.glob("*/*/*")):
        found.setdefault(path.parent.relative_to(folder).as_posix(), []).append(path.read_bytes())
    return found


def manifest(folder: Path) -> dict:
    """Return the manifest, after a check of the hashes in it and in ``SHA256SUMS``."""
    content = json.loads((folder / "manifest.json").read_text())
    lines = (folder / "SHA256SUMS").read_text().splitlines(keepends=True)
    written = {path.relative_to(folder).as_posix() for path in folder.glob("*/*/*")}
    assert {line.rstrip("\n").split("  ", 1)[1] for line in lines} == written
    for line in lines:
        digest, path = line.rstrip("\n").split("  ", 1)
        assert hashlib.sha256((folder / path).read_bytes()).hexdigest() == digest
    for split, facts in content["splits"].items():
        own = "".join(line for line in lines if line.split("  ", 1)[1].startswith(f"{split}/"))
        assert hashlib.sha256(own.encode()).hexdigest() == facts["sha256"]
        assert facts["images"] == len(own.splitlines()) == sum(facts["classes"].values())
    return content


__all__ = ["FORMATS", "Memory", "images", "import_images", "manifest", "picture", "some", "tree"]
