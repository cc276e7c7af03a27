"""Time and accuracy of a whole few-shot run, compared with the method of the published trainers.

    python benchmarks/fewshot_run.py --dataset shapes --trainers CoOp ProGrad GLA

The reference decodes, augments and encodes images at every step and encodes prompts at full length, with the same
engine, schedule, images and seeds. Both start from empty caches and alternate. Seconds and ratio are medians over the
seeds.
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


OURS = {cls.__name__: cls for cls in (coop.CoOp, prograd.ProGrad, residualprompt.ResidualPrompt)}
REFERENCE = {name: type(f"Plain{name}", (Plain, cls), {}) for name, cls in OURS.items()}


def run(dataset: str, trainer: str, shots: int, seed: int, root: str, classes: dict, opts: list[str]) -> dict:
    """Run once from an empty cache; return seconds and accuracy."""
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
        return {"seconds": time.perf_counter() - start, "accuracy": built.results["accuracy"]}


def compare(trainer: str, arguments) -> dict:
    runs = {"ours": [], "reference": []}
    for seed in arguments.seeds:  # alternate, so that other load on the machine affects both
        for way, classes in (("ours", OURS), ("reference", REFERENCE)):
            runs[way].append(
                run(arguments.dataset, trainer, arguments.shots, seed, arguments.root, classes, arguments.opts)
            )
    seconds = {way: statistics.median(result["seconds"] for result in results) for way, results in runs.items()}
    pairs = zip(runs["ours"], runs["reference"], strict=True)
    accuracies = {way: [result["accuracy"] for result in results] for way, results in runs.items()}
    return {
        "trainer": trainer,
        "seconds": seconds["ours"],
        "reference_seconds": seconds["reference"],
        "ratio": statistics.median(theirs["seconds"] / mine["seconds"] for mine, theirs in pairs),
        "each": {way: [result["seconds"] for result in results] for way, results in runs.items()},
        "accuracy": accuracies["ours"],
        "reference_accuracy": accuracies["reference"],
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
            row["trainer"],
            *(row[key] for key in ("seconds", "reference_seconds", "ratio")),
            *map(spread, (row[key] for key in keys)),
        )
        for row in rows
    ]
    header = ("", "seconds", "reference", "ratio", "accuracy (%)", "reference (%)")
    print(tabulate(cells, header, "github", floatfmt=".1f"))
    if arguments.json:
        write(arguments.json, rows)


if __name__ == "__main__":
    main()
