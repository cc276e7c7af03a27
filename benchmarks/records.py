"""Logits of trained bases on the worlds of `worlds.py`, for studies that compare estimators on the same logits.

    python benchmarks/records.py --out output/records --jobs 2

Each file ``WORLD/BACKBONE/BASE/SHOTS-SEED.pt`` holds the zero-shot logits and those of the base's last epoch on train,
val and test. Files that exist are kept, so that a stopped recording continues.
"""

import argparse
import itertools
import logging
import multiprocessing
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import worlds
from torch import Tensor
from tqdm import tqdm

from unskew.engine.evaluator import labels_of
from unskew.engine.trainer import build_trainer
from unskew.micro import true_log_prior
from unskew.utils.files import write_atomically
from unskew.utils.seeds import set_random_seed

BASES = ("ResidualPrompt", "TaskRes", "CLIPAdapter", "LinearProbe")
BACKBONES = ("micro", "micro-vit", "micro-emoji", "micro-emoji-vit")
BALANCED = tuple(name for name in worlds.WORLDS if not name.endswith("_lt"))
SHOTS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Key:
    """One run."""

    seed: int
    world: str
    backbone: str
    base: str
    shots: int

    def path(self, folder: Path) -> Path:
        return folder / self.world / self.backbone / self.base / f"{self.shots}-{self.seed}.pt"


def keys(*axes: Iterable) -> list[Key]:
    """Return all runs of seeds, worlds, backbones, bases and shots, seed by seed, without backbones of other worlds."""
    runs = [Key(*run) for run in itertools.product(*axes)]
    return [run for run in runs if run.world not in worlds.WORLDS or run.backbone in worlds.WORLDS[run.world].backbones]


def record(key: Key, root: str) -> dict[str, dict[str, Tensor] | Tensor]:
    """Train a base; return labels ``y``, logits ``zs`` and ``ft`` by split, and the true log prior."""
    with tempfile.TemporaryDirectory() as folder:
        opts = ("DATASET.NUM_SHOTS", key.shots, "SEED", key.seed, "DATASET.ROOT", root, "OUTPUT_DIR", folder)
        opts += ("TRAINER.LINEARPROBE.INIT", "zeros")
        cfg = worlds.load_config(key.world, key.base, key.backbone, opts)
        set_random_seed(key.seed)
        trainer = build_trainer(cfg)
        trainer.show_progress = False
        trainer.fit()
        data, found = trainer.dataset, {}
        for split, items in (("train", data.train_x), ("val", data.val), ("test", data.test)):
            paths = [item.impath for item in items]
            logits = {"zs": trainer.zeroshot_logits(paths).cpu(), "ft": trainer.predict(paths).cpu()}
            found[split] = {"y": labels_of(items), **logits}
    return {**found, "truth": true_log_prior(key.backbone, worlds.WORLDS[key.world].base)}


def _write(key: Key, folder: Path, root: str) -> None:
    path = key.path(folder)
    if path.is_file():
        return
    torch.set_num_threads(1)
    logging.getLogger("unskew").setLevel(logging.ERROR)
    found = record(key, root)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: torch.save(found, file))


def write_all(runs: list[Key], folder: Path, root: str, jobs: int) -> None:
    """Record the runs whose files are missing, ``jobs`` at a time."""
    for name in {run.world for run in runs}:  # the pictures of a world are drawn once
        worlds.draw(name, root)
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        done = [pool.submit(_write, run, folder, root) for run in runs]
        for future in tqdm(done, unit="run"):
            future.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", nargs="+", default=BALANCED, choices=worlds.WORLDS)
    parser.add_argument("--backbones", nargs="+", default=BACKBONES)
    parser.add_argument("--bases", nargs="+", default=BASES)
    parser.add_argument("--shots", nargs="+", type=int, default=SHOTS)
    parser.add_argument("--seeds", type=int, default=2, help="how many, from 1")
    parser.add_argument("--root", default="data", help="folder of the datasets")
    parser.add_argument("--out", type=Path, default=Path("output/records"))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    arguments = parser.parse_args()
    seeds = range(1, arguments.seeds + 1)
    runs = keys(seeds, arguments.worlds, arguments.backbones, arguments.bases, arguments.shots)
    write_all(runs, arguments.out, arguments.root, arguments.jobs)


if __name__ == "__main__":
    main()
