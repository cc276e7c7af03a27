"""Time and accuracy of a whole few-shot run, compared with the method of the published trainers.

    python benchmarks/fewshot_run.py --dataset shapes --trainers CoOp ProGrad GLA

The reference decodes, augments and encodes images at every step and encodes prompts at full length, with the same
engine, schedule, images and seeds. Both start from empty caches and alternate. Seconds and ratio are medians over the
seeds.

The break-even is computed from three medians over the epochs of all seeds: s seconds for the steps of an epoch on
cached features, v more seconds for an epoch that encodes a view first, and r seconds for an epoch of the reference. A
run of n epochs with V views (INPUT.VIEWS) then takes n s + min(n, V) v seconds, the reference n r. The second table has
the smallest n from which a run is faster, and the ratio at several n.
"""

import argparse
import logging
import math
import os
import statistics
import tempfile
import time

import torch
from epochs import EPOCHS, timed
from measure import machine, table, write
from tabulate import tabulate

from unskew import config
from unskew.clip.text import encode_plain
from unskew.engine.trainer import TRAINER_REGISTRY, build_trainer
from unskew.runs.tables import mean_and_deviation as spread
from unskew.trainers import coop, prograd, residualprompt
from unskew.utils import row_store
from unskew.utils.seeds import set_random_seed


class Plain:
    """A mixin that trains as the published trainers do."""

    needs_images = True

    @torch.no_grad()
    def _encode(self, images):
        return self.backbone.encode_image(images).float()

    def parse_batch_train(self, batch):
        images, labels = super().parse_batch_train(batch)
        return self._encode(images), labels

    def model_inference(self, images):
        return self.logits(self._encode(images))

    def logits(self, image_features):
        return self.cosine_logits(image_features, encode_plain(self.backbone, self.prompt_learner()))


TRAINERS = {cls.__name__: cls for cls in (coop.CoOp, prograd.ProGrad, residualprompt.ResidualPrompt)}
OURS = {name: timed(cls) for name, cls in TRAINERS.items()}
REFERENCE = {name: timed(type(f"Plain{name}", (Plain, cls), {})) for name, cls in TRAINERS.items()}
AT = (6, 50, 200)  # epochs whose ratio is reported


