"""The section The bias: log q by class, and the accuracy of classes with and without the correction."""

import csv
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unskew import config
from unskew.engine.run_dir import RunDir
from unskew.runs.report import bias_figures, thumbnails
from unskew.runs.report.blocks import Cell, Heading, Note, Section, Table, number, word
from unskew.runs.report.drawing import LARGEST
from unskew.runs.report.gather import Place, ReportRun, is_debiased
from unskew.runs.tables import mean_and_deviation
from unskew.utils.errors import DAMAGE

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WHOLE_TABLE = 100  # classes; of more classes a table shows the first and the last
_SHOWN = 25  # of each

GROUPS = ("p_many", "p_medium", "p_few", "d_many", "d_medium", "d_few")


@dataclass(frozen=True)
class Prior:
    """The pre-training prior of a run, by label; numbers that the run does not have are ``None``."""

    log_q: "NDArray"
    deviation: "NDArray | None" = None
    counts: "NDArray | None" = None  # training images


@dataclass(frozen=True)
class Bias:
    """The numbers of the figures and the table of one place.

    Attributes:
        run: the run that estimated the prior.
        seeds: the seeds over which accuracies are averaged.
        accuracies: [S, C] in percent by model: zero-shot, base and the debiased one, which is the last.
        images: test images of each class, [C].
    """

    run: ReportRun
    folder: Path
    seeds: Sequence[int]
    prior: Prior
    accuracies: "Mapping[str, NDArray]"
    images: "NDArray"

    @property
    def seeds_label(self) -> str:
        """The seeds in words, such as "seeds 1 2"."""
        return f"seed{'s' if len(self.seeds) > 1 else ''} {' '.join(map(str, self.seeds))}"

    def mean(self, model: str) -> "NDArray":
        """Return the accuracy of each class, the mean over seeds, [C]."""
        return self.accuracies[model].mean(0)


def bias_section(places: Sequence[Place], images: bool) -> Section:
    """Return the section The bias; ``images`` adds thumbnails of the user's test images."""
    lead = (
        "Which classes does the foundation model prefer, and what does the correction change? log q is the log "
        "prior of the pre-training data as the zero-shot model shows it."
    )
    section = Section("The bias", lead)
    for place in places:
        section.blocks.append(Heading(place.title))
        found = gather(place)
        section.blocks += [Note(found)] if isinstance(found, str) else bias_figures.figures(place.stem, found)
        if groups := _groups_table(place):
            section.blocks.append(groups)
        if isinstance(found, str):
            continue
        section.blocks.append(_classes_table(place.stem, found))
        if images:
            section.blocks.append(thumbnails.changed(found))
    return section


def gather(place: Place) -> Bias | str:
    """Return the numbers of a place, or a line on what is missing."""
    if not is_debiased(place.focus):
        return "No run has a debiased model beside its zero-shot one: train GLA to see the bias by class."
    run = place.example
    if run.predictions is None or not run.predictions.has("zs"):
        return f"'{run.path}' has no predictions of its zero-shot half: run it again to see the bias by class."
    prior = read_prior(run)
    if prior is None:
        return f"'{run.path}' has no prior.csv of its classes: run it again to see the bias by class."
    same = [other for other in place.focus.runs if run.same_images(other)]
    models = {"zero-shot": "zs", **({base_of(run): "ft"} if run.predictions.has("ft") else {}), run.trainer: "logits"}
    accuracies = {
        name: np.stack([other.predictions.class_accuracy(part) for other in same if other.predictions])
        for name, part in models.items()
    }
    folder = run.path if len(same) < 2 else place.focus.folder
    images = np.bincount(run.predictions.labels, minlength=run.predictions.classes)
    return Bias(run, folder, [other.seed for other in same], prior, accuracies, images)


def base_of(run: ReportRun) -> str:
    """Return the name of the trainer that a run has as its fine-tuned half."""
    try:
        saved = dict(config.flatten(RunDir(run.path).read_config()))
    except (ValueError, OSError):
        return "base"
    name = str(saved.get("TRAINER.CLASS") or saved.get("TRAINER.NAME"))
    return str(saved.get(f"TRAINER.{name.upper()}.BASE") or "base")


