"""A run is a frozen value; a launcher maps runs to results.

Runs of one call share the process, and with it the loaded backbone and the image features.
"""

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

from yacs.config import CfgNode

import unskew
from unskew import config
from unskew.engine import run_dir
from unskew.engine.run_dir import backbone_label, run_folder, trainer_label
from unskew.runs import plugins, report
from unskew.utils.files import write_atomically

logger = logging.getLogger("unskew")


@dataclass(frozen=True)
class Run:
    """One trainer on one dataset with one seed.

    Attributes:
        backbone: empty for the dataset's default.
        shots, seed, root: ``None`` (or empty) leaves them to the config; shots -1 means all images.
        opts: KEY VALUE pairs, flat.
        folder: where it writes; empty: the place below ``output`` that its names give.
        plugins: files or modules that bring datasets and trainers, see `plugins.load`.
    """

    dataset: str
    trainer: str
    backbone: str = ""
    shots: int | None = None
    seed: int | None = None
    root: str = ""
    output: str = "output"
    folder: str = ""
    opts: tuple = ()
    config_file: str = ""
    plugins: tuple = ()

    def config(self) -> CfgNode:
        """The frozen config, OUTPUT_DIR included."""
        plugins.load(self.plugins)
        flags = {"DATASET.ROOT": self.root or None, "DATASET.NUM_SHOTS": self.shots, "SEED": self.seed}
        pairs = [part for key, value in flags.items() if value is not None for part in (key, value)]

        def load(*more: str) -> CfgNode:
            arguments = (self.dataset, self.backbone, self.trainer)
            return config.load(*arguments, (*pairs, *self.opts, *more), self.config_file)

        return load("OUTPUT_DIR", self.folder or str(run_folder(load(), self.output)))


def execute(run: Run, console: bool = True) -> dict:
    """Train and test one run, or return what it left behind if it is done.

    Args:
        console: print the log lines too, not only write them to ``log.txt``.

    Returns:
        The content of ``metrics.json``.

    Raises:
        ValueError: the folder holds a finished run with another config; the keys are named.
    """
    cfg = run.config()
    folder = Path(cfg.OUTPUT_DIR)
    if (folder / "done").is_file():
        run_dir.check_same(cfg)
        _say_if_older(cfg, folder / "done")
        return report.read_metrics(folder / "metrics.json")
    main = int(os.environ.get("RANK", 0)) == 0  # of several processes one writes
    if main:
        run_dir.prepare(cfg)
    # Only now is there work for torch.
    from safetensors.torch import save

    from unskew.engine.trainer import build_trainer, set_random_seed, setup_logger

    with setup_logger(folder if main else None, console=console and main):
        started = time.perf_counter()
        for plugin in run.plugins:
            logger.info(f"Plugin: {plugin}")
        set_random_seed(cfg.SEED)
        try:
            trainer = build_trainer(cfg)
        except AssertionError as error:  # how trainers written for Dassl refuse a config
            raise ValueError(f"{run.trainer} refuses the config: {str(error) or 'an assertion failed'}") from error
        trainer.train()
        seconds = round(time.perf_counter() - started, 2)
        results = {name: float(value) for name, value in trainer.results.items()}  # a plugin's may be tensors
        metrics = {**_describe(cfg), **results, "seconds": seconds, **_versions()}
        predictions = getattr(trainer.evaluator, "predictions", dict)() if results else {}
        if predictions:
            metrics["per_class_accuracy"] = trainer.evaluator.per_class_accuracy()
        if main:
            if predictions:
                # A copy of each: scores may share their memory, which the format refuses.
                predictions = {name: tensor.clone() for name, tensor in predictions.items()}
                write_atomically(folder / "predictions.safetensors", save(predictions))
            report.write_metrics(folder / "metrics.json", metrics)
            run_dir.finish(cfg)
    return metrics


def is_finished(run: Run) -> bool:
    """Whether `execute` will find the run done, and only read its metrics."""
    return (Path(run.config().OUTPUT_DIR) / "done").is_file()


_said: set[Path] = set()


def _say_if_older(cfg: CfgNode, done: Path) -> None:
    """A method's code is no part of a run's identity: who changed it is told, once, that the old run counts."""
    name = f"{(cfg.TRAINER.CLASS or cfg.TRAINER.NAME).lower()}.py"
    for source in (Path(place) / "trainers" / name for place in unskew.__path__):
        if source.is_file() and source.stat().st_mtime > done.stat().st_mtime and source not in _said:
            _said.add(source)
            logger.warning(
                f"'{source}' was changed after '{done.parent}' was finished; delete that folder to run it again"
            )


def _describe(cfg: CfgNode) -> dict:
    return {
        "dataset": run_dir.dataset_label(cfg),
        "trainer": trainer_label(cfg),
        "backbone": backbone_label(cfg),
        "shots": cfg.DATASET.NUM_SHOTS,
        "longtail": cfg.DATASET.LONGTAIL,
        "seed": cfg.SEED,
    }


def _versions() -> dict:
    from importlib.metadata import version

    return {package: version(package) for package in ("torch", "open_clip_torch")}
