"""A run: one trainer on one dataset with one seed, and its folder."""

import functools
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from yacs.config import CfgNode

import unskew
from unskew import config
from unskew.data.snapshot import with_snapshot
from unskew.engine.results import results_of, write_results
from unskew.engine.run_dir import (
    USER_DATASETS,
    RunDir,
    backbones_of,
    run_folder,
)
from unskew.runs import costs, libraries, model, plugins, tables
from unskew.runs.predicting import Predicting
from unskew.utils import processes, threads
from unskew.utils.errors import DAMAGE, format_error
from unskew.utils.files import expand

if TYPE_CHECKING:
    from torch import Tensor

    from unskew.engine.trainer import SimpleTrainer
    from unskew.utils.derived_tensors import Sum

logger = logging.getLogger("unskew")

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Run(Predicting):
    """The description of a run, with what its folder holds. `train`, `sweep` and `load_run` return it.

    Attributes:
        dataset: a dataset's name, or the path of a YAML.
        trainer: a trainer's name.
        backbone: empty for the dataset's default.
        shots: training images per class; -1: all of them; ``None``: as the config says.
        seed: ``None``: as the config says.
        root: the folder of the datasets; empty: as the config says.
        output: the folder below which the run has its place.
        folder: the run's folder; empty: the place below ``output`` that its names give.
        opts: KEY VALUE pairs, flat; ``OUTPUT_DIR`` is another way to set ``folder``.
        config_file: one more YAML, merged after the trainer's own.
        plugins: files or modules that bring datasets and trainers, see `plugins.load`.

    Examples:
        >>> import tempfile, unskew
        >>> run = unskew.Run("digits", "ZeroshotCLIP", shots=1, seed=1, output=tempfile.mkdtemp())
        >>> run.is_finished, run.config.DATASET.NUM_SHOTS, run.path.name
        (False, 1, 'seed1')
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
    plugins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Turn paths, NumPy's numbers and lists into strings, Python's numbers and tuples.

        Raises:
            ValueError: a value is of another kind.
        """
        values: dict[str, object] = {"opts": flat(self.opts), "plugins": tuple(map(os.fspath, several(self.plugins)))}
        for name in ("dataset", "trainer", "backbone", "root", "output", "folder", "config_file"):
            value = getattr(self, name)
            if not isinstance(value, str | os.PathLike):
                raise ValueError(f"{name} must be a string or a path (got {value!r})")
            values[name] = os.fspath(value)
        for name in ("shots", "seed"):
            if (value := getattr(self, name)) is not None:
                values[name] = config.integer(name, value)
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __getstate__(self) -> dict:
        """Return the description alone: another process builds the config again, and loads the plugins first."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @functools.cached_property
    def config(self) -> CfgNode:
        """The frozen config, built once; its OUTPUT_DIR is the run's folder."""
        plugins.load(self.plugins)
        flags = {"DATASET.ROOT": self.root or None, "DATASET.NUM_SHOTS": self.shots, "SEED": self.seed}
        pairs = [part for key, value in flags.items() if value is not None for part in (key, value)]
        cfg = config.load(self.dataset, self.backbone, self.trainer, (*pairs, *self.opts), self.config_file)
        folder = self.folder or dict(zip(self.opts[::2], self.opts[1::2], strict=True)).get("OUTPUT_DIR")
        return config.derive(cfg, {"OUTPUT_DIR": folder or str(run_folder(cfg, self.output))})

    @property
    def path(self) -> Path:
        """The run's folder."""
        return Path(self.folder or self.config.OUTPUT_DIR)

    @property
    def is_finished(self) -> bool:
        """True if the folder holds a finished run, which `execute` only reads."""
        return RunDir(self.path).is_finished

    @property
    def metrics(self) -> dict:
        """The content of the finished run's ``metrics.json``, by name."""
        return tables.read_metrics(self._file("metrics"))

    @property
    def predictions(self) -> "dict[str, Tensor]":
        """The finished run's ``logits`` [N, C] and ``labels`` [N] of the test images, and what else it saved."""
        from unskew.engine import prediction_file

        file = self._file("predictions")
        try:
            return prediction_file.read(file)
        except PermissionError:
            raise
        except DAMAGE as error:
            reason = format_error(error)
            raise ValueError(
                f"'{file}' is damaged ({reason}); delete the folder '{self.path}' and run again"
            ) from error

    def _file(self, name: str) -> Path:
        folder = RunDir(self.path)
        file: Path = getattr(folder, name)
        if file.is_file() and (damage := folder.damage()):
            raise ValueError(f"{damage}; run the same command again")
        if not (folder.done.is_file() and file.is_file()):
            raise FileNotFoundError(f"'{self.path}' holds no finished run with {file.name}: train the run first")
        return file


