"""Accuracy and time of cached augmented views, compared with a new view at every step.

    python benchmarks/views.py --dataset digits --seeds 11 12 13

Each number of views trains the same runs from an empty cache; 0 encodes a new view of each image in every epoch, as the
published trainers do. Accuracy is measured on val, so that no choice depends on test images.
"""

import argparse
import logging
import os
import statistics
import tempfile
import time

import torch
from measure import machine, write
from tabulate import tabulate

from unskew import config
from unskew.engine.trainer import build_trainer
from unskew.runs.tables import mean_and_deviation as spread
from unskew.utils import row_store
from unskew.utils.seeds import set_random_seed


def run(dataset: str, trainer: str, views: int, seed: int, root: str, opts: list[str]) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["UNSKEW_CACHE"] = os.path.join(folder, "cache")
        row_store.open_folder.cache_clear()
        flags = ("DATASET.ROOT", root, "OUTPUT_DIR", folder, "DATASET.NUM_SHOTS", 16, "SEED", seed)
        pairs = (*flags, "INPUT.VIEWS", views, "TEST.NO_TEST", True, *opts)
        cfg = config.load(dataset, trainer=trainer, opts=pairs)
        set_random_seed(cfg.SEED)
        start = time.perf_counter()
        built = build_trainer(cfg)
        built.train()
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "accuracy": built.test(split="val")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--trainers", nargs="+", default=["CoOp"])
    parser.add_argument("--views", nargs="+", type=int, default=[0, 1, 2, 4, 8, 16])
    parser.add_argument("--seeds", nargs="+", type=int, default=[11, 12, 13, 14, 15])
    parser.add_argument("--root", default="data")
    parser.add_argument("--json", default="", help="write all numbers to this file")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="config overrides for all")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("unskew").setLevel(logging.ERROR)
    run(arguments.dataset, arguments.trainers[0], 1, 0, arguments.root, ["OPTIM.MAX_EPOCH", "1"])  # imports
    rows = []
    for trainer in arguments.trainers:
        for views in arguments.views:
            results = [
                run(arguments.dataset, trainer, views, seed, arguments.root, arguments.opts) for seed in arguments.seeds
            ]
            seconds, accuracies = ([result[key] for result in results] for key in ("seconds", "accuracy"))
            rows.append({"trainer": trainer, "views": views, "seconds": statistics.median(seconds), "val": accuracies})
    print(f"{arguments.dataset}, 16 shots, {len(arguments.seeds)} seeds, {machine()}\n")
    cells = [(row["trainer"], row["views"] or "new ones", row["seconds"], spread(row["val"])) for row in rows]
    print(tabulate(cells, ["", "views", "seconds", "accuracy on val (%)"], "github", floatfmt=".1f"))
    if arguments.json:
        write(arguments.json, rows)


if __name__ == "__main__":
    main()
