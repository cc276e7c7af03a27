"""Generated JPEG files of the size of ImageNet's photos, as image folders.

    python benchmarks/photos.py FOLDER --classes 1000

An image has 500 x 375 pixels: smooth colours of its class, and noise at two scales that gives the file about as many
bytes as an average photo of ImageNet (110 KB), on which the time to decode it depends.
"""

import argparse
import itertools
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from classes import class_names
from PIL import Image

WIDTH, HEIGHT = 500, 375
COUNTS = {"train": 16, "val": 4, "test": 10}  # images per class
QUALITY = 90


def draw(label: int, number: int) -> Image.Image:
    """Draw an image of a class."""
    rng = np.random.default_rng([label, number])
    colours = Image.fromarray(np.random.default_rng(label).integers(40, 216, (3, 4, 3), dtype=np.uint8))
    coarse = rng.integers(-20, 21, (HEIGHT // 5, WIDTH // 5, 3), dtype=np.int16).repeat(5, 0).repeat(5, 1)
    fine = rng.integers(-20, 21, (HEIGHT, WIDTH, 1), dtype=np.int16)
    pixels = np.asarray(colours.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.int16) + coarse + fine
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def write_class(root: Path, counts: dict[str, int], label: int, name: str) -> None:
    numbers = itertools.count()
    for split, count in counts.items():
        folder = root / split / name
        folder.mkdir(parents=True, exist_ok=True)
        for number in itertools.islice(numbers, count):
            draw(label, number).save(folder / f"{number}.jpg", quality=QUALITY)


def write(root: Path, classes: int, counts: dict[str, int], jobs: int | None = None) -> Path:
    """Write ``root/<split>/<class>/<number>.jpg`` unless ``root`` exists; ``jobs`` processes share the classes."""
    if not root.exists():
        partly = root.with_name(f"{root.name}.partly")
        with ProcessPoolExecutor(jobs or os.cpu_count()) as pool:
            chunk = max(1, classes // 200)
            for _ in pool.map(
                partial(write_class, partly, counts), range(classes), class_names(classes), chunksize=chunk
            ):
                pass
        partly.rename(root)
    return root


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--classes", type=int, default=1000)
    for split, count in COUNTS.items():
        parser.add_argument(f"--{split}", type=int, default=count, help=f"images per class, default {count}")
    arguments = parser.parse_args()
    write(arguments.folder, arguments.classes, {split: getattr(arguments, split) for split in COUNTS})


if __name__ == "__main__":
    main()
