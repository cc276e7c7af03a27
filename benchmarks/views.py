"""Accuracy and time of cached augmented views, compared with a new view at every step.

    python benchmarks/views.py --datasets digits --seeds 11 12 13

Each number of views trains the same runs from an empty cache; 0 encodes a new view of each image in every epoch, as the
published trainers do. Accuracy is measured on val, so that no choice depends on test images.

    python benchmarks/views.py --datasets digits shapes patterns --trainers CoOp GLA --shots 1 4 16 --views 4 8 \
        --against 8 --records output/views --cache output/views/cache

`--against V` adds the paired differences from V views. With `--records` each run writes a file, and runs whose files
exist are read, so that a stopped study continues and processes with other seeds share it.
"""

import argparse
import itertools
import json
import logging
import math
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from measure import machine, write
from scipy.special import stdtrit
from tabulate import tabulate

from unskew import config
from unskew.engine.trainer import build_trainer
from unskew.runs.tables import mean_and_deviation as spread
from unskew.utils import row_store
from unskew.utils.files import write_atomically
from unskew.utils.seeds import set_random_seed


def run(dataset: str, trainer: str, shots: int, views: int, seed: int, arguments: argparse.Namespace) -> dict:
    """Train once; return the seconds and the accuracy on val."""
    with tempfile.TemporaryDirectory() as folder:
        cache = os.path.abspath(arguments.cache) if arguments.cache else os.path.join(folder, "cache")
        os.environ["UNSKEW_CACHE"] = cache
        row_store.open_folder.cache_clear()
        flags = ("DATASET.ROOT", arguments.root, "OUTPUT_DIR", folder, "DATASET.NUM_SHOTS", shots, "SEED", seed)
        pairs = (*flags, "INPUT.VIEWS", views, "TEST.NO_TEST", True, *arguments.opts)
        cfg = config.load(dataset, trainer=trainer, opts=pairs)
        set_random_seed(cfg.SEED)
        start = time.perf_counter()
        built = build_trainer(cfg)
        built.train()
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "accuracy": built.test(split="val")}


def run_or_read(*key, arguments: argparse.Namespace) -> dict:
    """Return the result of `run`, from its file if it has one."""
    if not arguments.records:
        return run(*key, arguments)
    file = arguments.records / ("-".join(map(str, key)) + ".json")
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(run(*key, arguments)))
    return json.loads(file.read_text())


def measure(arguments: argparse.Namespace) -> list[dict]:
    """Return a row for each dataset, trainer, number of shots and number of views; seeds are the outermost loop."""
    rows: dict[tuple, dict[str, list[float]]] = defaultdict(lambda: {"each": [], "val": []})
    keys = list(itertools.product(arguments.datasets, arguments.trainers, arguments.shots, arguments.views))
    for seed, key in itertools.product(arguments.seeds, keys):
        result = run_or_read(*key, seed, arguments=arguments)
        rows[key]["each"].append(result["seconds"])
        rows[key]["val"].append(result["accuracy"])
    names = ("dataset", "trainer", "shots", "views")
    return [
        {**dict(zip(names, key, strict=True)), "seconds": statistics.median(row["each"]), **row}
        for key, row in rows.items()
    ]


# --- paired differences ---------------------------------------------------------------------------------


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the half width of its 95% interval by Student's t, NaN for one value."""
    if len(values) < 2:
        return statistics.mean(values), float("nan")
    half = float(stdtrit(len(values) - 1, 0.975)) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values), half


def differences(rows: Sequence[dict], against: int) -> list[dict]:
    """Return the differences of each run from the same run with ``against`` views, in percentage points."""
    key = ("dataset", "trainer", "shots")
    reference = {tuple(row[name] for name in key): row["val"] for row in rows if row["views"] == against}
    return [
        {**{name: row[name] for name in (*key, "views")}, "seed": seed, "difference": value - other}
        for row in rows
        if row["views"] != against
        for seed, (value, other) in enumerate(zip(row["val"], reference[tuple(row[n] for n in key)], strict=True))
    ]


def pooled(found: Sequence[dict]) -> tuple[float, float]:
    """Return the mean difference and its interval.

    Trainers on the same few-shot sample are not independent, so that their mean counts as one value.
    """
    samples: dict[tuple, list[float]] = defaultdict(list)
    for row in found:
        samples[row["dataset"], row["shots"], row["seed"]].append(row["difference"])
    return interval([statistics.mean(values) for values in samples.values()])


def signed(mean: float, half: float) -> str:
    return f"{mean:+.2f} ± {half:.2f}" if math.isfinite(half) else f"{mean:+.2f}"


def difference_table(found: Sequence[dict], arguments: argparse.Namespace) -> str:
    """Format the differences: a row for each trainer, each dataset and all, a column for each number of shots."""
    lines = []
    for views in dict.fromkeys(row["views"] for row in found):
        rows = [row for row in found if row["views"] == views]
        groups = {name: [row for row in rows if row["trainer"] == name] for name in arguments.trainers}
        groups |= {name: [row for row in rows if row["dataset"] == name] for name in arguments.datasets}
        for name, group in {**groups, "all": rows}.items():
            parts = [[row for row in group if row["shots"] == shots] for shots in arguments.shots]
            lines.append([name, views or "new ones", *(signed(*pooled(part)) for part in [*parts, group])])
    return tabulate(
        lines, ["", "views", *(f"{shots} shot{'s' * (shots > 1)}" for shots in arguments.shots), "all"], "github"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", nargs="+", default=["digits"])
    parser.add_argument("--trainers", nargs="+", default=["CoOp"])
    parser.add_argument("--shots", nargs="+", type=int, default=[16])
    parser.add_argument("--views", nargs="+", type=int, default=[0, 1, 2, 4, 8, 16])
    parser.add_argument("--seeds", nargs="+", type=int, default=[11, 12, 13, 14, 15])
    parser.add_argument("--against", type=int, help="also print the differences from this number of views")
    parser.add_argument("--root", default="data")
    parser.add_argument("--records", type=Path, help="a folder that keeps the result of each run")
    parser.add_argument("--cache", default="", help="a cache for all runs, whose seconds then exclude most encoding")
    parser.add_argument("--json", default="", help="write all numbers to this file")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="config overrides for all")
    arguments = parser.parse_args()
    if arguments.against is not None and arguments.against not in arguments.views:
        parser.error(f"--against must be one of --views (got {arguments.against})")
    torch.set_num_threads(1)
    logging.getLogger("unskew").setLevel(logging.ERROR)
    warm_up = argparse.Namespace(cache="", root=arguments.root, opts=["OPTIM.MAX_EPOCH", "1"])
    run(arguments.datasets[0], arguments.trainers[0], 1, 1, 0, warm_up)  # imports
    rows = measure(arguments)
    print(f"{len(arguments.seeds)} seeds, {machine()}\n")
    cells = [
        (row["dataset"], row["trainer"], row["shots"], row["views"] or "new ones", row["seconds"], spread(row["val"]))
        for row in rows
    ]
    header = ["dataset", "", "shots", "views", "seconds", "accuracy on val (%)"]
    print(tabulate(cells, header, "github", floatfmt=".1f"))
    if arguments.against is not None:
        print("\n" + difference_table(differences(rows, arguments.against), arguments))
    write(arguments.json, rows)


if __name__ == "__main__":
    main()
