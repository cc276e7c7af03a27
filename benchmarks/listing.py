"""Time to list the images of ImageNet, on a generated tree of empty files.

    python benchmarks/listing.py --files 1281167

unskew lists the folders once and keeps the list in a file whose key is the state of all folders. Each time is the
median of three, with the folders in the system's cache. On a network disk the first listing takes longest.
"""

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tabulate import tabulate
from tqdm import tqdm

from unskew import config
from unskew.data.dataset import Datum, build_dataset
from unskew.data.image_folders import list_images
from unskew.data.published import openai_templates
from unskew.utils.files import write_atomically

REPEATS = 3
SHOTS = 16
# ImageNet has 1,281,167 training images and 50,000 to test on.
PER_TEST_IMAGE = 25


def plant(root: Path, files: int, classes: int) -> Path:
    """Create ImageNet's folders with empty files, last changed an hour ago; return the folder of training images."""
    images = root / "imagenet" / "images"
    names = [f"n{label:08d}" for label in range(classes)]
    for split, total in (("train", files), ("val", max(files // PER_TEST_IMAGE, classes))):
        for label, name in enumerate(tqdm(names, desc=split, unit="class", leave=False, disable=None)):
            folder = images / split / name
            folder.mkdir(parents=True)
            for number in range(total // classes + (label < total % classes)):
                os.close(os.open(folder / f"{name}_{number}.JPEG", os.O_CREAT | os.O_WRONLY))
    text = "".join(f"{name} class {label}\n" for label, name in enumerate(names))
    (root / "imagenet" / "classnames.txt").write_text(text)
    then = time.time() - 3600
    for folder in (images, *images.glob("*"), *images.glob("*/*")):
        os.utime(folder, (then, then))
    return images / "train"


def seconds(call: Callable[[], object], before: Callable[[], object] = lambda: None) -> list[float]:
    times = []
    for _ in range(REPEATS):
        before()
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def as_published(folder: Path, look_up: bool) -> list[Datum]:
    """List all images without a cache; ``look_up`` checks that each image exists, as Dassl's Datum does."""
    items = []
    for label, name in enumerate(sorted(os.listdir(folder))):
        for file in os.listdir(folder / name):
            path = os.path.join(folder, name, file)
            if not look_up or os.path.isfile(path):
                items.append(Datum(path, label, 0, name))
    return items


def measure(root: Path, files: int, classes: int) -> list[dict]:
    folder = plant(root, files, classes)
    kept = folder.parent / f".listing-{folder.name}.json"
    opts = ("DATASET.ROOT", str(root), "DATASET.NUM_SHOTS", SHOTS)
    cfg = config.load("imagenet", "micro", "ZeroshotCLIP", opts)
    openai_templates()  # import open_clip before the measurement
    times = {
        "list the files and save the list": seconds(lambda: list_images(folder), lambda: kept.unlink(missing_ok=True))
    }
    if not kept.is_file():
        raise SystemExit(f"unskew does not keep lists of {files} files: pass a larger --files")
    times["read the saved list"] = seconds(lambda: list_images(folder))
    build_dataset(cfg)  # lists the test images
    times[f"build the {SHOTS}-shot dataset from saved lists"] = seconds(lambda: build_dataset(cfg))
    times["`os.listdir` and one object per file"] = seconds(lambda: as_published(folder, look_up=False))
    times["the same, with a check that each image exists"] = seconds(lambda: as_published(folder, look_up=True))
    return [
        {"name": name, "files": files, "classes": classes, "seconds": statistics.median(values), "all": values}
        for name, values in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=100_000, help="training images")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--json", default="", help="write all numbers to this file")
    arguments = parser.parse_args()
    logging.getLogger("unskew").setLevel(logging.ERROR)

    with tempfile.TemporaryDirectory() as root:
        rows = measure(Path(root), arguments.files, arguments.classes)
    print(f"\n{arguments.files} files in {arguments.classes} folders\n")
    print(tabulate([[row["name"], row["seconds"]] for row in rows], ["", "seconds"], "github", floatfmt=".3f"))
    if arguments.json:
        write_atomically(arguments.json, json.dumps({"rows": rows}) + "\n")


if __name__ == "__main__":
    main()
