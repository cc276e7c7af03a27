"""The command line: `unskew train | sweep | table | adjust | data | micro`.

Commands import torch only when they need it, so that a mistyped name or key is reported at once.
"""

import argparse
import functools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from unskew import __version__, config
from unskew.cli import data
from unskew.utils.errors import exit_code
from unskew.utils.registry import unknown_name

if TYPE_CHECKING:
    from unskew.runs.run import Run

Commands = data.Commands


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0, or 2 for a user's mistake, which is printed in one line (with UNSKEW_DEBUG set, it raises).
    """
    arguments = build_parser().parse_args(argv)
    return exit_code(lambda: arguments.command(arguments))


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        is_override = unknown != message and unknown.split()[0].isupper()
        hint = "write config overrides after --opts" if is_override else f"see {self.prog} --help"
        self.exit(2, f"{self.prog}: error: {message}; {hint}\n")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; ``command`` is the function that runs the chosen one."""
    parser: argparse.ArgumentParser = _Parser(prog="unskew", description="Remove the label bias of foundation models.")
    parser.add_argument("--version", action="version", version=f"unskew {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_train(commands)
    _add_sweep(commands)
    _add_table(commands)
    _add_adjust(commands)
    data.add(commands)
    _add_micro(commands)
    return parser


# --- train ------------------------------------------------------------------------------------------


def _add_train(commands: Commands) -> None:
    p = commands.add_parser("train", help="one run: train and test (CoOp's flags work too)")
    p.add_argument("-d", "--dataset", default="", help="a name from configs/datasets, or a plugin's")
    p.add_argument("-b", "--backbone", default="", help="micro, RN50, ViT-B/16, ARCH@TAG ...; default: the dataset's")
    p.add_argument("-t", "--trainer", default="", help="a name from configs/trainers, or a plugin's")
    p.add_argument("--shots", type=int, help="training images per class; default: all")
    p.add_argument("--seed", type=int, help="random seed, 0 or more (default: 1); negative: unseeded")
    p.add_argument("--root", default="", help="folder of the datasets (default: data)")
    _add_plugin(p)
    p.add_argument("--output-dir", default="", help="folder of this run (default: output/<its names>)")
    p.add_argument("--resume", default="", help="folder of checkpoints to continue from")
    p.add_argument("--dataset-config-file", default="", help="a YAML instead of --dataset")
    p.add_argument("--config-file", default="", help="one more YAML, merged after the trainer's own")
    p.add_argument("--eval-only", action="store_true", help="test the model in --model-dir without training")
    p.add_argument("--model-dir", default="", help="a run's folder, for --eval-only")
    p.add_argument("--load-epoch", type=int, help="epoch to load, for --eval-only (default: the best, else the last)")
    p.add_argument("--no-train", action="store_true", help="only build the trainer and the data")
    p.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides")
    p.set_defaults(command=_train)


def _add_plugin(p: argparse.ArgumentParser) -> None:
    text = "a file or module that registers datasets and trainers; repeatable"
    p.add_argument("--plugin", action="append", default=[], metavar="FILE_OR_MODULE", help=text)


def _train(arguments: argparse.Namespace) -> None:
    from unskew.runs.evaluate import build, evaluate
    from unskew.runs.run import execute

    run = _described_run(arguments)
    if arguments.eval_only or arguments.no_train:
        from unskew.utils.logging import setup_logger

        _ = run.config  # a wrong key is reported before the log is opened
        with setup_logger(arguments.output_dir or None, console=True):
            if arguments.eval_only:
                evaluate(run, arguments.model_dir, arguments.load_epoch)
            else:
                build(run)
        return
    earlier = ", finished earlier" if run.is_finished else ""
    metrics = execute(run)
    accuracy = f"accuracy {metrics['accuracy']:.1f}%" if "accuracy" in metrics else "not tested"
    print(f"{accuracy}{earlier}, in {run.path}")


def _described_run(arguments: argparse.Namespace) -> "Run":
    """Return the run that the flags describe, after a check of its names and paths."""
    from unskew.runs import plugins
    from unskew.runs.launch import check_shots
    from unskew.runs.run import Run

    dataset, trainer, opts = arguments.dataset_config_file or arguments.dataset, arguments.trainer, arguments.opts
    for flag, value in (("dataset", dataset), ("trainer", trainer)):
        if not value:
            raise ValueError(f"train needs --{flag}, a name from configs/{flag}s")
    plugins.load(arguments.plugin)
    if not dataset.endswith((".yaml", ".yml")):
        config.check_name("datasets", dataset)
    config.check_name("trainers", trainer)
    if arguments.backbone:
        config.check_backbone(arguments.backbone)
        if config.has_members(trainer):
            raise ValueError(f"{trainer} has several backbones: set TRAINER.BACKDOOR.MEMBERS instead of --backbone")
    pairs = dict(zip(opts[::2], opts[1::2], strict=False))
    for shots in (arguments.shots, pairs.get("DATASET.NUM_SHOTS")):
        if shots is not None:
            check_shots(_number(shots))
    if arguments.resume and not os.path.isdir(arguments.resume):
        raise ValueError(f"--resume '{arguments.resume}' is not a folder: pass the folder of an interrupted run")
    return Run(
        dataset=dataset,
        trainer=trainer,
        backbone=arguments.backbone,
        shots=arguments.shots,
        seed=arguments.seed,
        root=arguments.root,
        folder=arguments.output_dir,
        opts=(*opts, "RESUME", arguments.resume) if arguments.resume else tuple(opts),
        config_file=arguments.config_file,
        plugins=tuple(arguments.plugin),
    )


def _number(shots: str | int) -> int:
    try:
        return int(shots)
    except ValueError as error:
        hint = "; write config overrides after --opts" if str(shots).isupper() else ""
        raise ValueError(
            f"shots must be a number such as 16, a list in quotes or 'all' (got '{shots}'){hint}"
        ) from error


# --- sweep ------------------------------------------------------------------------------------------


def _add_sweep(commands: Commands) -> None:
    p = commands.add_parser("sweep", help="trainers x shots x seeds in one process, then one table")
    p.add_argument("-d", "--dataset", required=True, help="a name from configs/datasets, or a plugin's")
    p.add_argument("-t", "--trainers", nargs="+", required=True, metavar="TRAINER", help="names from configs/trainers")
    shots = "numbers, 'all' (1 2 4 8 16), or -1 for all images; default: 16, and all images of a long-tailed dataset"
    p.add_argument("--shots", nargs="+", default=[], help=shots)
    p.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="one run for each (default: 1 2 3)")
    backbones = "several share one table; 'members': the members of Backdoor"
    p.add_argument("-b", "--backbone", nargs="+", default=[""], help=backbones)
    p.add_argument("--columns", nargs="+", default=[], metavar="METRIC", help="of the table, instead of the shots")
    p.add_argument("--root", default="", help="folder of the datasets (default: data)")
    _add_plugin(p)
    p.add_argument("--output", default="output", help="folder of all runs (default: output)")
    p.add_argument("--dry-run", action="store_true", help="print the runs with their state and folder, start none")
    p.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="config overrides for every run")
    p.set_defaults(command=_sweep)


