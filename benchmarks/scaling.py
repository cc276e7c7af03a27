"""Growth of the cost with classes, images and shots: an exponent, fitted by least squares on logarithms.

    python benchmarks/scaling.py --classes 25 50 100 200

An exponent of 1 is linear. Work that is independent of the size, such as the prefix of the prompts, lowers it.
"""

import argparse
import logging
import math
import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import partial

import torch
from measure import machine, seconds, table, write
from text_step import prepare_ours

from unskew import config
from unskew.clip.features import extract
from unskew.engine.trainer import build_trainer

LARGEST = 1.05  # linear, plus a few hundredths of timing noise
COLUMNS = {"name": "measure", "size": "size", "seconds": "seconds", "each": "seconds each", "exponent": "exponent"}


def classes(arguments: argparse.Namespace) -> Iterator[tuple[int, Callable[[], object]]]:
    """Yield a step of CoOp including the text tower, by number of classes."""
    for count in arguments.classes:
        yield count, prepare_ours(arguments.backbone, count, arguments.device, arguments.threads)


def shapes(arguments: argparse.Namespace, shots: int, output: str):
    """Build CoOp on the embedded world's 96 classes."""
    flags = ("DATASET.ROOT", arguments.root, "OUTPUT_DIR", output, "DATASET.NUM_SHOTS", shots, "INPUT.VIEWS", 1)
    return build_trainer(config.load("shapes", trainer="CoOp", opts=flags))


def images(arguments: argparse.Namespace) -> Iterator[tuple[int, Callable[[], object]]]:
    """Yield the decoding and encoding of images, by number of images."""
    with tempfile.TemporaryDirectory() as output:
        trainer = shapes(arguments, -1, output)
        paths = [item.impath for item in trainer.dataset.train_x]
        for count in arguments.images:
            yield count, partial(extract, trainer.backbone, paths[:count], trainer.dm.tfm_test, keep=False)


def shots(arguments: argparse.Namespace) -> Iterator[tuple[int, Callable[[], object]]]:
    """Yield an epoch of CoOp on features, by shots."""
    with tempfile.TemporaryDirectory() as output:
        for count in arguments.shots:
            trainer = shapes(arguments, count, output)
            trainer.max_epoch = 1
            yield count, trainer.run_epoch


# Functions that yield sizes, each with a call to time.
MEASUREMENTS = {"classes": classes, "images": images, "shots": shots}


def exponent(sizes: list[int], times: list[float]) -> float:
    """Return the slope b of log(seconds) = a + b log(size)."""
    return statistics.linear_regression(*([math.log(v) for v in values] for values in (sizes, times))).slope


def measure(name: str, arguments: argparse.Namespace) -> list[dict]:
    calls = dict(MEASUREMENTS[name](arguments))
    for call in calls.values():
        call()
    # Alternate between the sizes, so that a slow minute of the machine affects all of them.
    rounds = [[seconds(call) for call in calls.values()] for _ in range(arguments.repeats)]
    times = [statistics.median(column) for column in zip(*rounds, strict=True)]
    slope = exponent(list(calls), times) if len(calls) > 1 else None
    return [
        {"name": name, "size": size, "seconds": time, "each": time / size, "exponent": slope}
        for size, time in zip(calls, times, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--classes", type=int, nargs="+", default=[25, 50, 100, 200], help="classes of ImageNet, at most 1000"
    )
    parser.add_argument("--images", type=int, nargs="+", default=[240, 480, 960, 1920])
    parser.add_argument("--shots", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--root", default="data", help="folder of the datasets")
    parser.add_argument("--backbone", default="ViT-B-16@random")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", default="", help="write all numbers to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.getLogger("unskew").setLevel(logging.ERROR)

    rows = [row for name in MEASUREMENTS for row in measure(name, arguments)]
    print(f"\n{machine()}\n\n{table(rows, COLUMNS)}")
    write(arguments.json, rows)
    for name in MEASUREMENTS:
        slope = next(row["exponent"] for row in rows if row["name"] == name)
        if slope is not None and slope > LARGEST:
            print(f"{name}: the cost grows faster than linearly, with exponent {slope:.2f}")


if __name__ == "__main__":
    main()
