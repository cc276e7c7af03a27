"""`unskew report`: one HTML page about finished runs."""

import argparse

from unskew.cli.data import Commands


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    p = commands.add_parser("report", help="one HTML page about finished runs: accuracy, bias, calibration, cost")
    p.add_argument("paths", nargs="*", metavar="OUTPUT|RUN", help="folders of runs, at any depth (default: output)")
    p.add_argument("--out", default="report.html", metavar="FILE", help="the page (default: report.html)")
    p.add_argument("--images", action="store_true", help="embed small pictures of the test images that changed most")
    p.add_argument("--figures", default="", metavar="DIR", help="also write each figure as PDF and SVG, at paper size")
    p.add_argument("--tables", default="", metavar="DIR", help="also write each table as LaTeX (booktabs) and CSV")
    p.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> None:
    """Write the page and print its name and size."""
    from unskew.runs.report import write_report

    folders = arguments.paths or ["output"]
    print(write_report(folders, arguments.out, arguments.images, arguments.figures, arguments.tables))
