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
    formats = "csv or json, with one record per cell, or a table format of tabulate, such as latex (default: github)"
    p.add_argument("--format", default="github", help=formats)
    p.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> None:
    """Print the table."""
    from tabulate import tabulate_formats

    from unskew.runs import records, tables, text_tables

    style, together, compare = arguments.format, arguments.together, arguments.compare
    formats = [*_RECORDS, *tabulate_formats]
    if style not in formats:
        raise ValueError(unknown_name("table format", style, formats))
    rows = tables.select(tables.collect(arguments.folder), names([arguments.dataset]))
    columns = names(arguments.columns)
    if style in _RECORDS:
        found = records.records(rows, columns or [arguments.metric], together, compare)
        print(records.as_csv(found) if style == "csv" else records.as_json(found))
    else:
        print(text_tables.table(rows, arguments.metric, style, columns, together, arguments.ci, compare))
