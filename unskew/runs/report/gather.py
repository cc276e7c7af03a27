"""The runs of a report, by dataset and backbone, trainer and number of shots."""

import functools
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unskew.engine.run_dir import RunDir, path_safe, shots_label
from unskew.runs import tables
from unskew.runs.report.arrays import Predictions
from unskew.runs.tables import cell_statistics, cells
from unskew.utils.errors import DAMAGE, format_error

_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

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
        return f"{self.trainer}, {cells.label_of(self.row)}, seed {self.seed}"

    @property
    def longtail(self) -> bool:
        """True for a run on a long-tailed dataset."""
        return bool(self.row.get("longtail", False))

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
        names = [_printable(str(name)) for name in given] if isinstance(given, list) else []
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
    """The runs of one trainer and one number of shots, which differ in their seeds; of an average, in datasets too.

    Attributes:
        accuracy: their test accuracy, with its interval and its difference from the best trainer.
        runs: the runs.
    """

    accuracy: cells.Cell
    runs: Sequence[ReportRun]

    @property
    def trainer(self) -> str:
        """The trainer's name."""
        return self.accuracy.trainer

    @property
    def shots(self) -> int:
        """Training images per class; -1: all of them."""
        return self.accuracy.shots

    @property
    def mean(self) -> float:
        """The mean accuracy in percent."""
        return self.accuracy.mean

    @property
    def folder(self) -> Path:
        """The folder that holds the folders of all runs, or the folder of the only run."""
        return common_folder(run.path for run in self.runs)

    def values(self, metric: str) -> list[float]:
        """Return a metric of the runs that have it."""
        found = [run.row.get(metric) for run in self.runs]
        return [float(v) for v in found if isinstance(v, int | float) and not isinstance(v, bool) and v == v]


@dataclass(frozen=True)
class Place:
    """The runs on one dataset with one backbone, or their averages over datasets.

    Attributes:
        dataset: the dataset's name.
        backbone: the backbone's name.
        longtail: the dataset is long-tailed.
        cells: the runs by trainer and number of shots; an average may have none.
        notes: lines on the datasets that are not in an average.
    """

    dataset: str
    backbone: str
    longtail: bool
    cells: Mapping[tuple[str, int], Cell]
    notes: Sequence[str] = ()

    @property
    def model(self) -> str:
        """The backbone, and the word "long-tailed" for such a dataset."""
        return f"{self.backbone}{', long-tailed' if self.longtail else ''}"

    @property
    def title(self) -> str:
        """The heading, such as "digits, micro"."""
        return f"{self.dataset}, {self.model}"

    @property
    def stem(self) -> str:
        """The beginning of the names of files."""
        return path_safe(f"{self.dataset}-{self.backbone}{'-longtail' if self.longtail else ''}")

    @property
    def runs(self) -> list[ReportRun]:
        """All runs."""
        return [run for cell in self.cells.values() for run in cell.runs]

    @property
    def folder(self) -> Path:
        """The folder that holds the folders of all runs, or the folder of the only run."""
        return common_folder(run.path for run in self.runs)

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


@dataclass(frozen=True)
class Found:
    """Everything below the folders of a report.

    Attributes:
        runs: the runs on all classes.
        rows: the metrics of all runs, those on half of the classes included.
        evaluations: the metrics of evaluations of trained runs.
    """

    runs: list[ReportRun]
    rows: list[dict]
    evaluations: list[dict]


def collect(folders: Iterable[str | Path]) -> Found:
    """Return the finished runs and evaluations in and below folders, each once.

    Raises:
        FileNotFoundError: a folder does not exist.
        ValueError: there is no finished run.
    """
    folders = [str(folder) for folder in folders]
    rows: dict[Path, dict] = {}
    evaluations: dict[Path, dict] = {}
    for folder in folders:
        for found, known in zip(tables.collect_both(folder), (rows, evaluations), strict=True):
            for row in found:
                if isinstance(row.get("accuracy"), int | float) and row["accuracy"] == row["accuracy"]:
                    row |= {key: _printable(row[key]) for key in ("dataset", "trainer", "backbone")}
                    known.setdefault(Path(row["folder"]).resolve(), row)
    if not rows:
        below = ", ".join(f"'{folder}'" for folder in folders)
        raise ValueError(f"no finished run with an accuracy in {below}: run `unskew train` first")
    runs = [ReportRun(row, Path(row["folder"])) for row in rows.values() if not tables.is_half(row)]
    return Found(runs, list(rows.values()), list(evaluations.values()))


def _printable(name: str) -> str:
    """Return a name with a backslash escape for each character that XML, and thus SVG, does not allow."""
    return _NOT_IN_XML.sub(lambda match: match[0].encode("unicode_escape").decode(), name)


def arrange(runs: Sequence[ReportRun]) -> tuple[list[Place], list[Place]]:
    """Return runs by dataset and backbone, in the order of first appearance, and the averages of each backbone.

    The cells and averages are those of ``unskew table``. A backbone with several datasets has averages.
    """
    by_folder = {run.row["folder"]: run for run in runs}
    backbones: dict[tuple[str, bool], list[Mapping]] = {}
    places: dict[tuple[str, str, bool], dict[tuple[str, int], Cell]] = {}
    for run in runs:
        backbones.setdefault((run.row["backbone"], run.longtail), []).append(run.row)
        places[run.row["dataset"], run.row["backbone"], run.longtail] = {}
    averages = []
    for (backbone, longtail), rows in backbones.items():
        found, notes = cells.all_cells(rows, ["accuracy"])
        means: dict[tuple[str, int], Cell] = {}
        for cell in cell_statistics.against_best(found):
            of_cell = sorted((by_folder[row["folder"]] for row in cell.rows), key=lambda run: run.seed)
            target = places[cell.dataset, backbone, longtail] if len(cell.parts) == 1 else means
            target[cell.trainer, cell.shots] = Cell(cell, of_cell)
        if len({row["dataset"] for row in rows}) > 1 and (means or notes):
            averages.append(Place("average", backbone, longtail, means, notes))
    return [Place(*where, of_place) for where, of_place in places.items()], averages


def common_folder(folders: Iterable[str | Path]) -> Path:
    """Return the folder that holds all folders, or the only one."""
    paths = [*folders]
    if len({os.path.isabs(path) for path in paths}) > 1:
        paths = [os.path.abspath(path) for path in paths]
    return Path(os.path.commonpath(paths))
