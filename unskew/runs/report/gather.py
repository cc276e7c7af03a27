"""The runs of a report, by dataset and backbone, trainer and number of shots."""

import functools
import logging
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unskew.engine.run_dir import RunDir, path_safe, shots_label
from unskew.runs import comparison, tables
from unskew.runs.report.arrays import Predictions
from unskew.utils.errors import DAMAGE, format_error

logger = logging.getLogger("unskew")


@dataclass(frozen=True)
class ReportRun:
    """A finished run: its metrics and its folder."""

    row: Mapping[str, Any]
    path: Path

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.row["seed"]

    @property
    def trainer(self) -> str:
        """The trainer's name."""
        return self.row["trainer"]

    @property
    def label(self) -> str:
        """The run's name, such as "GLA, 16 shots, seed 1"."""
        return f"{self.trainer}, {shots_label(self.row['shots'], self.row.get('longtail') is True)}, seed {self.seed}"

    @functools.cached_property
    def predictions(self) -> Predictions | None:
        """The predictions of the test images; ``None``, perhaps with a warning, if they cannot be read."""
        file = RunDir(self.path).predictions
        try:
            return Predictions(file) if file.is_file() else None
        except DAMAGE as error:
            logger.warning(f"the predictions of '{self.path}' are left out: {format_error(error)}")
            return None

    @functools.cached_property
    def classnames(self) -> list[str]:
        """The names of the classes by label; "class 7" where the run has none."""
        given = self.row.get("classnames")
        names = [str(name) for name in given] if isinstance(given, list) else []
        count = self.predictions.classes if self.predictions else len(names)
        return names if len(names) == count else [f"class {label}" for label in range(count)]

    def same_images(self, other: "ReportRun") -> bool:
        """Return whether both runs have predictions of the same test images."""
        ours, theirs = self.predictions, other.predictions
        if ours is None or theirs is None or not np.array_equal(ours.labels, theirs.labels):
            return False
        keys = ("classnames", "unreadable_test_names")
        return all(self.row.get(key) == other.row.get(key) for key in keys)


@dataclass(frozen=True)
class Cell:
    """The runs of one trainer and one number of shots, which differ in their seeds."""

    trainer: str
    shots: int
    runs: Sequence[ReportRun]

    @property
    def seeds(self) -> list[int]:
        """The seeds, in order."""
        return sorted({run.seed for run in self.runs})

    @property
    def folder(self) -> Path:
        """The folder that holds the folders of all seeds, or the folder of the only run."""
        parents = {run.path.parent for run in self.runs}
        return next(iter(parents)) if len(parents) == 1 and len(self.runs) > 1 else self.runs[0].path

    def values(self, metric: str) -> list[float]:
        """Return a metric of the runs that have it."""
        found = [run.row.get(metric) for run in self.runs]
        return [float(v) for v in found if isinstance(v, int | float) and not isinstance(v, bool) and v == v]

    @property
    def mean(self) -> float:
        """The mean accuracy in percent."""
        return statistics.fmean(self.values("accuracy"))

    @functools.cached_property
    def correct(self) -> np.ndarray | None:
        """Correctness of each run on each test image, [S, N]; ``None`` unless all have the same test images."""
        if not all(self.runs[0].same_images(run) for run in self.runs):
            return None
        return np.stack([run.predictions.correct() for run in self.runs if run.predictions])

    @functools.cached_property
    def interval(self) -> tuple[float, float] | None:
        """The 95% interval of the mean accuracy in percent, by bootstrap over seeds and images."""
        if self.correct is None:
            return None
        found = comparison.interval(self.correct, np.random.default_rng(0))
        return found.low, found.high