def run(dataset: str, trainer: str, shots: int, seed: int, root: str, classes: dict, opts: list[str]) -> dict:
    """Run once from an empty cache; return seconds, accuracy, the epochs' seconds, and the number of views."""
    EPOCHS.clear()
    for name, cls in classes.items():
        TRAINER_REGISTRY.register(name, cls, force=True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["UNSKEW_CACHE"] = os.path.join(folder, "cache")
        row_store.open_folder.cache_clear()
        flags = ("DATASET.ROOT", root, "OUTPUT_DIR", folder, "DATASET.NUM_SHOTS", shots, "SEED", seed)
        cfg = config.load(dataset, trainer=trainer, opts=(*flags, *opts))
        set_random_seed(cfg.SEED)
        start = time.perf_counter()
        built = build_trainer(cfg)
        built.train()
        elapsed = time.perf_counter() - start
        return {
            "seconds": elapsed,
            "accuracy": built.results["accuracy"],
            "epochs": [(epoch.number, epoch.seconds) for epoch in EPOCHS],
            "views": views_of(built),
        }


def views_of(trainer) -> int:
    """Return the number of cached views of a trainer, or of the base that it trains."""
    return getattr(trainer, "base", trainer).cfg.INPUT.VIEWS


# --- break-even -----------------------------------------------------------------------------------------


def break_even(step: float, view: float, reference: float, views: int) -> int | None:
    """Return the smallest number of epochs from which a run with cached views is faster; None if none is.

    Args:
        step: seconds of an epoch on cached features.
        view: seconds to encode one view of all images.
        reference: seconds of an epoch of the reference.
        views: the number of views that are encoded at most.
    """
    if step + view < reference:
        return 1
    if step >= reference:
        return None
    return max(1, math.floor(views * view / (reference - step)) + 1)


def ratio_at(epochs: int, step: float, view: float, reference: float, views: int) -> float:
    """Return how many times faster a run of ``epochs`` is than the reference; see `break_even`."""
    return epochs * reference / (epochs * step + min(epochs, views) * view)


def epoch_costs(runs: dict[str, list[dict]]) -> dict:
    """Return the seconds of an epoch's parts, the break-even and the ratios; None if no epoch had all its views.

    The first epoch is left out: it has the work that happens once.
    """
    views = runs["ours"][0]["views"]
    ours, reference = ([pair for result in runs[way] for pair in result["epochs"] if pair[0]] for way in runs)
    first = [elapsed for epoch, elapsed in ours if epoch < views]
    later = [elapsed for epoch, elapsed in ours if epoch >= views]
    found: dict = {"views": views, "step_seconds": None, "view_seconds": None, "reference_epoch_seconds": None}
    if not (views and first and later and reference):
        return found | {"break_even": None, "ratios": None}
    step, theirs = statistics.median(later), statistics.median(elapsed for _, elapsed in reference)
    costs = (step, max(0.0, statistics.median(first) - step), theirs)
    found |= dict(zip(("step_seconds", "view_seconds", "reference_epoch_seconds"), costs, strict=True))
    ratios = {str(epochs): ratio_at(epochs, *costs, views) for epochs in AT}
    return found | {"break_even": break_even(*costs, views), "ratios": ratios}


def break_even_table(rows: list[dict]) -> str:
    columns = {
        "name": "",
        "views": "views",
        "step_seconds": "steps, s",
        "view_seconds": "encoding a view, s",
        "reference_epoch_seconds": "reference, s",
        "break_even": "faster from epochs",
    }
    columns |= {str(epochs): f"times faster, {epochs} epochs" for epochs in AT}
    empty = dict.fromkeys(map(str, AT))
    return table([{**row, **(row["ratios"] or empty)} for row in rows], columns)


# --- whole runs -----------------------------------------------------------------------------------------


def compare(trainer: str, arguments) -> dict:
    runs = {"ours": [], "reference": []}
    for seed in arguments.seeds:  # alternate, so that other load on the machine affects both
        for way, classes in (("ours", OURS), ("reference", REFERENCE)):
            runs[way].append(
                run(arguments.dataset, trainer, arguments.shots, seed, arguments.root, classes, arguments.opts)
            )
    medians = {way: statistics.median(result["seconds"] for result in results) for way, results in runs.items()}
    pairs = zip(runs["ours"], runs["reference"], strict=True)
    accuracies = {way: [result["accuracy"] for result in results] for way, results in runs.items()}
    return {
        "trainer": trainer,
        "name": f"{trainer} on {arguments.dataset}",
        "seconds": medians["ours"],
        "reference_seconds": medians["reference"],
        "ratio": statistics.median(theirs["seconds"] / mine["seconds"] for mine, theirs in pairs),
        "each": {way: [result["seconds"] for result in results] for way, results in runs.items()},
        "accuracy": accuracies["ours"],
        "reference_accuracy": accuracies["reference"],
        **epoch_costs(runs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="shapes")
    parser.add_argument("--trainers", nargs="+", default=["CoOp", "ProGrad", "GLA"])
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--root", default="data")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0, help="processes that decode images")
    parser.add_argument("--json", default="", help="write all numbers to this file")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="config overrides for both")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.opts += ["DATALOADER.NUM_WORKERS", str(arguments.workers)]
    logging.getLogger("unskew").setLevel(logging.ERROR)
    for classes in (OURS, REFERENCE):  # imports and other work that happens once
        run(arguments.dataset, "CoOp", 1, 0, arguments.root, classes, ["OPTIM.MAX_EPOCH", "1", "INPUT.VIEWS", "1"])
    rows = [compare(trainer, arguments) for trainer in arguments.trainers]
    runs = f"{arguments.dataset}, {arguments.shots} shots, seeds {' '.join(map(str, arguments.seeds))}"
    print(f"{runs}, {arguments.workers} decoding processes, {machine()}\n")
    keys = ("accuracy", "reference_accuracy")
    cells = [
        (
            row["name"],
            *(row[key] for key in ("seconds", "reference_seconds", "ratio")),
            *map(spread, (row[key] for key in keys)),
        )
        for row in rows
    ]
    header = ("", "seconds", "reference", "times faster", "accuracy (%)", "reference (%)")
    print(tabulate(cells, header, "github", floatfmt=".1f"))
    print(f"\nan epoch, and the break-even\n\n{break_even_table(rows)}")
    if arguments.json:
        write(arguments.json, rows)


if __name__ == "__main__":
    main()
