"""A run is a frozen value; a launcher maps runs to results.

Runs of one call share the process, and with it the loaded backbone and the image features.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm
from yacs.config import CfgNode

import unskew
from unskew import config, folders, identity, plugins, report
from unskew.errors import one_line
from unskew.files import write_atomically

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


def trainer_label(cfg: CfgNode) -> str:
    """The trainer config's name; over another base than its default, `GLA-CoOp`."""
    name, default = cfg.TRAINER.NAME, config.read_base(cfg.TRAINER.NAME)
    base = cfg.TRAINER.get((cfg.TRAINER.CLASS or name).upper(), {}).get("BASE")
    return name if not base or base == default else f"{name}-{base}"


def backbone_label(cfg: CfgNode) -> str:
    """The backbone's name; those of a trainer's members (`TRAINER.BACKDOOR.MEMBERS`) are joined by `+`."""
    own = cfg.TRAINER.get((cfg.TRAINER.CLASS or cfg.TRAINER.NAME).upper(), {})
    return "+".join(own.get("MEMBERS") or [cfg.MODEL.BACKBONE.NAME])


def run_folder(cfg: CfgNode, output: str) -> Path:
    """`output/<dataset>/<Trainer>/<backbone>_<K>shots/seed<S>`; `lt` for `<K>shots` of a whole long-tailed set."""
    backbone = folders.name_of(backbone_label(cfg))
    if cfg.DATASET.NUM_SHOTS > 0:
        images = f"{cfg.DATASET.NUM_SHOTS}shots"
    else:
        images = "lt" if cfg.DATASET.LONGTAIL else "allshots"
    return Path(output) / identity.dataset_label(cfg) / trainer_label(cfg) / f"{backbone}_{images}" / f"seed{cfg.SEED}"


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
        folders.check_same(cfg)
        _say_if_older(cfg, folder / "done")
        return report.read_metrics(folder / "metrics.json")
    main = int(os.environ.get("RANK", 0)) == 0  # of several processes one writes
    if main:
        folders.prepare(cfg)
    # Only now is there work for torch.
    from safetensors.torch import save

    from unskew.engine import build_trainer, set_random_seed, setup_logger

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
            folders.finish(cfg)
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
        "dataset": identity.dataset_label(cfg),
        "trainer": trainer_label(cfg),
        "backbone": backbone_label(cfg),
        "shots": cfg.DATASET.NUM_SHOTS,
        "longtail": cfg.DATASET.LONGTAIL,
        "seed": cfg.SEED,
    }


def _versions() -> dict:
    from importlib.metadata import version

    return {package: version(package) for package in ("torch", "open_clip_torch")}


def launch(runs: Sequence[Run], execute: Callable[[Run], dict]) -> Iterator[dict | Exception]:
    """Run one after another in this process, with a bar or, away from a terminal, a line for each; yields the metrics.

    A run that fails does not stop the others: its error is said and yielded, its ``log.txt`` has the traceback. It is
    raised with UNSKEW_DEBUG set, and where several processes work together, unless it is a mistake in data or config,
    which they all make: one that goes on alone would wait for the others for ever.
    """
    several, main = int(os.environ.get("WORLD_SIZE", 1)) > 1, int(os.environ.get("RANK", 0)) == 0
    with tqdm(total=len(runs), desc="runs", unit="run", disable=None if main else True) as bar:
        for number, run in enumerate(runs, 1):
            backbone = f"{run.backbone}, " if run.backbone else ""
            label = f"{run.trainer}, {backbone}{report.shots_label(run.shots or -1)}, seed {run.seed}"
            bar.set_postfix_str(label)
            label = f"run {number} of {len(runs)}, {label}"
            try:
                earlier = ", finished earlier" if is_finished(run) else ""
                outcome = execute(run)
            except Exception as error:  # of any kind: a method may be somebody's plugin
                if os.environ.get("UNSKEW_DEBUG") or (several and not isinstance(error, (ValueError, OSError))):
                    raise
                outcome, said = error, f"{label}: {_failure(run, error)}"
                # The frames of a traceback hold the trainer, and with it the device's memory.
                outcome.__traceback__ = outcome.__cause__ = outcome.__context__ = None
                if main:
                    tqdm.write(said, file=sys.stderr)
            else:
                if main and bar.disable:
                    print(f"{label}{_numbers(outcome)}{earlier}", file=sys.stderr, flush=True)
            bar.update()
            yield outcome


def _failure(run: Run, error: Exception) -> str:
    """One line; of what is not a mistake in data or config also the kind of error, and the log with the traceback."""
    if isinstance(error, (ValueError, OSError, FloatingPointError)):
        return one_line(error)
    return f"{type(error).__name__}: {one_line(error)} ({Path(run.config().OUTPUT_DIR) / 'log.txt'})"


def _numbers(metrics: dict) -> str:
    shown = {name: metrics.get(name) for name in ("accuracy", "seconds")}
    return "".join(f", {name} {value:.1f}" for name, value in shown.items() if isinstance(value, int | float))
