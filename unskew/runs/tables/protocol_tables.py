"""Tables of the protocols that test a trained run on other classes or data: base to new, and transfers to targets."""

import logging
import os
from collections.abc import Mapping, Sequence

from unskew.runs import tables
from unskew.runs.tables import text_tables
from unskew.runs.tables.cells import grouped, is_transductive
from unskew.runs.tables.protocol_rows import HARMONIC, ProtocolRow, harmonic_mean

logger = logging.getLogger("unskew")

BASE_TO_NEW, CROSS_DATASET, DOMAINS = "base_to_new", "cross_dataset", "domain_generalisation"
AVERAGE = "average"  # over the targets

TITLES = {
    BASE_TO_NEW: "base to new:",
    CROSS_DATASET: "transfer to other datasets from",
    DOMAINS: "domain generalisation from",
}


def base_to_new(rows: Sequence[Mapping], evaluations: Sequence[Mapping]) -> list[ProtocolRow]:
    """Return a row with the numbers base, new and H for each run that was trained on the base classes.

    Base is the run's own accuracy, new that of its evaluation on the other half of the classes, and H the harmonic
    mean of both. A run without such an evaluation has the number base only.

    Args:
        rows: metrics of trained runs with their ``folder``, as `unskew.runs.tables.collect` returns them.
        evaluations: metrics of evaluations with their ``folder``.
    """
    found = []
    for row, tested in _by_source(rows, evaluations):
        if row.get("subsample") != "base" or not _is_number(row.get("accuracy")):
            continue
        of_new = [new for new in tested if new.get("subsample") == "new" and new["dataset"] == row["dataset"]]
        measured: dict[str, tuple[Mapping, ...]] = {"base": (row,)}
        numbers = {"base": row["accuracy"]}
        if of_new:
            new = of_new[-1]
            measured |= {"new": (new,), HARMONIC: (row, new)}
            numbers |= {"new": new["accuracy"], HARMONIC: harmonic_mean(row["accuracy"], new["accuracy"])}
        found.append(_row(row, numbers, BASE_TO_NEW, measured))
    return found


def transfers(
    rows: Sequence[Mapping], evaluations: Sequence[Mapping], protocol: str = CROSS_DATASET
) -> list[ProtocolRow]:
    """Return a row for each run that was tested on other datasets, with a number for each and for its own.

    The names of the numbers are those of the datasets, and ``average`` is over the targets. A run that lacks a target
    which other runs of its source, backbone and number of shots have has no average.

    Args:
        rows: metrics of trained runs with their ``folder``.
        evaluations: metrics of evaluations with their ``folder``.
        protocol: the name of the protocol.
    """
    tested = [(row, _targets(row, found)) for row, found in _by_source(rows, evaluations) if not tables.is_half(row)]
    every: dict[tuple, dict[str, None]] = {}  # the targets by setting
    for row, targets in tested:
        every.setdefault(_setting(row), {}).update(dict.fromkeys(targets))
    found = []
    for row, targets in tested:
        if not targets:
            continue
        measured: dict[str, tuple[Mapping, ...]] = {name: (target,) for name, target in targets.items()}
        numbers = {name: target["accuracy"] for name, target in targets.items()}
        names = list(every[_setting(row)])
        if all(name in targets for name in names):
            measured[AVERAGE] = tuple(targets[name] for name in names)
            numbers[AVERAGE] = sum(numbers[name] for name in names) / len(names)
        if _is_number(row.get("accuracy")):
            measured[row["dataset"]] = (row,)
            numbers[row["dataset"]] = row["accuracy"]
        found.append(_row(row, numbers, protocol, measured))
    return found


def split(rows: Sequence[Mapping], evaluations: Sequence[Mapping]) -> dict[str, list[ProtocolRow]]:
    """Return the rows of all protocols by the name of the protocol.

    A target is one of domain generalisation if its classes are all among those of the source.
    """
    if not evaluations and not any(map(tables.is_half, rows)):
        return {}
    of_source: dict[str, list[Mapping]] = {CROSS_DATASET: [], DOMAINS: []}
    for row, found in _by_source(rows, evaluations):
        names = set(row.get("classnames") or [])
        for target in found:
            is_domain = bool(names) and names.issuperset(target.get("classnames") or [None])
            of_source[DOMAINS if is_domain else CROSS_DATASET].append(target)
    parts = {BASE_TO_NEW: base_to_new(rows, evaluations)}
    parts |= {name: transfers(rows, found, name) for name, found in of_source.items()}
    return {name: found for name, found in parts.items() if found}


def text(
    name: str,
    rows: Sequence[Mapping],
    evaluations: Sequence[Mapping],
    style: str = "github",
    ci: bool = False,
    compare: str = "",
) -> str:
    """Return the tables of a protocol, see `unskew.runs.tables.text_tables.table`.

    Args:
        name: "base_to_new", "cross_dataset" or "domain_generalisation".
        rows: metrics of trained runs with their ``folder``.
        evaluations: metrics of the evaluations to show, with their ``folder``.
        style: a table format of tabulate.
        ci: show 95% intervals instead of standard deviations.
        compare: the trainer from which the differences of the others are shown.
    """
    found = base_to_new(rows, evaluations) if name == BASE_TO_NEW else transfers(rows, evaluations, name)
    if not found:
        return f"no finished runs of {name}"
    return text_tables.joined(*tables_and_notes(name, found, style, ci, compare), style)


