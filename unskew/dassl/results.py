"""Files of a script's run, as ``unskew train`` writes them: metrics, predictions and the mark of a finished run."""

import functools
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from unskew.engine.label_prior import write_prior
from unskew.engine.results import counts_of, results_of, write_results
from unskew.engine.run_dir import RunDir, dataset_label, trainer_label
from unskew.utils import processes
from unskew.utils.errors import format_error
from unskew.utils.files import read_json

logger = logging.getLogger("unskew")


def write_files_of(trainer: Any, cfg: CfgNode) -> None:
    """Let ``train()`` of a trainer write a run's files into ``OUTPUT_DIR``, and ``test()`` those of an evaluation.

    The methods are replaced in this object, because scripts override them in their classes. The files are
    ``predictions.safetensors``, ``metrics.json`` and ``done``. There is no ``config.yaml``: the script's flags decide
    the settings of an evaluation. A run that was tested by its script's own code has the accuracy alone.

    Args:
        trainer: a trainer of a script.
        cfg: its config.
    """
    files = _Files(trainer, cfg)
    for name, method in (("train", files.train), ("test", files.test), ("load_model", files.load_model)):
        setattr(trainer, name, functools.partial(method, getattr(trainer, name)))


class _Files:
    """The calls of a script to its trainer, and the files that follow from them."""

    def __init__(self, trainer: Any, cfg: CfgNode) -> None:
        self._trainer, self._cfg = trainer, cfg
        self._trains = self._has_trained = False
        self._source = ""  # the folder whose weights the script has loaded
        self._results: dict[str, Any] = {}  # of the last test
        self._seconds = 0.0

    def train(self, train: Callable, *args: Any, **kwargs: Any) -> Any:
        """Train, then write the files of the run."""
        folder, started = RunDir(self._cfg.OUTPUT_DIR), time.perf_counter()
        self._check_owner(folder)
        _clear(folder)
        self._trains = self._has_trained = True
        try:
            returned = train(*args, **kwargs)
        finally:
            self._trains = False
        self._seconds = round(time.perf_counter() - started, 2)
        self._write_run()
        return returned

    def test(self, test: Callable, *args: Any, **kwargs: Any) -> Any:
        """Test; outside of the training, write the files of the run or of the evaluation."""
        trainer = self._trainer
        before, started = getattr(trainer, "results", None), time.perf_counter()
        value = test(*args, **kwargs)
        if (args[0] if args else kwargs.get("split")) not in (None, "test"):
            return value
        results = getattr(trainer, "results", None)
        if results and results is not before:
            self._results = dict(results)
        else:  # the script tests with its own code
            self._results = {} if value is None else {"accuracy": float(value)}
        if not self._trains and self._has_trained:
            self._write_run()
        elif not self._trains:
            self._write_evaluation(round(time.perf_counter() - started, 2))
        return value

    def load_model(self, load: Callable, directory: Any = "", *args: Any, **kwargs: Any) -> Any:
        """Load weights; outside of the training, note their folder."""
        if not self._trains:
            self._source = str(directory or "")
        return load(directory, *args, **kwargs)

    def _check_owner(self, folder: RunDir) -> None:
        """Raise ``ValueError`` if a folder has a finished run of `unskew train`, another trainer or another dataset."""
        if not folder.metrics.is_file():
            return
        found, wanted = read_json(folder.metrics), (dataset_label(self._cfg), trainer_label(self._cfg))
        owner = found.get("dataset"), found.get("trainer")
        if "evaluated_from" not in found and (folder.config.is_file() or owner != wanted):
            raise ValueError(
                f"'{folder.path}' holds a finished run of {owner[1]} on {owner[0]}: choose another output folder, or "
                "delete this one"
            )

    def _write_run(self) -> None:
        self._write(RunDir(self._cfg.OUTPUT_DIR), seconds=self._seconds, **counts_of(self._trainer))

    def _write_evaluation(self, seconds: float) -> None:
        """Write the files of a test without training; the files of a finished training run stay as they are."""
        if not self._source and getattr(self._trainer, "_models", None):
            logger.warning("no weights were loaded: a test of an untrained model has no metrics.json")
            return
        folder = RunDir(self._cfg.OUTPUT_DIR)
        same = bool(self._source) and Path(self._source).resolve() == folder.path.resolve()
        if same or (folder.metrics.is_file() and "evaluated_from" not in read_json(folder.metrics)):
            folder = RunDir(folder.path / "eval" / dataset_label(self._cfg))
        _clear(folder)
        origin = {"evaluated_from": self._source} if self._source else counts_of(self._trainer)
        self._write(folder, seconds=seconds, **origin)

    def _write(self, folder: RunDir, **more: object) -> None:
        if not processes.is_main():
            return
        try:
            write_prior(folder.prior, self._trainer)
            write_results(folder, *results_of(self._trainer, self._cfg, self._results, **more))
            folder.finish(self._cfg)
        except Exception as error:  # of any kind: the script's own classes compute the results
            logger.warning(f"'{folder.path}' has no metrics.json: {format_error(error)}")


def _clear(folder: RunDir) -> None:
    """Create the folder and delete the results of an earlier run in it; the checkpoints stay, as in Dassl."""
    if processes.is_main():
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.clear()
        folder.config.unlink(missing_ok=True)  # of `unskew train`