def _sweep(arguments: argparse.Namespace) -> None:
    from unskew.runs import launch, report

    words = " ".join(arguments.shots).replace(",", " ").split()
    runs = launch.plan(
        arguments.dataset,
        arguments.trainers,
        backbones=arguments.backbone,
        shots=launch.ALL_SHOTS if words == ["all"] else [launch.check_shots(_number(word)) for word in words],
        seeds=arguments.seeds,
        root=arguments.root,
        output=arguments.output,
        opts=arguments.opts,
        plugins=arguments.plugin,
    )
    if arguments.dry_run:
        print(launch.overview(runs))
        return
    report.check_columns(arguments.columns, others=bool(arguments.plugin))
    _check_writable(arguments.output)
    outcomes = list(launch.launch(runs))
    rows = [outcome for outcome in outcomes if isinstance(outcome, dict)]
    if rows:
        # A dataset without groups of classes has no columns for them.
        known: set[str] = set().union(*rows)
        columns = [name for name in arguments.columns if name in known or not report.is_group(name)]
        together = arguments.backbone == ["members"] or len(arguments.backbone) > 1
        print(f"\n{report.table(rows, columns=columns, together=together)}")
    launch.check_outcomes(outcomes)


def _check_writable(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot create the output folder '{folder}' ({error.strerror}); choose another") from error
    if not os.access(folder, os.W_OK):
        raise ValueError(f"the output folder '{folder}' is not writable; choose another")


# --- table, adjust, micro ---------------------------------------------------------------------------


def _add_table(commands: Commands) -> None:
    p = commands.add_parser("table", help="the table of all finished runs below a folder")
    p.add_argument("folder", nargs="?", default="output", help="a folder of runs (default: output)")
    shown = p.add_mutually_exclusive_group()
    shown.add_argument("--metric", default="accuracy", help="a number in metrics.json; the columns are shots")
    shown.add_argument("--columns", nargs="+", default=[], metavar="METRIC", help="several; one table per shots")
    p.add_argument("--together", action="store_true", help="one table for all backbones, with a column of their names")
    p.add_argument("--format", default="github", help="a table format of tabulate, such as latex or tsv")
    p.set_defaults(command=_table)


def _table(arguments: argparse.Namespace) -> None:
    from tabulate import tabulate_formats

    from unskew.runs import report

    if arguments.format not in tabulate_formats:
        raise ValueError(unknown_name("table format", arguments.format, tabulate_formats))
    rows = report.collect(arguments.folder)
    print(report.table(rows, arguments.metric, arguments.format, arguments.columns, arguments.together))


def _add_adjust(commands: Commands) -> None:
    p = commands.add_parser(
        "adjust",
        help="GLA on saved logits",
        description="GLA on saved logits: .safetensors, .npy or .pt files, or FILE:KEY for one of several tensors.",
    )
    add_file = functools.partial(p.add_argument, metavar="FILE", default="")
    add_file("--zeroshot", required=True, help="zero-shot logits [N, C]")
    add_file("--finetuned", required=True, help="fine-tuned logits of the same samples")
    add_file("--labels", help="labels [N], for the table; without --val-... also to cross-fit")
    for name in ("zeroshot", "finetuned", "labels"):
        add_file(f"--val-{name}", help=f"{name} of the samples to fit on; all three or none")
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
    p.set_defaults(command=_adjust)


def _adjust(arguments: argparse.Namespace) -> None:
    from unskew.cli import adjust
    from unskew.utils.logging import setup_logger

    val = (arguments.val_zeroshot, arguments.val_finetuned, arguments.val_labels)
    request = adjust.Request(
        zeroshot=arguments.zeroshot,
        finetuned=arguments.finetuned,
        labels=arguments.labels,
        val=val if any(val) else (),
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
    )
    with setup_logger(None, console=False):
        print(adjust.run(request))


def _strength(text: str | None) -> float | str | None:
    if text in (None, "cv"):
        return text
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"--strength must be a number of 0 or more, or 'cv'; got '{text}'") from error


def _add_micro(commands: Commands) -> None:
    micro = commands.add_parser("micro", help="the embedded world").add_subparsers(required=True, metavar="COMMAND")
    p = micro.add_parser("pretrain", help="train one of the shipped models from scratch")
    p.add_argument("name", help="micro, micro-a, micro-b, micro-c or micro-vit")
    p.add_argument("--steps", type=int, help="training steps (default: as the shipped model)")
    p.add_argument("--out", default="", help="folder for the weights (default: output/micro)")
    p.set_defaults(command=_pretrain)


def _pretrain(arguments: argparse.Namespace) -> None:
    from unskew.micro import pretrain, weights

    weights.model_config(arguments.name)  # an unknown name stops before a folder is created
    pretrain.run(arguments.name, arguments.steps, arguments.out or "output/micro")
