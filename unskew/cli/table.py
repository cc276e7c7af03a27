"""`unskew table`: the metrics of finished runs."""

import argparse

from unskew.cli.arguments import names
from unskew.cli.data import Commands
from unskew.utils.registry import unknown_name

_RECORDS = ("csv", "json")


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    p = commands.add_parser("table", help="the table of all finished runs below a folder")
    p.add_argument("folder", nargs="?", default="output", help="a folder of runs (default: output)")
    p.add_argument("-d", "--dataset", default="", help="only these datasets, as the tables spell them: digits,shapes")
    shown = p.add_mutually_exclusive_group()
    shown.add_argument("--metric", default="accuracy", help="a number in metrics.json; the columns are shots")
    shown.add_argument("--columns", nargs="+", default=[], metavar="METRIC", help="several; one table per shots")
    p.add_argument("--together", action="store_true", help="one table for all backbones, with a column of their names")
    p.add_argument("--ci", action="store_true", help="95%% intervals instead of standard deviations")
    differences = "differences from this trainer, with 95%% intervals and corrected p-values"
    p.add_argument("--compare", default="", metavar="TRAINER", help=differences)
    p.add_argument("--published", action="store_true", help="published results beside the accuracies of the runs")
    formats = "csv or json, with one record per cell, or a table format of tabulate, such as latex (default: github)"
    p.add_argument("--format", default="github", help=formats)
    p.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> None:
    """Print the table."""
    from tabulate import tabulate_formats

    from unskew.runs import tables

    style = arguments.format
    formats = [*_RECORDS, *tabulate_formats]
    if style not in formats:
        raise ValueError(unknown_name("table format", style, formats))
    rows, evaluations = tables.collect_both(arguments.folder)
    rows = tables.select(rows, names([arguments.dataset]))
    if arguments.published:
        print(_published(arguments, rows, evaluations))
        return
    print(_records(arguments, rows, evaluations) if style in _RECORDS else _text(arguments, rows, evaluations))


def _published(arguments: argparse.Namespace, rows: list[dict], evaluations: list[dict]) -> str:
    from unskew.runs.tables import published_tables, records

    if arguments.columns or arguments.metric != "accuracy" or arguments.compare:
        raise ValueError("--published compares accuracies only: leave out --metric, --columns and --compare")
    found = published_tables.fitting(rows, evaluations, arguments.ci)
    if arguments.format not in _RECORDS:
        return published_tables.text(found, arguments.format, arguments.ci)
    numbers = [published_tables.record(*pair) for pair in found]
    return records.as_csv(numbers) if arguments.format == "csv" else records.as_json(numbers)


def _records(arguments: argparse.Namespace, rows: list[dict], evaluations: list[dict]) -> str:
    from unskew.runs.tables import records

    columns = names(arguments.columns) or [arguments.metric]
    found = records.all_records(rows, evaluations, columns, arguments.together, arguments.compare)
    return records.as_csv(found) if arguments.format == "csv" else records.as_json(found)


def _text(arguments: argparse.Namespace, rows: list[dict], evaluations: list[dict]) -> str:
    """Return the tables of ordinary runs, then those of protocols, which are accuracies."""
    from unskew.runs import tables
    from unskew.runs.tables import protocol_tables, text_tables

    style, ci, compare = arguments.format, arguments.ci, arguments.compare
    columns, metric = names(arguments.columns), arguments.metric
    whole = [row for row in rows if not tables.is_half(row)]
    protocols = {} if columns or metric != "accuracy" else protocol_tables.split(rows, evaluations)
    if not whole and not protocols:
        return text_tables.table(whole)
    parts: list[str] = []
    notes: list[str] = []
    if whole:
        known = protocol_tables.known_trainer(compare, whole, protocols)
        parts, notes = text_tables.tables_and_notes(whole, metric, style, columns, arguments.together, ci, known)
    for name, found in protocols.items():
        known = protocol_tables.known_trainer(compare, found, {"": whole})
        more, below = protocol_tables.tables_and_notes(name, found, style, ci, known)
        parts, notes = [*parts, *more], [*notes, *below]
    return text_tables.joined(parts, notes, style)
