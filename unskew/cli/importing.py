"""The commands `unskew data import hf | torchvision | webdataset`."""

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unskew.cli.data import Commands
    from unskew.data.importing.source import Source


def add(commands: "Commands") -> None:
    """Add the commands to the parser of `unskew data`."""
    parser = commands.add_parser("import", help="write the images of another library's dataset into class folders")
    sources = parser.add_subparsers(required=True, metavar="SOURCE")
    p = sources.add_parser("hf", help="Hugging Face datasets: a name on the hub, or Arrow or Parquet files")
    p.add_argument("source", metavar="NAME|PATH", help="a name on the hub, or a local folder or file")
    p.add_argument("--config", default="", help="configuration, if the dataset has several")
    p.add_argument("--image-column", default="", metavar="COLUMN", help="needed if several columns hold images")
    p.add_argument("--label-column", default="", metavar="COLUMN", help="needed if several columns may be labels")
    _finish(p, _huggingface)
    p = sources.add_parser("torchvision", help="a dataset class of torchvision")
    p.add_argument("name", help="a name in torchvision.datasets, such as CIFAR10")
    p.add_argument("--root", default="data", help="folder of torchvision's files (default: data)")
    _finish(p, _torchvision)
    p = sources.add_parser("webdataset", help="tar files of images with .cls, .json or .txt labels")
    p.add_argument("tars", nargs="+", metavar="TARS", help="paths; train-{000..012}.tar and wildcards may be in quotes")
    p.add_argument("--split", default="", help="train, val or test (default: a word in the tars' names)")
    _finish(p, _webdataset)


def _finish(parser: argparse.ArgumentParser, source: Any) -> None:
    parser.add_argument("--out", required=True, metavar="FOLDER", help="the folder to create")
    parser.add_argument("--classnames", default="", metavar="FILE", help="names of the classes by label")
    parser.set_defaults(command=_import, source_of=source)


def _huggingface(arguments: argparse.Namespace) -> "Source":
    from unskew.data.importing.huggingface import HuggingFace

    return HuggingFace(arguments.source, arguments.config, arguments.image_column, arguments.label_column)


def _torchvision(arguments: argparse.Namespace) -> "Source":
    from unskew.data.importing.torchvision import TorchVision

    return TorchVision(arguments.name, arguments.root)


def _webdataset(arguments: argparse.Namespace) -> "Source":
    from unskew.data.importing.webdataset import WebDataset

    return WebDataset(arguments.tars, arguments.split)


def _import(arguments: argparse.Namespace) -> None:
    from unskew.data.importing import import_images
    from unskew.utils.logging import setup_logger

    with setup_logger(None, console=True):
        manifest, written = import_images(arguments.source_of(arguments), arguments.out, arguments.classnames)
    print(_summary(manifest))
    done = "written" if written else "imported earlier, unchanged"
    print(f"'{arguments.out}': {done}; check it with: unskew data verify folder --root {arguments.out}")


def _summary(manifest: dict[str, Any]) -> str:
    """Return a table of the splits."""
    from tabulate import tabulate

    header = ("split", "from", "images", "classes", "unreadable")
    rows = [
        (split, facts["from"], f"{facts['images']:,}", len(facts["classes"]), len(facts["unreadable"]))
        for split, facts in manifest["splits"].items()
    ]
    align = ("left", "left", "right", "right", "right")
    return tabulate(rows, header, tablefmt="github", colalign=align, disable_numparse=True)
