"""The commands `unskew data list | prepare | verify | import`."""

import argparse
import os
from typing import TYPE_CHECKING

from unskew.cli import importing
from unskew.cli.arguments import add_overrides

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands = object


def add(commands: Commands) -> None:
    """Add the commands to the parser of `unskew`."""
    data = commands.add_parser("data", help="list, download, check and import datasets")
    parsers = data.add_subparsers(required=True, metavar="COMMAND")
    listed = parsers.add_parser("list", help="list all datasets with their state, size and licence")
    prepared = parsers.add_parser("prepare", help="download, check and lay out a dataset")
    verified = parsers.add_parser("verify", help="count a dataset's images, look for their files, open some")
    for parser in (prepared, verified):
        parser.add_argument("name", help="a name from unskew data list")
    for parser in (listed, prepared):
        parser.add_argument("--root", default="data", help="folder of the datasets (default: data)")
    verified.add_argument("--root", default="", help="folder of the datasets (default: data), or your own data")
    verified.add_argument("--full", action="store_true", help="open all images, not only 5,000; list every problem")
    add_overrides(verified)
    importing.add(parsers)
    listed.set_defaults(command=_list)
    prepared.set_defaults(command=_prepare)
    verified.set_defaults(command=_verify)


def _list(arguments: argparse.Namespace) -> None:
    from unskew.data import catalogue

    print(catalogue.table(arguments.root))
    there = "" if os.path.isdir(os.path.expanduser(arguments.root)) else ", which does not exist"
    print(f"\nThe states are those of '{arguments.root}'{there}; the numbers are the published ones.")
    print("Unverified files have no published checksum: only their size and format are checked after the download.")
    print("Download a dataset with: unskew data prepare NAME")


def _prepare(arguments: argparse.Namespace) -> None:
    from unskew import config
    from unskew.data import catalogue
    from unskew.engine.fingerprint import USER_DATASETS
    from unskew.utils.logging import setup_logger

    arguments.name = config.check_name("datasets", arguments.name)
    if arguments.name in USER_DATASETS:
        raise ValueError(
            f"'{arguments.name}' is your own images, with nothing to prepare: run unskew data verify {arguments.name} "
            "--root PATH"
        )
    with setup_logger(None, console=True):
        catalogue.download(arguments.name, arguments.root)
    _verify(argparse.Namespace(**vars(arguments), full=False, opts=[]))


def _verify(arguments: argparse.Namespace) -> None:
    from unskew import config
    from unskew.data.verify import verify
    from unskew.engine.fingerprint import USER_DATASETS

    arguments.name = config.check_name("datasets", arguments.name)
    opts = (*(("DATASET.ROOT", arguments.root) if arguments.root else ()), *arguments.opts)
    report = verify(config.load(arguments.name, trainer="ZeroshotCLIP", opts=opts), arguments.full)
    print(report.text(arguments.full))
    if report.problems:
        prepare = f"delete the folder of the broken files, then run unskew data prepare {arguments.name}"
        advice = "replace these files" if arguments.name in USER_DATASETS else prepare
        raise ValueError(
            f"'{arguments.name}' in '{arguments.root or 'data'}': {len(report.wrong)} wrong number(s), "
            f"{len(report.missing):,} image(s) missing, {len(report.unreadable):,} of "
            f"{report.opened:,} opened images unreadable; {advice}"
        )
    print(f"{arguments.name}: all images exist; {report.opened:,} of {report.images:,} were opened and can be read")
