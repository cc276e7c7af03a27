"""The results of gpu.sh as one JSON file and one Markdown table, with the predicted time of the papers' sweep.

    python benchmarks/gpu_table.py FOLDER --json gpu.json

The sweep has the 11 few-shot datasets, 1, 2, 4, 8 and 16 shots, 3 seeds and the 5 trainers of `SWEPT`, with the
published schedules. A run takes the seconds that occur once, and for each epoch its steps. Both are interpolated
linearly between the two measured numbers of classes; below the smaller one they count in full. Each image is encoded
once: the test images, and for each seed the val images and the views of the few-shot images. A part without a file is
"not measured".
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from unskew import config
from unskew.data.dataset import DATASET_REGISTRY
from unskew.utils.files import write_atomically

SWEPT = ("CoOp", "ProGrad", "CLIPAdapter", "TaskRes", "GLA")  # the trainers of the sweep
PARTS = ("step", "encode", "finetune", "runs", "prior")
DATASETS = (
    *("imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc_aircraft"),
    *("sun397", "dtd", "eurosat", "ucf101"),
)
SHOTS = (1, 2, 4, 8, 16)
SEEDS = 3
BUSY = 0.9  # of the tower's own speed: the decoding processes keep it busy
# The goals: times faster and times less memory at 1,000 classes, and seconds of the sweep.
FASTER, LESS, SWEEP = 8.0, 4.0, 3600.0


def read(folder: Path) -> dict[str, dict]:
    """Return the files of the parts by name; a part that did not finish has the rows that it measured."""
    files = {part: folder / f"{part}.json" for part in PARTS}
    return {part: json.loads(file.read_text()) for part, file in files.items() if file.is_file()}


def rows_of(parts: dict[str, dict], part: str, **values) -> list[dict]:
    """Return the rows of a part that have these values."""
    rows = parts.get(part, {}).get("rows", [])
    return [row for row in rows if all(row.get(key) == value for key, value in values.items())]


# --- the predicted sweep --------------------------------------------------------------------------------


def between(classes: int, points: Sequence[tuple[int, float]]) -> float:
    """Interpolate linearly between two points (classes, seconds), or continue; below the first, return its seconds."""
    (few, low), (many, high) = sorted(points)
    return low + max(0.0, (classes - few) / (many - few)) * (high - low)


def trainer_costs(parts: dict[str, dict], trainer: str, classes: int) -> tuple[float, float] | None:
    """Return the seconds of a step, validation included, and those that occur once in a run."""
    measured = rows_of(parts, "runs", trainer=trainer)
    if len({row["classes"] for row in measured}) < 2:
        return None
    steps = [(row["classes"], row["period"] / row["steps"]) for row in measured]
    once = [(row["classes"], row["once_seconds"]) for row in measured]
    return max(0.0, between(classes, steps)), max(0.0, between(classes, once))


def fastest_encoding(parts: dict[str, dict]) -> float | None:
    """Return the most images per second of the ViT, decoding included."""
    both = rows_of(parts, "encode", name="both")
    return max((row["images_per_second"] for row in both if row["backbone"] == both[0]["backbone"]), default=None)


def images_of(name: str, views: int) -> int:
    """Return the number of images and views of a dataset that the whole sweep encodes."""
    info = DATASET_REGISTRY.get(name).info
    shots = sum(SHOTS) * SEEDS * info.classes
    val = sum(min(4, shots) for shots in SHOTS) * SEEDS * info.classes
    return info.test + views * min(shots, info.train) + min(val, info.val or info.train)


def predict_sweep(parts: dict[str, dict]) -> dict | None:
    """Return the seconds of the sweep by trainer and of its encoding, or ``None`` if a part is missing."""
    speed = fastest_encoding(parts)
    spent: dict[str, float] = dict.fromkeys(SWEPT, 0.0)
    images = 0
    for dataset in DATASETS:
        classes = DATASET_REGISTRY.get(dataset).info.classes
        for trainer in SWEPT:
            costs = trainer_costs(parts, trainer, classes)
            if speed is None or costs is None:
                return None
            step, once = costs
            for shots in SHOTS:
                cfg = config.load(dataset, trainer=trainer, opts=("DATASET.NUM_SHOTS", shots))
                steps = max(1, classes * shots // cfg.DATALOADER.TRAIN_X.BATCH_SIZE)
                spent[trainer] += SEEDS * (once + cfg.OPTIM.MAX_EPOCH * steps * step)
        images += images_of(dataset, cfg.INPUT.VIEWS)
    encoding = images / speed
    runs = len(DATASETS) * len(SHOTS) * SEEDS * len(SWEPT)
    seconds = sum(spent.values()) + encoding
    return {"runs": runs, "images": images, "encoding_seconds": encoding, "trainers": spent, "seconds": seconds}


def whole_run(row: dict, epochs: int, views: int) -> float:
    """Return the seconds of a run with the published number of epochs, computed from a measured run with few."""
    return row["seconds"] + (epochs - row["epochs"]) * row["period"] + (views - row["views"]) * row["view_seconds"]


# --- the table ------------------------------------------------------------------------------------------


def number(value: float | None, unit: str = "") -> str:
    if value is None:
        return "not measured"
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{text} {unit}".rstrip()


def ratio(value: float | None, reference: float | None) -> str:
    return "not measured" if not value or not reference else f"{reference / value:.1f}"


def step_lines(parts: dict[str, dict]) -> list[tuple]:
    lines = []
    for row in rows_of(parts, "step"):
        size = f"{row['classes']:,} classes, {row['precision']}"
        times = row["seconds"], row["reference_seconds"]
        lines.append(("step of CoOp", size, *(number(value, "s") for value in times), ratio(*times)))
        peaks = [None if peak is None else peak / 2**20 for peak in (row["peak_bytes"], row["reference_peak_bytes"])]
        lines.append(("its memory", size, *(number(value, "MiB") for value in peaks), ratio(*peaks)))
    return lines


def image_lines(parts: dict[str, dict]) -> list[tuple]:
    lines = []
    for tower in rows_of(parts, "encode", name="tower"):
        name, alone = tower["backbone"], tower["images_per_second"]
        for row in rows_of(parts, "encode", backbone=name):
            size = f"{name}, {row['precision']}"
            if row["name"] == "both":
                size += f", {row['workers']} decoding processes"
            what = {"both": "encoding with decoding", "tower": "the tower alone"}.get(row["name"], row["name"])
            lines.append((what, size, number(row["images_per_second"], "images/s"), "", ""))
        busy = [row["workers"] for row in rows_of(parts, "encode", name="both", backbone=name) if is_busy(row, alone)]
        answer = str(min(busy)) if busy else "more than measured"
        lines.append(("processes that keep the GPU busy", name, answer, "", ""))
    for row in rows_of(parts, "finetune"):
        size = f"{row['backbone']}, {row['precision']}, {row['name']}"
        lines.append(("FineTune, AdaptFormer", size, number(row["images_per_second"], "images/s"), "", ""))
    return lines


def is_busy(row: dict, alone: float) -> bool:
    return row["images_per_second"] >= BUSY * alone


def run_lines(parts: dict[str, dict]) -> list[tuple]:
    lines = []
    largest = max((row["classes"] for row in rows_of(parts, "runs")), default=0)
    for name in ("CoOp", "GLA"):
        for row in rows_of(parts, "runs", trainer=name, classes=largest):
            size = f"{row['classes']:,} classes, {row['shots']} shots, bf16"
            lines.append((f"run of {name}, {row['epochs']} epochs", size, number(row["seconds"], "s"), "", ""))
            cfg = config.load("imagenet", trainer=name, opts=("DATASET.NUM_SHOTS", 16))
            seconds = whole_run(row, cfg.OPTIM.MAX_EPOCH, cfg.INPUT.VIEWS)
            lines.append((f"computed: {cfg.OPTIM.MAX_EPOCH} epochs", size, number(seconds, "s"), "", ""))
    for row in rows_of(parts, "prior"):
        size = f"{row['samples']:,} x {row['classes']:,}"
        lines.append((f"prior: {row['name']}", size, number(row["seconds"], "s"), "", ""))
    return lines


def goals(parts: dict[str, dict], sweep: dict | None) -> list[dict]:
    """Return the goals with what was measured; ``met`` is ``None`` if nothing was.

    The goal for a step counts as met if every measured precision meets it.
    """
    steps = rows_of(parts, "step", classes=1000)
    faster = min((row["reference_seconds"] / row["seconds"] for row in steps), default=None)
    peaks = [(row["peak_bytes"], row["reference_peak_bytes"]) for row in steps]
    less = min((theirs / ours for ours, theirs in peaks if ours and theirs), default=None)
    seconds = sweep["seconds"] if sweep else None
    return [
        _goal("step at 1,000 classes, times faster", FASTER, faster, at_least=True),
        _goal("step at 1,000 classes, times less memory", LESS, less, at_least=True),
        _goal("the papers' sweep, hours, predicted", SWEEP / 3600, seconds and seconds / 3600, at_least=False),
    ]


def _goal(name: str, goal: float, found: float | None, at_least: bool) -> dict:
    met = None if found is None else (found >= goal if at_least else found <= goal)
    return {"name": name, "goal": goal, "at_least": at_least, "found": found, "met": met}


def goal_lines(found: Sequence[dict]) -> list[tuple]:
    words = {None: "not measured", True: "met", False: "not met"}
    lines = []
    for row in found:
        size = f"goal: {'at least' if row['at_least'] else 'at most'} {row['goal']:g}"
        lines.append((row["name"], size, number(row["found"]), "", words[row["met"]]))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the folder of the parts' files")
    parser.add_argument("--json", type=Path, required=True, help="write all numbers to this file")
    parser.add_argument("--small", action="store_true", help="note that the sizes are small")
    arguments = parser.parse_args()
    parts = read(arguments.folder)
    sweep = None if arguments.small else predict_sweep(parts)
    found = goals(parts, sweep)
    machines = sorted({part["machine"] for part in parts.values()})
    missing = [part for part in PARTS if part not in parts]
    result = {"machine": machines, "small": arguments.small, "missing": missing, "parts": parts}
    result |= {"sweep": sweep, "goals": found}
    write_atomically(arguments.json, json.dumps(result) + "\n")
    lines = step_lines(parts) + image_lines(parts) + run_lines(parts)
    if sweep:
        size = f"{sweep['runs']} runs, {sweep['images']:,} images and views"
        lines.append(("the papers' sweep, predicted", size, number(sweep["seconds"], "s"), "", ""))
    print("; ".join(machines) or "no part has finished")
    if arguments.small:
        print("Small sizes: the numbers only show that the script runs.")
    if missing:
        print(f"not measured: {', '.join(missing)}")
    header = ("measure", "size", "result", "77 tokens", "times better, or goal")
    print("\n" + tabulate(lines + goal_lines(found), header, "github", disable_numparse=True))


if __name__ == "__main__":
    main()
