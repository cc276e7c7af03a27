"""Published results from ``configs/published.yaml``, and their comparison with cells of tables."""

import functools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unskew import config
from unskew.engine.run_dir import RunDir
from unskew.runs.tables.cells import Cell
from unskew.runs.tables.protocol_rows import HARMONIC
from unskew.utils.errors import DAMAGE

FEW_SHOT_11 = "few_shot_11"  # instead of a dataset, if only the mean over the 11 datasets was published
BASE_TO_NEW = "base_to_new"
_HALVES = ("base", "new", HARMONIC)


@dataclass(frozen=True)
class Source:
    """The place of a published result."""

    title: str
    url: str = ""
    commit: str = ""

    def __str__(self) -> str:
        return ", ".join(filter(None, [self.title, self.url, self.commit and f"commit {self.commit}"]))


@dataclass(frozen=True)
class Result:
    """A published number in percent.

    Attributes:
        method: the name of the method in its paper.
        trainers: the trainers here that are this method; the first has the paper's configuration.
        datasets: the dataset; several for a mean.
        backbone: the name of the backbone.
        shots: training images per class; -1: all of them; 0: zero-shot.
        metric: "accuracy", or "base", "new" and "H".
        mean: the number.
        deviation: the standard deviation over seeds, if it was published.
        seeds: the number of seeds, if it was published.
        source: the place of the number.
        second_hand: the number was read in a text that quotes the source.
        settings: values of the config that the number belongs to.
    """

    method: str
    trainers: tuple[str, ...]
    datasets: tuple[str, ...]
    backbone: str
    shots: int
    metric: str
    mean: float
    deviation: float | None
    seeds: int | None
    source: Source
    second_hand: bool = False
    settings: Mapping[str, object] = field(default_factory=dict)


@functools.cache
def results() -> tuple[Result, ...]:
    """Return all published results of the package."""
    return read(config.folder_of("datasets").parent / "published.yaml")


def read(path: Path) -> tuple[Result, ...]:
    """Return the results in a file.

    Raises:
        ValueError: a name is unknown, or the numbers do not fit the shots and backbones.
    """
    tree = config.read_yaml(path)
    sources = {name: Source(**values) for name, values in tree["sources"].items()}
    found = []
    for protocol, key in (("", "results"), (BASE_TO_NEW, BASE_TO_NEW)):
        for group in tree[key]:
            for method, of_datasets in group["numbers"].items():
                for dataset, numbers in of_datasets.items():
                    try:
                        names = tree[FEW_SHOT_11] if dataset == FEW_SHOT_11 else [dataset]
                        shared: dict[str, Any] = {
                            "method": method,
                            "trainers": tuple(tree["methods"][method]),
                            "datasets": tuple(config.check_name("datasets", name) for name in names),
                            "source": sources[group["source"]],
                            "second_hand": group.get("second_hand", False),
                            "settings": group.get("config", {}),
                        }
                        found += _results(group, numbers, protocol, shared)
                    except KeyError as error:
                        raise ValueError(f"'{path}': {error} is no source or method of the file") from error
                    except (ValueError, TypeError) as error:
                        raise ValueError(f"'{path}': {method} on {dataset}: {error}") from error
    return tuple(found)


def _results(group: Mapping, numbers: Any, protocol: str, shared: Mapping[str, Any]) -> list[Result]:
    """Return the results of one method on one dataset."""
    numbers = numbers if isinstance(numbers, list) else [numbers]
    shots, backbones = (value if isinstance(value, list) else [value] for value in (group["shots"], group["backbone"]))
    metrics = _HALVES if protocol else ("accuracy",)
    places = [(backbone, k, metric) for backbone in backbones for k in shots for metric in metrics]
    found = []
    for (backbone, k, metric), number in zip(places, numbers, strict=True):
        if number is not None:
            mean, deviation, seeds = _number(number, group.get("seeds"))
            if group.get("metric") == "error_rate":
                mean = round(100 - mean, 6)
            found.append(Result(backbone=backbone, shots=k, metric=metric, mean=mean, deviation=deviation, seeds=seeds,
                                **shared))  # fmt: skip
    return found


def _number(number: Any, seeds: int | None) -> tuple[float, float | None, int | None]:
    """Return the mean, the deviation and the number of seeds of a result."""
    if isinstance(number, Mapping):
        if values := number.get("of_seeds"):
            return statistics.fmean(values), statistics.stdev(values), len(values)
        return float(number["mean"]), float(number["deviation"]), seeds
    return float(number), None, seeds


def means(found: Iterable[Result], datasets: Sequence[str]) -> list[Result]:
    """Return the results on several datasets: published means, and means of results that one source has for all."""
    found, wanted = list(found), frozenset(datasets)
    if len(wanted) == 1:
        return [result for result in found if wanted == {*result.datasets}]
    groups: dict[tuple, dict[str, Result]] = {}
    for result in found:
        if len(result.datasets) == 1 and result.datasets[0] in wanted:
            key = (result.method, result.backbone, result.shots, result.metric, result.source, result.second_hand)
            groups.setdefault(key, {})[result.datasets[0]] = result
    whole = [of_dataset for of_dataset in groups.values() if len(of_dataset) == len(wanted)]
    computed = [
        replace(
            next(iter(of_dataset.values())),
            datasets=tuple(datasets),
            mean=statistics.fmean(result.mean for result in of_dataset.values()),
            deviation=None,
        )
        for of_dataset in whole
    ]
    return [*computed, *(result for result in found if frozenset(result.datasets) == wanted)]


def compared(cells: Sequence[Cell]) -> list[tuple[Result, Cell | None]]:
    """Return the published results that fit cells in dataset, backbone and shots, each with a trainer's cell.

    A method without runs has no cell. A result of the source itself replaces second-hand ones of the same number.

    Args:
        cells: cells of accuracies, or of base, new and H, and their averages over datasets.
    """
    places: dict[tuple, list[Cell]] = {}
    for cell in cells:
        if cell.metric in ("accuracy", *_HALVES):
            places.setdefault((cell.datasets, cell.backbone, cell.metric), []).append(cell)
    found: list[tuple[Result, Cell | None]] = []
    for (datasets, backbone, metric), there in places.items():
        fitting = [result for result in results() if result.backbone == backbone and result.metric == metric]
        for result in _first_hand(means(fitting, datasets)):
            same = [cell for cell in there if result.shots in (cell.shots, 0)]
            own = [cell for cell in same if cell.trainer in result.trainers and _has_settings(cell, result)]
            own = own[:1] if result.shots == 0 else own  # a zero-shot model is the same with every number of shots
            if not own and any(_has_settings(cell, result) for cell in same):  # other methods have runs of this setting
                found.append((result, None))
            found += [(result, cell) for cell in own]
    return found


def _first_hand(found: Sequence[Result]) -> list[Result]:
    """Return results without the second-hand ones of numbers that the source itself has."""

    def key(result: Result) -> tuple:
        return result.method, result.shots, tuple(result.settings.items())

    known = {key(result) for result in found if not result.second_hand}
    return [result for result in found if not (result.second_hand and key(result) in known)]


def _has_settings(cell: Cell, result: Result) -> bool:
    """Return whether the runs of a cell have the settings of a result."""
    return not result.settings or all(_settings(row["folder"], result.settings) for row in cell.measured)


def _settings(folder: str, wanted: Mapping[str, object]) -> bool:
    try:
        values = dict(config.flatten(config.read_yaml(RunDir(folder).config)))
    except (*DAMAGE, FileNotFoundError):
        return False
    return all(values.get(key) == value for key, value in wanted.items())
