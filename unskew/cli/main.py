"""The command line: `unskew train | sweep | protocol | table | report | predict | export | adjust | data | micro`.

Commands import torch only when they need it, so that a mistyped name or key is reported at once.
"""

import argparse
import functools
import io
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from unskew import __version__
from unskew.cli import data, export, predict, protocol, report, sweep, table, train
from unskew.cli.arguments import end_lists, take_pairs
from unskew.runs import libraries
from unskew.utils import processes, threads
from unskew.utils.errors import exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 for success, 1 if `unskew predict` could not read all images, or 2 for a user's mistake, which is printed in
        one line (with UNSKEW_DEBUG set, it raises); see `exit_code`.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of classes and files may not fit the terminal's encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    if argv is None and (launcher := os.environ.pop(processes.LAUNCHER, "")):
        processes.end_with(int(launcher))
    if argv is None and not processes.is_main():
        processes.quieten()
    return exit_code(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int | None:
    arguments = parse(argv)
    arguments.words = list(sys.argv[1:] if argv is None else argv)  # for the processes of --devices
    if argv is None:  # the process is this command's
        libraries.allow_freezing()
    with threads.override(getattr(arguments, "threads", None)):
        code: int | None = arguments.command(arguments)
    return code


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the arguments of a command; ``opts`` are its KEY VALUE pairs, wherever they are among the flags."""
    given = sys.argv[1:] if argv is None else argv
    parser = build_parser()
    arguments, others = parser.parse_known_args(end_lists(given))
    others = [word for word in others if word != "--opts"]  # of a command without overrides
    if "paths" in arguments and not any(word.startswith("-") and word != "-" for word in others):
        arguments.paths += others  # those behind a flag
        return arguments
    try:
        pairs = take_pairs(given, others)
    except ValueError as error:
        arguments.parser.error(str(error))
    if "opts" in arguments:
        arguments.opts = pairs
    elif pairs:
        arguments.parser.error(f"unrecognized arguments: {' '.join(pairs)}")
    return arguments


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line; ``parser`` of its result is the parser of the chosen command."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.allow_abbrev = False  # --output is not --output-dir
        self.set_defaults(parser=self)

    def error(self, message: str) -> NoReturn:
        if not processes.is_main():  # the main process has the same words
            self.exit(2)
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; ``command`` is the function that runs the chosen one."""
    description = "Estimate and remove the class bias that a foundation model shows on your data."
    parser: argparse.ArgumentParser = _Parser(prog="unskew", description=description)
    parser.add_argument("--version", action="version", version=f"unskew {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    train.add(commands)
    sweep.add(commands)
    protocol.add(commands)
    table.add(commands)
    predict.add(commands)
    export.add(commands)
    report.add(commands)
    _add_adjust(commands)
    data.add(commands)
    _add_micro(commands)
    return parser


def _add_adjust(commands: data.Commands) -> None:
    p = commands.add_parser(
        "adjust",
        help="GLA on saved logits",
        description="GLA on saved logits. FILE is a .safetensors, .npy or .pt file, FILE:KEY one of several tensors, "
        "'shards-*.parquet' or several files are shards, and FEATURES@CLASSIFIER are image features and a classifier.",
    )
    add_file = functools.partial(p.add_argument, metavar="FILE", default="")
    add_files = functools.partial(add_file, nargs="+")
    add_files("--zeroshot", required=True, help="zero-shot logits [N, C]")
    add_files("--finetuned", help="fine-tuned logits of the same samples; without them the zero-shot half alone")
    add_files("--labels", help="labels [N], for the table; without --val-... also to cross-fit")
    for name in ("zeroshot", "finetuned", "labels"):
        add_files(f"--val-{name}", help=f"{name} of the samples to fit on; all or none")
    p.add_argument("--logit-scale", type=float, default=100.0, help="of FEATURES@CLASSIFIER (default: 100, CLIP's)")
    add_file("--prior", help="q, instead of an estimate (json, npy, pt, csv)")
    add_file("--train-counts", help="training counts per class; subtracts the fine-tuned model's log p")
    add_file("--target", default="uniform", help="class frequencies to predict for, or 'uniform'")
    temperatures = ("map", "confidence", "nll", "none")
    p.add_argument("--temperature", default="", choices=temperatures, help="how to calibrate; default: map")
    p.add_argument(
        "--method",
        default="",
        help="map, convex, unlabelled, eigen, em or released; default: map",
    )
    p.add_argument("--strength", metavar="K", help="pseudo-samples of the uniform prior, or 'cv'; not for map")
    p.add_argument(
        "--combine",
        default="map",
        choices=("map", "fitted", "sum", "otter"),
        help="map: weights and class offsets with priors; fitted: weights; sum: the paper's; otter: optimal transport "
        "to the target class frequency",
    )
    p.add_argument("--checkpoints", nargs=2, default=(), metavar="RUN", help="two run folders, or 'init' and one")
    p.add_argument("--alpha", type=float, help="WiSE-FT's weight of the second checkpoint (default: 0.5)")
    add_file("--out", help="a .safetensors file for GLA's logits and log_q")
    p.add_argument("--jobs", type=int, metavar="N", help="processes that read large files (default: 1; ray: all CPUs)")
    p.add_argument("--launcher", default="local", choices=("local", "ray"), help="where the processes run")
    p.set_defaults(command=_adjust)


def _adjust(arguments: argparse.Namespace) -> None:
    from unskew.cli import adjust
    from unskew.utils.logging import setup_logger

    names = ("zeroshot", "finetuned", "labels", "val_zeroshot", "val_finetuned", "val_labels")
    zeroshot, finetuned, labels, *val = (_spec(getattr(arguments, name)) for name in names)
    request = adjust.Request(
        zeroshot=zeroshot,
        finetuned=finetuned,
        labels=labels,
        val=tuple(val) if any(val) else (),
        prior=arguments.prior,
        train_counts=arguments.train_counts,
        target="" if arguments.target == "uniform" else arguments.target,
        temperature=arguments.temperature,
        method=arguments.method,
        strength=_strength(arguments.strength),
        combine=arguments.combine,
        checkpoints=tuple(arguments.checkpoints),
        alpha=arguments.alpha,
        out=arguments.out,
        logit_scale=arguments.logit_scale,
        jobs=arguments.jobs,
        launcher=arguments.launcher,
    )
    with setup_logger(None, console=False):
        print(adjust.run(request))


def _spec(words: str | Sequence[str]) -> str | tuple[str, ...]:
    """Return one file as a text and several as a tuple; "" is none."""
    return words if isinstance(words, str) else words[0] if len(words) == 1 else tuple(words)


def _strength(text: str | None) -> float | str | None:
    if text in (None, "cv"):
        return text
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"--strength must be a number of 0 or more, or 'cv'; got '{text}'") from error


def _add_micro(commands: data.Commands) -> None:
    micro = commands.add_parser("micro", help="the embedded worlds").add_subparsers(required=True, metavar="COMMAND")
    p = micro.add_parser("pretrain", help="train one of the shipped models from scratch")
    p.add_argument("name", help="micro, micro-a, micro-b, micro-c, micro-vit, or micro-emoji with -a, -b, -c or -vit")
    p.add_argument("--steps", type=int, help="training steps (default: as the shipped model)")
    p.add_argument("--out", default="", help="folder for the weights (default: output/micro)")
    p.add_argument("--sheets", default="", help="folder of the pictures of emoji (default: output/emoji)")
    p.set_defaults(command=_pretrain)


def _pretrain(arguments: argparse.Namespace) -> None:
    from unskew.micro import weights

    weights.model_config(arguments.name)  # an unknown name stops before a folder is created
    from unskew.micro import emoji, pretrain

    sheets = arguments.sheets or emoji.PRETRAINING_SHEETS
    pretrain.run(arguments.name, arguments.steps, arguments.out or "output/micro", sheets)