@dataclass(frozen=True)
class Place:
    """The runs on one dataset with one backbone."""

    dataset: str
    backbone: str
    cells: Mapping[tuple[str, int], Cell]

    @property
    def title(self) -> str:
        """The heading, such as "digits, micro"."""
        return f"{self.dataset}, {self.backbone}"

    @property
    def stem(self) -> str:
        """The beginning of the names of files."""
        return path_safe(f"{self.dataset}-{self.backbone}")

    @property
    def runs(self) -> list[ReportRun]:
        """All runs."""
        return [run for cell in self.cells.values() for run in cell.runs]

    @property
    def folder(self) -> Path:
        """The folder that holds the folders of all runs, or the folder of the only run."""
        paths: list[str | Path] = [run.path for run in self.runs]
        if len({os.path.isabs(path) for path in paths}) > 1:
            paths = [os.path.abspath(path) for path in paths]
        return Path(os.path.commonpath(paths))

    @functools.cached_property
    def trainers(self) -> list[str]:
        """The trainers, from the best to the worst at the largest number of shots."""
        last: dict[str, tuple[bool, int, float]] = {}
        for (trainer, shots), cell in self.cells.items():
            last[trainer] = max(last.get(trainer, (False, 0, 0.0)), (shots < 0, shots, cell.mean))
        return sorted(last, key=lambda name: -last[name][2])

    @functools.cached_property
    def shots(self) -> list[int]:
        """The numbers of shots; all images (-1) come last."""
        return sorted({shots for _, shots in self.cells}, key=lambda k: (k < 0, k))

    @property
    def longtail(self) -> bool:
        """True for a long-tailed dataset."""
        return any(run.row.get("longtail") is True for run in self.runs)

    def label(self, shots: int) -> str:
        """Return "16 shots", "all images" or "long-tailed"."""
        return shots_label(shots, self.longtail)

    def column(self, shots: int) -> list[Cell]:
        """Return the cells of a number of shots, the best trainer first."""
        return [self.cells[name, shots] for name in self.trainers if (name, shots) in self.cells]

    @functools.cached_property
    def focus(self) -> Cell:
        """The cell that is looked at closely: GLA, or the best trainer, with the most shots.

        GLA is any trainer whose runs have the accuracy of a debiased model beside the zero-shot one's; the default
        base comes first.
        """
        debiased = [cell for cell in self.cells.values() if is_debiased(cell)]
        best = {name: -place for place, name in enumerate(self.trainers)}
        return max(
            debiased or self.cells.values(),
            key=lambda cell: (
                cell.trainer.startswith("GLA") if debiased else False,
                cell.shots < 0,
                cell.shots,
                cell.trainer == "GLA",
                best[cell.trainer],
            ),
        )

    @property
    def example(self) -> ReportRun:
        """The run of the focus with the smallest seed."""
        return min(self.focus.runs, key=lambda run: run.seed)


def is_debiased(cell: Cell) -> bool:
    """Return whether the runs report a debiased model and the zero-shot model that it starts from."""
    return bool(cell.values("zs_accuracy") and (cell.values("gla_accuracy") or cell.values("debiased_accuracy")))


def collect(folders: Iterable[str | Path]) -> list[ReportRun]:
    """Return the finished runs in and below folders, each once.

    Raises:
        FileNotFoundError: a folder does not exist.
        ValueError: there is no finished run.
    """
    folders = [str(folder) for folder in folders]
    runs: dict[Path, ReportRun] = {}
    for folder in folders:
        for row in tables.collect(folder):
            path = Path(row["folder"])
            if isinstance(row.get("accuracy"), int | float) and row["accuracy"] == row["accuracy"]:
                runs.setdefault(path.resolve(), ReportRun(row, path))
    if not runs:
        below = ", ".join(f"'{folder}'" for folder in folders)
        raise ValueError(f"no finished run with an accuracy in {below}: run `unskew train` first")
    return list(runs.values())


def places(runs: Sequence[ReportRun]) -> list[Place]:
    """Return runs by dataset and backbone, in the order of first appearance."""
    grouped: dict[tuple[str, str], dict[tuple[str, int], list[ReportRun]]] = {}
    for run in runs:
        cells = grouped.setdefault((run.row["dataset"], run.row["backbone"]), {})
        cells.setdefault((run.row["trainer"], run.row["shots"]), []).append(run)
    return [
        Place(*where, {key: Cell(*key, sorted(same, key=lambda run: run.seed)) for key, same in cells.items()})
        for where, cells in grouped.items()
    ]
