"""Time, memory and files of runs with as many classes as ImageNet, on synthetic images.

    python benchmarks/imagenet_size.py --sweep --json before.json
    python benchmarks/imagenet_size.py --sweep --json after.json --before before.json

The data set (`classes.py`) has 1,000 classes with 16 train, 10 val and 20 test images of 32 x 32 pixels. Each trainer
runs on all of them with `micro`, from an empty cache, in a process of its own with one thread. Trained methods take one
epoch in batches of 512, since the steps are not the subject; searches and fits have their default sizes. LinearProbe
also runs at 300 and 100 classes, and ZeroshotCLIP at 5,000 classes with 4 val and 4 test images.

`--sweep` adds one process with 40 runs: five cheap trainers, 1, 2, 4 and 8 shots, seeds 1 and 2, from an empty cache,
in which the epoch has one or a few steps; then the same command again, which finds all runs finished.

To compare two versions of the code, set PYTHONPATH to each in turn; the second call prints both.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import classes
import phases
from measure import machine, mib, table, write

import unskew

SHORT = ("OPTIM.MAX_EPOCH", 1, "DATALOADER.TRAIN_X.BATCH_SIZE", 512, "DATALOADER.NUM_WORKERS", 0)
MEMBERS = {"Backdoor": ("micro-a", "micro-b"), "SeedEnsemble": ("micro#0", "micro#1")}
# Further numbers of classes, as multiples.
SIZES = {"LinearProbe": (0.3, 0.1), "ZeroshotCLIP": (5.0,)}
SWEPT = ("ZeroshotCLIP", "DebiasedZeroshot", "TaskRes", "CLIPAdapter", "Ensemble")
SWEEP = ("-t", *SWEPT, "--shots", 1, 2, 4, 8, "--seeds", 1, 2)
SWEEP_OPTS = ("TRAINER.ENSEMBLE.BASE", "TaskRes")
FIRST, AGAIN = "sweep of 40 runs", "the same sweep, finished"
# Numbers of a row by column.
COLUMNS = {
    "seconds": "seconds",
    "cpu": "CPU seconds",
    "peak": "peak MiB",
    "predictions": "predictions MiB",
    "checkpoints": "checkpoints MiB",
    "accuracy": "accuracy (%)",
}


def data(arguments: argparse.Namespace, count: int) -> Path:
    """Return the folder of the data set with ``count`` classes; write it first if it is missing."""
    images = {split: getattr(arguments, split) for split in classes.COUNTS}
    if count > arguments.classes:
        images |= {split: min(4, images[split]) for split in ("val", "test")}
    return classes.write(arguments.data / f"{count}-classes", count, images, arguments.noise)


def measure_run(trainer: str, count: int, arguments: argparse.Namespace) -> dict:
    """Train and test once from an empty cache; return the row of its numbers."""
    root, opts = data(arguments, count), [*SHORT, *arguments.opts]
    if trainer in MEMBERS:
        opts += ["TRAINER.BACKDOOR.MEMBERS", repr(list(MEMBERS[trainer]))]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        flags = ["-d", "folder", "-t", trainer, "--root", root, "--seed", 1, "--output-dir", folder / "run"]
        backbone = [] if trainer in MEMBERS else ["-b", "micro"]
        row = phases.run(["train", *flags, *backbone, *opts], folder / "cache", folder)
        return {"name": trainer, "classes": count, **row, **files(folder / "run")}


def files(run: Path) -> dict:
    """Return the accuracy of a finished run and the bytes of its predictions and of its checkpoints."""
    inner = [path for path in run.rglob("*") if path.is_file() and path.relative_to(run).parts[0] != "tensorboard"]
    return {
        "accuracy": json.loads((run / "metrics.json").read_text())["accuracy"],
        "predictions_bytes": (run / "predictions.safetensors").stat().st_size,
        "checkpoint_bytes": sum(path.stat().st_size for path in inner if path.parent != run),
    }


def measure_sweep(arguments: argparse.Namespace) -> list[dict]:
    """Run the sweep from an empty cache, then again; return both rows."""
    root = data(arguments, arguments.classes)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        flags = ["-d", "folder", "-b", "micro", "--root", root, "--output", folder / "output"]
        command = ["sweep", *SWEEP, *flags, *SHORT, *SWEEP_OPTS, *arguments.opts]
        return [
            {"name": name, "classes": arguments.classes, **phases.run(command, folder / "cache", folder)}
            for name in (FIRST, AGAIN)
        ]


def measure_all(arguments: argparse.Namespace) -> list[dict]:
    """Measure all rows; report one that fails and continue. The file of numbers is written after each row."""
    rows: list[dict] = []
    sizes = [(name, 1.0) for name in arguments.trainers]
    sizes += [(name, size) for name in arguments.trainers for size in SIZES.get(name, ())]
    calls = [lambda n=name, s=size: [measure_run(n, round(s * arguments.classes), arguments)] for name, size in sizes]
    for label, call in zip([*sizes, FIRST], [*calls, lambda: measure_sweep(arguments)], strict=True):
        if label == FIRST and not arguments.sweep:
            continue
        print(f"measure {label}", file=sys.stderr, flush=True)
        try:
            rows += call()
        except RuntimeError as error:
            print(f"{label} failed: {error}", file=sys.stderr)
        write(arguments.json, rows)
    return rows


# --- tables -------------------------------------------------------------------------------------------


def shown(row: dict | None) -> dict:
    """Return the numbers of a row in the units of the tables, also its phases and counts; none for ``None``."""
    if row is None:
        return {}
    sizes = {"peak": "peak_bytes", "predictions": "predictions_bytes", "checkpoints": "checkpoint_bytes"}
    numbers = {name: mib(row.get(key)) for name, key in sizes.items()}
    numbers |= {name: row.get(name) for name in ("seconds", "cpu", "accuracy")}
    return {**numbers, **{name: row["phases"].get(name, 0.0) for name in phases.NAMES}, **row["counts"]}


def cell(now: float | None, before: float | None, compared: bool) -> str:
    """Format a number, or two of them as "before → now"; "–" for one that was not measured."""
    texts = ["–" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in (before, now)]
    return texts[1] if not compared or texts[0] == texts[1] else " → ".join(texts)


def compare(rows: Sequence[dict], before: Sequence[dict]) -> list[dict]:
    """Return the cells of each row, of all columns; with the numbers ``before`` if there are any."""
    earlier = {(row["name"], row["classes"]): row for row in before}
    cells = []
    for row in rows:
        now, then = shown(row), shown(earlier.get((row["name"], row["classes"])))
        names = {**COLUMNS, **dict.fromkeys((*phases.NAMES, *phases.COUNTS))}
        numbers = {name: cell(now.get(name, 0), then.get(name), bool(before)) for name in names}
        cells.append({"name": row["name"], "classes": f"{row['classes']:,}", **numbers})
    return cells


def print_tables(rows: Sequence[dict], before: Sequence[dict]) -> None:
    """Print the table of the runs, that of their phases in CPU seconds, and that of the counts."""
    cells = compare(rows, before)
    heads = {"name": "", "classes": "classes"}
    for columns in (COLUMNS, {name: name for name in phases.NAMES}, {name: name for name in phases.COUNTS}):
        print(f"\n{table(cells, {**heads, **columns})}")
    for row in rows:
        if row["name"] == FIRST:
            outside = 1 - row["phases"].get("training", 0) / row["cpu"]
            print(f"\n{FIRST}: {outside:.0%} of the CPU seconds are outside training")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = unskew.list_trainers()
    parser.add_argument("--trainers", nargs="*", default=known, choices=known, metavar="TRAINER", help="default: all")
    parser.add_argument("--sweep", action="store_true", help="also a sweep of 40 runs, twice")
    parser.add_argument("--classes", type=int, default=1000)
    for split, count in classes.COUNTS.items():
        parser.add_argument(f"--{split}", type=int, default=count, help=f"images per class, default {count}")
    parser.add_argument("--noise", type=float, default=classes.NOISE)
    parser.add_argument("--data", type=Path, help="a folder that keeps the images; default: a temporary one")
    parser.add_argument("--json", default="", help="write all numbers to this file")
    parser.add_argument("--before", type=Path, help="the file of an earlier call, to compare with")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="config overrides")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        arguments.data = (arguments.data or Path(temporary)).resolve()
        print(f"{machine()}\n{Path(unskew.__file__).parent}", file=sys.stderr)
        rows = measure_all(arguments)
    before = json.loads(arguments.before.read_text())["rows"] if arguments.before else []
    print(f"{arguments.classes:,} classes, {machine()}")
    print_tables(rows, before)


if __name__ == "__main__":
    main()
