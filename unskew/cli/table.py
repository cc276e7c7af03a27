"""`unskew table`: the metrics of finished runs."""

import argparse

from unskew.cli.arguments import names
from unskew.cli.data import Commands
from unskew.utils.registry import unknown_name


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    p = commands.add_parser("table", help="the table of all finished runs below a folder")
    p.add_argument("folder", nargs="?", default="output", help="a folder of runs (default: output)")
    p.add_argument("-d", "--dataset", default="", help="only these datasets, as the tables spell them: digits,shapes")
    shown = p.add_mutually_exclusive_group()
    shown.add_argument("--metric", default="accuracy", help="a number in metrics.json; the columns are shots")
    shown.add_argument("--columns", nargs="+", default=[], metavar="METRIC", help="several; one table per shots")
    p.add_argument("--together", action="store_true", help="one table for all backbones, with a column of their names")
    p.add_argument("--format", default="github", help="a table format of tabulate, such as latex or tsv")
    p.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> None:
    """Print the table."""
    from tabulate import tabulate_formats

    from unskew.runs import tables

    if arguments.format not in tabulate_formats:
        raise ValueError(unknown_name("table format", arguments.format, tabulate_formats))
    rows = tables.select(tables.collect(arguments.folder), names([arguments.dataset]))
    print(tables.table(rows, arguments.metric, arguments.format, names(arguments.columns), arguments.together))