def load_run(folder: str | Path) -> Run:
    """Return the finished run in a folder.

    Args:
        folder: a run's folder, with the file ``done``.

    Raises:
        FileNotFoundError: the folder holds no finished run.
        ValueError: its ``config.yaml`` is damaged.

    Examples:
        >>> import tempfile, unskew
        >>> trained = unskew.train("digits", "ZeroshotCLIP", shots=1, seed=1, output=tempfile.mkdtemp())
        >>> run = unskew.load_run(trained.path)
        >>> run.trainer, run.metrics == trained.metrics, run.predictions["logits"].shape[1]
        ('ZeroshotCLIP', True, 10)
    """
    place = RunDir(absolute(folder))
    saved = dict(config.flatten(place.read_config()))
    return Run(
        dataset=saved["DATASET.NAME"],
        trainer=saved["TRAINER.NAME"],
        backbone=saved["MODEL.BACKBONE.NAME"],
        shots=saved["DATASET.NUM_SHOTS"],
        seed=saved["SEED"],
        root=saved["DATASET.ROOT"],
        folder=str(place.path),
        config_file=str(place.config),
        opts=tuple(part for pair in config.former_values(saved).items() for part in pair),
    )


def train(
    dataset: str,
    trainer: str,
    *,
    backbone: str = "",
    shots: int | None = None,
    seed: int | None = None,
    root: str = "",
    output: str | Path = "output",
    folder: str | Path = "",
    opts: Mapping[str, object] | Sequence = (),
    plugins: Sequence[str] = (),
    console: bool = False,
) -> Run:
    """Train and test a trainer on a dataset, or return the finished run if its folder has one.

    Args:
        dataset: a dataset's name, or the path of a YAML.
        trainer: a trainer's name.
        backbone: empty for the dataset's default.
        shots: training images per class; default: all of them.
        seed: default: 1.
        root: the folder of the datasets; default: "data".
        output: the folder below which the run has its place.
        folder: the run's folder, instead of a place below ``output``.
        opts: config values by key, ``{"OPTIM.LR": 0.1}``.
        plugins: files or modules that bring datasets and trainers.
        console: print the log lines; they are in ``log.txt`` too.

    Raises:
        ValueError: an unknown name or key, or the folder holds a finished run with another config.

    Examples:
        >>> import tempfile, unskew
        >>> run = unskew.train("digits", "CoOp", shots=1, output=tempfile.mkdtemp(), opts={"OPTIM.MAX_EPOCH": 1})
        >>> run.metrics["accuracy"] > 50
        True
    """
    place = {"output": absolute(output), "folder": absolute(folder) if folder else ""}
    run = Run(dataset, trainer, backbone, shots, seed, root, **place, opts=flat(opts), plugins=several(plugins))
    execute(run, console)
    return run


def flat(opts: Mapping[str, object] | Sequence | None) -> tuple:
    """Return config values by key as flat KEY VALUE pairs; lists become tuples, NumPy's numbers Python's."""
    if isinstance(opts, Mapping):
        opts = [part for pair in config.flatten(opts) for part in pair]
    return tuple(map(_plain, opts or ()))


def _plain(value: Any) -> object:
    value = value.tolist() if hasattr(value, "tolist") else value
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def several(values: Any) -> tuple:
    """Return several values as a tuple; a single name, path or number counts as a sequence of one."""
    single = isinstance(values, str | os.PathLike) or not isinstance(values, Iterable)
    return (values,) if single else tuple(values)


def absolute(path: str | Path) -> str:
    """Make a path absolute, so that a change of the current folder does not matter."""
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"the output folder must be a path (got {path!r})")
    return os.path.abspath(path)


@with_snapshot
def execute(run: Run, console: bool = True) -> dict:
    """Train and test a run, or only read the metrics if it is finished.

    Args:
        run: its folder is written.
        console: print the log lines, not only write them to ``log.txt``.

    Returns:
        The content of ``metrics.json``.

    Raises:
        ValueError: the folder holds a finished run with another config; the message names the keys.
    """
    if (finished := finished_metrics(run)) is not None:
        return finished
    cfg = run.config
    folder = RunDir(cfg.OUTPUT_DIR)
    check_root(cfg)
    number = number_of_threads(cfg)
    if cfg.RESUME:
        RunDir(cfg.RESUME).check_resumable(cfg)
    libraries.freeze()
    main = processes.is_main()  # only one of several processes writes
    from unskew.utils.logging import setup_logger, warnings_once

    place = folder.start_log() if main else None
    with threads.limit(number), warnings_once(), setup_logger(place, console=console and main):
        for plugin in run.plugins:
            logger.info(f"Plugin: {plugin}")
        metrics, predictions = _train_and_test(cfg, folder if main else None)
        with processes.together():
            if main:
                write_results(folder, metrics, predictions)
                folder.finish(cfg)
    return metrics


