"""Time, memory and files of runs with as many classes as ImageNet, on synthetic images.

    python benchmarks/imagenet_size.py --sweep --json before.json
    python benchmarks/imagenet_size.py --sweep --json after.json --before before.json

The data set (`classes.py`) has 1,000 classes with 16 train, 10 val and 20 test images of 32 x 32 pixels. Each trainer
runs on 16 shots, which take 4 of the val images, with `micro`, from an empty cache, in a process of its own with one
thread. Trained methods take one epoch in batches of 512, since the steps are not the subject; searches and fits have
their default sizes. LinearProbe also runs at 300 and 100 classes, and ZeroshotCLIP at 5,000 classes with 4 val and 4
test images.

`--sweep` adds one process with 40 runs from an empty cache: ZeroshotCLIP, TaskRes, CLIPAdapter and Ensemble (on
TaskRes) with 1, 2, 4, 8 and 16 shots and seeds 1 and 2. An epoch has 1 to 31 short steps, so nearly all of the time is
spent outside them. Then the same command runs again and finds all runs finished.

To compare two versions of the code, set PYTHONPATH to each in turn; the second call prints both.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import classes
import phases
from measure import machine, mib, write
from tabulate import tabulate

import unskew

# The names of the classes tell nothing about their images, so LinearProbe starts from zeros.
PROBE = ("TRAINER.LINEARPROBE.INIT", "zeros")
SHORT = ("OPTIM.MAX_EPOCH", 1, "DATALOADER.TRAIN_X.BATCH_SIZE", 512, "DATALOADER.NUM_WORKERS", 0, *PROBE)
MEMBERS = {"Backdoor": ("micro-a", "micro-b"), "SeedEnsemble": ("micro#0", "micro#1")}
# Further numbers of classes, as multiples.
SIZES = {"LinearProbe": (0.3, 0.1), "ZeroshotCLIP": (5.0,)}
SWEPT = ("ZeroshotCLIP", "TaskRes", "CLIPAdapter", "Ensemble")
SWEEP = ("-t", *SWEPT, "--shots", "all", "--seeds", 1, 2)
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
        flags = ["-d", "folder", "-t", trainer, "--root", root, "--output-dir", folder / "run"]
        flags += ["--shots", arguments.train, "--seed", 1]
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
    calls = {FIRST: lambda: measure_sweep(arguments)} if arguments.sweep else {}
    sizes = [(name, size) for name in arguments.trainers for size in (1.0, *SIZES.get(name, ()))]
    for name, size in sizes:
        count = max(2, round(size * arguments.classes))
        calls[f"{name}, {count:,} classes"] = partial(lambda *given: [measure_run(*given)], name, count, arguments)
    rows: list[dict] = []
    for label, call in calls.items():
        print(f"measure {label}", file=sys.stderr, flush=True)
        try:
            rows += call()
        except RuntimeError as error:
            print(f"{label} failed: {error}", file=sys.stderr, flush=True)
        write(arguments.json, rows)
    return rows


# --- tables -------------------------------------------------------------------------------------------


def numbers(row: dict) -> dict[str, float | None]:
    """Return all numbers of a row by their names in the tables."""
    sizes = {"peak": "peak_bytes", "predictions": "predictions_bytes", "checkpoints": "checkpoint_bytes"}
    spent = {name: row["phases"].get(name, 0.0) for name in phases.NAMES}
    others = row["cpu"] - sum(spent[name] for name in ("training", "images", "imports"))
    return {
        **{name: row.get(name) for name in ("seconds", "cpu", "accuracy")},
        **{name: mib(row.get(key)) for name, key in sizes.items()},
        **spent,
        **{name: row["counts"].get(name, 0) for name in phases.COUNTS},
        "outside training (%)": 100 * (1 - spent["training"] / row["cpu"]),
        "neither training, images nor imports (%)": 100 * others / row["cpu"],
    }


def text(number: float | None) -> str:
    return "–" if number is None else f"{number:,.0f}" if abs(number) >= 100 else f"{round(number, 2):.3g}"


def cells(row: dict, before: Sequence[dict]) -> dict[str, str]:
    """Return the texts of a row's numbers; with the same row ``before``, as "before → now" where they differ."""
    earlier = [numbers(other) for other in before if (other["name"], other["classes"]) == (row["name"], row["classes"])]
    texts = {"name": row["name"], "classes": f"{row['classes']:,}"}
    for name, number in numbers(row).items():
        both = [text(then[name]) for then in earlier[:1]] + [text(number)]
        texts[name] = " → ".join(dict.fromkeys(both))
    return texts


def print_tables(rows: Sequence[dict], before: Sequence[dict]) -> None:
    """Print the runs, the CPU seconds of their phases, and the phases and counts of the sweeps, a column for each."""
    shown = [cells(row, before) for row in rows]
    heads = {"name": "", "classes": "classes"}
    print_table(shown, heads | COLUMNS)
    print_table(shown, heads | {name: name for name in phases.NAMES})
    if sweeps := [row for row in shown if row["name"] in (FIRST, AGAIN)]:
        names = [name for name in numbers(rows[0]) if name not in COLUMNS]
        turned = [{"name": name, **{row["name"]: row[name] for row in sweeps}} for name in names]
        print_table(turned, {"name": ""} | {row["name"]: row["name"] for row in sweeps})


def print_table(rows: Sequence[dict], columns: dict[str, str]) -> None:
    lines = [[row[key] for key in columns] for row in rows]
    print("\n" + tabulate(lines, list(columns.values()), "github", disable_numparse=True))


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
    before = json.loads(arguments.before.read_text())["rows"] if arguments.before else []
    with tempfile.TemporaryDirectory() as temporary:
        arguments.data = (arguments.data or Path(temporary)).resolve()
        print(f"{machine()}\n{Path(unskew.__file__).parent}", file=sys.stderr)
        rows = measure_all(arguments)
    print(f"{arguments.classes:,} classes, {machine()}")
    print_tables(rows, before)


if __name__ == "__main__":
    main()
