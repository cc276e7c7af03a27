"""A synthetic data set of many classes, as image folders: what ImageNet's number of classes needs without its images.

    python benchmarks/classes.py FOLDER --classes 1000

A class is a random pattern of 8 x 8 colours. An image is this pattern plus noise in each of its cells, enlarged to
32 x 32 pixels; the noise is weaker in some images and stronger in others. A class has the same images whatever the
number of classes. Its name is three words that the `micro` models know, without a relation to its images.

The default noise was chosen for LinearProbe on `micro` at 1,000 classes: a solver that stops too early (scikit-learn's
default tolerance, C = 10 reached from smaller values) has 92.6% on test, its converged solution for C = 100 has 97.3%.
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
from PIL import Image

CELLS = 8
PER_CELL = 4  # pixels
NOISE = 0.2  # mean standard deviation, relative to the patterns
COUNTS = {"train": 16, "val": 10, "test": 20}  # images per class
WORDS = (
    "small large tiny good bad bright dark blurry clean dirty old new nice weird cool black white grey".split(),
    "red orange yellow green blue purple pink brown toy plastic cartoon tattoo handwritten cropped solid".split(),
    "circle square triangle star cross ring diamond heart moon hexagon arrow drop digit letter sculpture thing "
    "drawing painting sketch game".split(),
)


def class_names(count: int) -> list[str]:
    """Return ``count`` different names; the first ones do not depend on ``count``."""
    names = list(map(" ".join, itertools.product(*WORDS)))
    if count > len(names):
        raise ValueError(f"--classes must be at most {len(names)} (got {count})")
    return [names[index] for index in np.random.default_rng(17).permutation(len(names))[:count]]


def draw(label: int, count: int, noise: float = NOISE) -> np.ndarray:
    """Draw images of a class: uint8 [count, 32, 32, 3]."""
    rng = np.random.default_rng([17, label])
    pattern = rng.standard_normal((1, CELLS, CELLS, 3))
    scale = noise * rng.uniform(0.5, 1.5, (count, 1, 1, 1))
    cells = np.clip(0.5 + 0.25 * (pattern + scale * rng.standard_normal((count, CELLS, CELLS, 3))), 0, 1)
    return (cells * 255).astype(np.uint8).repeat(PER_CELL, 1).repeat(PER_CELL, 2)


def write(root: Path, classes: int, counts: dict[str, int], noise: float = NOISE) -> Path:
    """Write ``root/<split>/<class>/<number>.png`` unless ``root`` exists.

    Args:
        root: the folder of the data set.
        classes: the number of classes.
        counts: images per class of each split.
        noise: see `NOISE`.
    """
    if root.exists():
        return root
    for label, name in enumerate(class_names(classes)):
        images = iter(draw(label, sum(counts.values()), noise))
        for split, count in counts.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for number, image in enumerate(itertools.islice(images, count)):
                Image.fromarray(image).save(folder / f"{number}.png", compress_level=1)
    return root


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--classes", type=int, default=1000)
    for split, count in COUNTS.items():
        parser.add_argument(f"--{split}", type=int, default=count, help=f"images per class, default {count}")
    parser.add_argument("--noise", type=float, default=NOISE)
    arguments = parser.parse_args()
    write(arguments.folder, arguments.classes, {split: getattr(arguments, split) for split in COUNTS}, arguments.noise)


if __name__ == "__main__":
    main()