def read_prior(run: ReportRun) -> Prior | None:
    """Return the prior in ``prior.csv``, of any version, or else in the predictions; ``None`` if neither has it."""
    file = RunDir(run.path).prior
    count = len(run.classnames)
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        if rows and len(rows) == count:
            deviation = "log_q_deviation" if "log_q_deviation" in rows[0] else "deviation"
            columns = [_column(rows, name) for name in ("log_q", deviation, "count")]
            if columns[0] is not None:
                return Prior(columns[0], *columns[1:])
    except DAMAGE:
        pass
    log_q = run.predictions.log_q() if run.predictions else None
    return Prior(log_q) if log_q is not None and log_q.shape == (count,) and np.isfinite(log_q).all() else None


def _column(rows: Sequence[Mapping[str, str]], name: str) -> "NDArray | None":
    """Return a column of numbers; ``None`` if it is missing or has a cell without a number of reasonable size."""
    try:
        values = np.array([float(row[name]) for row in rows])
    except (KeyError, TypeError, ValueError):
        return None
    is_whole = bool((np.abs(values) < LARGEST).all()) and (name == "log_q" or bool((values >= 0).all()))
    return values if is_whole else None


# --- tables -----------------------------------------------------------------------------------------


def _groups_table(place: Place) -> Table | None:
    """Return the accuracies of groups of classes of all trainers; ``None`` if no run has groups."""
    shots = place.focus.shots
    cells = place.column(shots)
    known = [name for name in GROUPS if any(cell.values(name) for cell in cells)]
    if not known:
        return None
    rows = [[word(cell.trainer), *(_mean(cell.values(name), cell.folder) for name in known)] for cell in cells]
    caption = (
        f"Mean class accuracy of groups of classes in percent, {place.label(shots)}. p_many, p_medium and p_few are "
        "the thirds of the classes with the largest, middle and smallest q, the same classes for all trainers. A "
        "trainer without bias has similar numbers in all thirds."
    )
    if any(name.startswith("d_") for name in known):
        caption += " d_many, d_medium and d_few have more than 100, 20 to 100 and fewer than 20 training images."
    return Table(f"groups-{place.stem}", ["trainer", *(f"{name} (%)" for name in known)], rows, caption)


def _mean(values: Sequence[float], folder: Path) -> Cell:
    if not values:
        return Cell("")
    return Cell(mean_and_deviation(values), statistics.fmean(values), folder=folder)


def _classes_table(stem: str, bias: Bias) -> Table:
    before, *_, after = bias.accuracies
    gain = bias.mean(after) - bias.mean(before)
    order = np.argsort(-np.where(np.isnan(gain), -np.inf, gain), kind="stable")
    order = order[: int(np.isfinite(gain).sum())]  # a class without test images comes last
    left_out = ""
    if len(order) > _WHOLE_TABLE:
        left_out = f" Of {len(order):,} classes these are the {_SHOWN} first and the {_SHOWN} last."
        order = np.concatenate([order[:_SHOWN], order[-_SHOWN:]])
    others = [name for name in bias.accuracies if name not in (before, after)]
    known: dict[str, tuple[NDArray | None, int]] = {  # with the digits to show
        "log q": (bias.prior.log_q, 2),
        "± sd": (bias.prior.deviation, 2),
        "training images": (bias.prior.counts, 0),
        "test images": (bias.images, 0),
    }
    facts = {name: (values, digits) for name, (values, digits) in known.items() if values is not None}
    columns = ["class", *facts, *(f"{name} (%)" for name in bias.accuracies)]
    columns += [f"gain over {name} (points)" for name in (before, *others)]
    rows = []
    for label in order.tolist():
        cells = [number(values[label].item(), digits) for values, digits in facts.values()]
        accuracies = [bias.mean(name)[label].item() for name in bias.accuracies]
        gains = [accuracies[-1] - accuracy for accuracy in accuracies[:-1]]
        signed = [Cell(f"{value:+.1f}".replace("-", "−"), value) for value in gains]
        rows.append([word(bias.run.classnames[label]), *cells, *(number(value) for value in accuracies), *signed])
    caption = (
        f"Classes by what they gain from zero-shot to {after}, {bias.seeds_label}: the first rows "
        f"gained most, the last ones lost most. A correction of the bias helps classes with a small log q.{left_out}"
    )
    return Table(f"classes-{stem}", columns, rows, caption, bias.folder)