def finished_metrics(run: Run) -> dict | None:
    """Return the metrics of a run that is finished, without PyTorch; ``None`` for other runs.

    Raises:
        ValueError: the folder holds a finished run with another config; the message names the keys.
    """
    folder = RunDir(run.path)
    if not folder.is_finished:
        return None
    folder.check_same(run.config)
    _warn_if_method_changed(run.config, folder)
    return run.metrics


def number_of_threads(cfg: CfgNode) -> int | None:
    """Return the number of CPU threads of a run; ``None``: that of the caller.

    Runs on the embedded worlds use one thread unless ``UNSKEW_THREADS`` is set, so that they have the same bits on any
    number of cores. On such small models several threads are not faster.

    Raises:
        ValueError: ``UNSKEW_THREADS`` is not a number of threads.
    """
    given = threads.requested()
    if given is not None:
        return given
    names = {re.split("[@#]", name)[0] for name in backbones_of(cfg)}
    embedded = {name for name in config.names("backbones") if name.startswith("micro")}
    return 1 if names <= embedded else None


def with_threads(function: Callable[Concatenate[Run, P], R]) -> Callable[Concatenate[Run, P], R]:
    """Decorate a function of a run so that it uses the run's number of threads."""

    @functools.wraps(function)
    def limited(run: Run, *args: P.args, **kwargs: P.kwargs) -> R:
        number = number_of_threads(run.config)
        libraries.freeze()
        with threads.limit(number):
            return function(run, *args, **kwargs)

    return limited


def check_root(cfg: CfgNode) -> None:
    """Raise ``FileNotFoundError`` if the user's own images do not exist, before a backbone is loaded for them."""
    if cfg.DATASET.NAME in USER_DATASETS and not expand(cfg.DATASET.ROOT).exists():
        raise FileNotFoundError(f"there is no '{cfg.DATASET.ROOT}': give your own images with --root")


def _train_and_test(cfg: CfgNode, folder: RunDir | None) -> "tuple[dict, dict[str, Tensor | Sum]]":
    """Return the metrics and the predictions of a new run; prepare its folder, if this process writes it."""
    from unskew.engine.label_prior import write_prior
    from unskew.utils.seeds import set_random_seed

    started = time.perf_counter()
    set_random_seed(cfg.SEED)
    with costs.measured(cfg.USE_CUDA) as cost:
        trainer = _build(cfg)
        with processes.together():
            if folder:  # not before: a refused config must not delete the checkpoints of an interrupted run
                folder.prepare(cfg)
        trainer.train()
        with processes.together():
            if folder:
                write_prior(folder.prior, trainer)
        seconds = round(time.perf_counter() - started, 2)
        results = results_of(trainer, cfg, trainer.results, seconds=seconds, **cost.of(trainer))
    described = model.describe(trainer, cfg)  # in all processes, which predict together
    with processes.together():
        if folder and described:
            model.write_model(folder, described)
    return results


def _build(cfg: CfgNode) -> "SimpleTrainer":
    from unskew.engine.trainer import build_trainer

    try:
        return build_trainer(cfg)
    except AssertionError as error:  # trainers written for Dassl refuse a config with an assertion
        raise ValueError(f"{cfg.TRAINER.NAME} refuses the config: {str(error) or 'an assertion failed'}") from error


_warned: set[Path] = set()


def _warn_if_method_changed(cfg: CfgNode, folder: RunDir) -> None:
    """Warn once if a trainer's file is newer than a finished run: the code is not in the fingerprint."""
    name = f"{(cfg.TRAINER.CLASS or cfg.TRAINER.NAME).lower()}.py"
    for source in (Path(place) / "trainers" / name for place in unskew.__path__):
        if source.is_file() and source.stat().st_mtime > folder.done.stat().st_mtime and source not in _warned:
            _warned.add(source)
            logger.warning(
                f"'{source}' was changed after '{folder.path}' was finished; delete that folder to run it again"
            )
