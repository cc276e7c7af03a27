"""How does the cost of a training step grow? The exponent of a power of size, fitted by least squares on logarithms.

    python benchmarks/scaling.py --classes 25 50 100 200

An exponent of 1 is linear. What all sizes share, such as the prefix of the prompts, makes it less.
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

LARGEST = 1.05  # linear but for the noise of timing, some hundredths
COLUMNS = {"name": "what grows", "size": "size", "seconds": "seconds", "each": "seconds each", "exponent": "exponent"}


def classes(arguments: argparse.Namespace) -> Iterator[tuple[int, Callable[[], object]]]:
    """One step of CoOp, text tower and all, by the number of classes."""
    for count in arguments.classes:
        yield count, prepare_ours(arguments.backbone, count, arguments.device, arguments.threads)


def shapes(arguments: argparse.Namespace, shots: int, output: str):
    """CoOp on the embedded world's 96 classes."""
    flags = ("DATASET.ROOT", arguments.root, "OUTPUT_DIR", output, "DATASET.NUM_SHOTS", shots, "INPUT.VIEWS", 1)
    return build_trainer(config.load("shapes", trainer="CoOp", opts=flags))


def images(arguments: argparse.Namespace) -> Iterator[tuple[int, Callable[[], object]]]:
    """Decoding and encoding images, by their number."""
    with tempfile.TemporaryDirectory() as output:
        trainer = shapes(arguments, -1, output)
        paths = [item.impath for item in trainer.dataset.train_x]
        for count in arguments.images:
            yield count, partial(extract, trainer.backbone, paths[:count], trainer.dm.tfm_test, keep=False)


def shots(arguments: argparse.Namespace) -> Iterator[tuple[int, Callable[[], object]]]:
    """One epoch of CoOp on features, by the shots."""
    with tempfile.TemporaryDirectory() as output:
        for count in arguments.shots:
            trainer = shapes(arguments, count, output)
            trainer.max_epoch = 1
            yield count, trainer.run_epoch


# What grows -> a function that gives the sizes, each with a call to be timed.
MEASUREMENTS = {"classes": classes, "images": images, "shots": shots}


def exponent(sizes: list[int], times: list[float]) -> float:
    """The slope b of log(seconds) = a + b log(size)."""
    return statistics.linear_regression(*([math.log(v) for v in values] for values in (sizes, times))).slope


def measure(name: str, arguments: argparse.Namespace) -> list[dict]:
    calls = dict(MEASUREMENTS[name](arguments))
    for call in calls.values():
        call()
    # All sizes in turn, so that a slower minute of the machine meets each of them.
    rounds = [[seconds(call) for call in calls.values()] for _ in range(arguments.repeats)]
    times = [statistics.median(column) for column in zip(*rounds, strict=True)]
    slope = exponent(list(calls), times) if len(calls) > 1 else None
    return [
        {"name": name, "size": size, "seconds": time, "each": time / size, "exponent": slope}
        for size, time in zip(calls, times, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, nargs="+", default=[25, 50, 100, 200], help="of ImageNet, at most 1000")
    parser.add_argument("--images", type=int, nargs="+", default=[240, 480, 960, 1920])
    parser.add_argument("--shots", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--root", default="data", help="where the images of shapes are, or go")
    parser.add_argument("--backbone", default="ViT-B-16@random")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", default="", help="write every number there")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.getLogger("unskew").setLevel(logging.ERROR)

    rows = [row for name in MEASUREMENTS for row in measure(name, arguments)]
    print(f"\n{machine()}\n\n{table(rows, COLUMNS)}")
    write(arguments.json, rows)
    for name in MEASUREMENTS:
        slope = next(row["exponent"] for row in rows if row["name"] == name)
        if slope is not None and slope > LARGEST:
            print(f"{name}: the cost grows with the power {slope:.2f}, more than linearly")


if __name__ == "__main__":
    main()
