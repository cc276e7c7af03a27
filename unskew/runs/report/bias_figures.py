"""Figures of the pre-training prior and of the accuracy that depends on it."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from unskew.runs.report.blocks import Figure
from unskew.runs.report.drawing import hide_grid, shorten, use_log_scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from unskew.runs.report.bias import Bias
    from unskew.runs.report.drawing import Ink

_NAMED = 24  # classes that a figure names
_POINTS = 300  # that a figure draws of more classes

GROUPS = ("large q", "medium q", "small q")


def figures(stem: str, bias: "Bias") -> list[Figure]:
    """Return the figures of one place."""
    seeds, run, prior = bias.seeds_label, bias.run, bias.prior
    whiskers = "; the bars' whiskers are standard deviations over seeds" if len(bias.seeds) > 1 else ""
    models = {name: bias.mean(name) for name in bias.accuracies}
    classes = len(prior.log_q)
    sampled = f" It draws {_POINTS} of {classes:,} classes; the lines use all." if classes > _POINTS else ""
    bar = " ± one standard deviation of the estimate" if prior.deviation is not None else ""
    height = 0.9 + 0.2 * classes if classes <= _NAMED else 3.1
    found = [
        Figure(
            f"log-q-{stem}",
            f"log q of each class{bar}, {run.label}. The dashed line is a model without bias: classes to its right "
            "(or above it) are preferred, the others are neglected.",
            functools.partial(_draw_log_q, bias=bias),
            run.path,
            (4.2, max(2.4, height)),
        ),
        Figure(
            f"accuracy-by-q-{stem}",
            f"Accuracy of classes against log q, {seeds}; a point is a class, and a line joins the means of classes "
            f"with similar q. Read off the slope: it is flat without bias.{sampled}",
            functools.partial(_draw_against, values=prior.log_q, models=models, label="log q"),
            bias.folder,
            (4.2, 3.3),
        ),
        Figure(
            f"thirds-{stem}",
            f"Mean class accuracy by thirds of this q, {seeds}{whiskers}. "
            "The correction raises the third with the smallest q most.",
            functools.partial(_draw_thirds, bias=bias),
            bias.folder,
            (4.2, 3.3),
        ),
    ]
    if prior.counts is not None and prior.counts.min() > 0 and len(np.unique(prior.counts)) > 1:
        caption = f"Accuracy of classes against their numbers of training images, {seeds}, as above.{sampled}"
        draw = functools.partial(_draw_against, values=prior.counts, models=models, label="training images")
        found.append(Figure(f"accuracy-by-count-{stem}", caption, draw, bias.folder, (4.2, 3.3)))
    return found


def _draw_log_q(axes: "Axes", ink: "Ink", bias: "Bias") -> None:
    prior, names = bias.prior, bias.run.classnames
    order = np.argsort(prior.log_q, kind="stable")
    log_q, uniform = prior.log_q[order], -math.log(len(order))
    deviation = np.zeros(len(order)) if prior.deviation is None else prior.deviation[order]
    if len(order) <= _NAMED:
        rows = np.arange(len(order))
        axes.errorbar(log_q, rows, xerr=deviation, fmt="o", color=ink.colour(0), elinewidth=1.2)
        axes.axvline(uniform, color=ink.foreground, linestyle="--", linewidth=0.8)
        axes.set_yticks(rows, [shorten(names[label]) for label in order])
        axes.set_ylim(-0.7, len(order) - 0.3)
        axes.set_xlabel("log q")
        hide_grid(axes, "y")
        return
    drawn = np.unique(np.linspace(0, len(order) - 1, _POINTS).round().astype(int))
    rank = len(order) - drawn
    axes.fill_between(
        rank, (log_q - deviation)[drawn], (log_q + deviation)[drawn], color=ink.colour(0), alpha=0.25, linewidth=0
    )
    axes.plot(rank, log_q[drawn], color=ink.colour(0))
    axes.axhline(uniform, color=ink.foreground, linestyle="--", linewidth=0.8)
    axes.set_xlim(1, len(order))
    axes.set_xlabel("class, by its place in the order of q")
    axes.set_ylabel("log q")


def _draw_against(axes: "Axes", ink: "Ink", values: "NDArray", models: "Mapping[str, NDArray]", label: str) -> None:
    shown = drawn_classes(values)
    order = np.argsort(values, kind="stable")
    groups = np.array_split(order, 3 if len(order) < 30 else 6)
    for index, (name, accuracy) in enumerate(models.items()):
        colour = ink.line(index)
        axes.scatter(
            values[shown],
            accuracy[shown],
            s=18 if len(values) < 50 else 9,
            color=colour["color"],
            alpha=0.45,
            linewidths=0,
        )
        centres = [values[group].mean() for group in groups if len(group)]
        axes.plot(centres, [_mean(accuracy[group]) for group in groups if len(group)], label=name, **colour)
    if label != "log q":
        use_log_scale(axes.xaxis, "{x:,.0f}")
    axes.set_xlabel(label)
    axes.set_ylabel("class accuracy (%)")
    axes.set_ylim(-4, 104)


def drawn_classes(values: "NDArray") -> "NDArray":
    """Return the classes to draw: all of a few, else some at equal steps in the order of the values."""
    order = np.argsort(values, kind="stable")
    return order[np.unique(np.linspace(0, len(order) - 1, min(_POINTS, len(order))).round().astype(int))]


def _mean(values: "NDArray") -> float:
    found = values[np.isfinite(values)]
    return float(found.mean()) if len(found) else math.nan


def thirds(log_q: "NDArray") -> "list[NDArray]":
    """Return the classes in the upper, middle and lower third of q, as `unskew.debias.prior_groups` does."""
    order, count = np.argsort(-log_q, kind="stable"), len(log_q)
    return np.split(order, [round(count / 3), round(2 * count / 3)])


def _draw_thirds(axes: "Axes", ink: "Ink", bias: "Bias") -> None:
    groups: Sequence[NDArray] = thirds(bias.prior.log_q)
    width = 0.8 / len(bias.accuracies)
    for index, (name, accuracies) in enumerate(bias.accuracies.items()):
        by_seed = np.array([[_mean(row[group]) for group in groups] for row in accuracies])  # [S, 3]
        spread = by_seed.std(0, ddof=1) if len(by_seed) > 1 else np.zeros(len(groups))
        x = np.arange(len(groups)) + (index - (len(bias.accuracies) - 1) / 2) * width
        axes.bar(x, by_seed.mean(0), 0.9 * width, color=ink.colour(index), label=name, linewidth=0)
        axes.errorbar(x, by_seed.mean(0), yerr=spread, fmt="none", ecolor=ink.foreground, elinewidth=0.8)
    axes.set_xticks(
        range(len(groups)), [f"{name}\n{len(group):,} classes" for name, group in zip(GROUPS, groups, strict=True)]
    )
    axes.set_ylabel("mean class accuracy (%)")
    axes.set_ylim(0, 100)
    hide_grid(axes, "x")
