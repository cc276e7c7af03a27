"""`unskew export`: a finished run as a file for other programs."""

import argparse

from unskew.cli.arguments import add_plugin, add_threads
from unskew.cli.data import Commands


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    text = "write a finished run as a linear head (.safetensors, .onnx) or a whole model (.onnx)"
    p = commands.add_parser("export", help=text, description=f"{text}, with a model card beside it")
    p.add_argument("run", metavar="RUN", help="the folder of a finished run")
    p.add_argument("--out", required=True, metavar="FILE", help="the file to write, .safetensors or .onnx")
    p.add_argument(
        "--kind",
        default="",
        choices=("head", "model"),
        help="head: one linear layer on the image features; model: image tower and head; default: head if it is linear",
    )
    add_plugin(p)
    add_threads(p)
    p.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> None:
    """Write the file and print what it holds."""
    from unskew.runs import plugins
    from unskew.runs.export.write import export_run
    from unskew.utils.logging import setup_logger

    plugins.load(arguments.plugin)
    with setup_logger(None, console=False):
        kind, file, card = export_run(arguments.run, arguments.out, arguments.kind)
    print(f"{kind}: '{file}' ({file.stat().st_size / 1e3:,.1f} kB), model card '{card}'")