def tables_and_notes(
    name: str, found: Sequence[ProtocolRow], style: str = "github", ci: bool = False, compare: str = ""
) -> tuple[list[str], list[str]]:
    """Return the tables of rows of a protocol, and the notes below them; see `text` for the arguments."""
    parts, remarks = [], []
    for group in groups(found):
        known = known_trainer(compare, group, {name: found})
        names = columns(group)
        shown, below = text_tables.tables_and_notes(
            group, style=style, columns=names, ci=ci, compare=known, title=TITLES[name], headers=headers(group)
        )
        parts += shown
        remarks += [*notes(group), *below]
    return parts, remarks


def groups(found: Sequence[ProtocolRow]) -> list[list[ProtocolRow]]:
    """Return rows of a protocol by table: base to new has one with averages, transfers one for each source."""
    return [[*found]] if found[0].protocol == BASE_TO_NEW else list(grouped(found, ["dataset"]).values())


def known_trainer(compare: str, rows: Sequence[Mapping], others: Mapping[str, Sequence[Mapping]]) -> str:
    """Return the trainer to compare with, or "" with a warning if only runs of other tables are of this trainer."""
    if not compare or not rows or any(row["trainer"] == compare for row in rows):
        return compare
    if not any(row["trainer"] == compare for found in others.values() for row in found):
        return compare  # a mistake in the name, which the table reports
    name = rows[0].protocol if isinstance(rows[0], ProtocolRow) else "ordinary runs"
    logger.warning(f"no differences from {compare} in the table of {name}: it has no runs there")
    return ""


def columns(found: Sequence[ProtocolRow]) -> list[str]:
    """Return the numbers of a table: base, new and H, or the source, its targets and their average."""
    numbers = dict.fromkeys(name for row in found for name in row.sources)
    if found[0].protocol == BASE_TO_NEW:
        return [name for name in ("base", "new", HARMONIC) if name in numbers]
    sources = list(dict.fromkeys(row["dataset"] for row in found))
    targets = [name for name in numbers if name not in (*sources, AVERAGE)]
    return [
        *(name for name in sources if name in numbers),
        *targets,
        *[AVERAGE] * (AVERAGE in numbers and len(targets) > 1),
    ]


def headers(found: Sequence[ProtocolRow]) -> dict[str, str]:
    """Return the header of each column of a table."""
    names = {name: name for name in columns(found)}
    is_transfer = found[0].protocol != BASE_TO_NEW
    return {**names, **({row["dataset"]: f"{row['dataset']} (source)" for row in found} if is_transfer else {})}


def notes(found: Sequence[ProtocolRow]) -> list[str]:
    """Return lines on runs that are not in all columns."""
    last = HARMONIC if found[0].protocol == BASE_TO_NEW else AVERAGE
    missing = [f"{row['trainer']} with seed {row['seed']} on {row['dataset']}" for row in found if last not in row]
    if not missing:
        return []
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    return [f"not all tests are finished, so there is no {last} of {'; '.join(missing[:3])}{more}"]


def _row(row: Mapping, numbers: Mapping, protocol: str, measured: Mapping[str, tuple[Mapping, ...]]) -> ProtocolRow:
    kept = {
        key: row[key] for key in ("dataset", "trainer", "backbone", "shots", "longtail", "seed", "folder") if key in row
    }
    seen = any(is_transductive(source) for sources in measured.values() for source in sources)
    return ProtocolRow({**numbers, **kept, **({"transductive": True} if seen else {})}, protocol, measured)


def _by_source(rows: Sequence[Mapping], evaluations: Sequence[Mapping]) -> list[tuple[Mapping, list[Mapping]]]:
    """Return each trained run with its evaluations that have an accuracy; evaluations of other runs are left out.

    Those of a chosen epoch, and those on another split than the run's own test, are left out too.
    """
    found: dict[tuple, list[Mapping]] = {}
    for evaluation in evaluations:
        if _is_number(evaluation.get("accuracy")) and "epoch" not in evaluation:
            place = str(tables.source_folder(evaluation)), evaluation.get("split")
            found.setdefault(place, []).append(evaluation)
    return [(row, found.get((os.path.abspath(row["folder"]), row.get("split")), []) if found else []) for row in rows]


def _targets(row: Mapping, evaluations: Sequence[Mapping]) -> dict[str, Mapping]:
    """Return the evaluations on all classes of other datasets, by the name of the dataset."""
    return {e["dataset"]: e for e in evaluations if e["dataset"] != row["dataset"] and not tables.is_half(e)}


def _setting(row: Mapping) -> tuple:
    return row["dataset"], row["backbone"], row["shots"]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and value == value
