"""The command line: `unskew train | sweep | table | adjust | data | micro`.

Names are checked before torch is imported, so that a typo is answered at once.
"""

import argparse
import os
from collections.abc import Sequence

from unskew import __version__, config
from unskew.cli import data
from unskew.runs import plugins
from unskew.utils.errors import exit_code
from unskew.utils.registry import unknown_name

ALL_SHOTS = ("1", "2", "4", "8", "16")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0; 2 for a user's mistake, said in one line (with UNSKEW_DEBUG set, it raises). A failure raises.
    """
    arguments = build_parser().parse_args(argv)
    return exit_code(lambda: arguments.command(arguments))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="unskew", description="Remove the label bias of foundation models.")
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


def _add_train(commands) -> None:
    p = commands.add_parser("train", help="one run: train and test (CoOp's flags work too)")
    p.add_argument("-d", "--dataset", default="", help="a name from configs/datasets, or a plugin's")
    p.add_argument("-b", "--backbone", default="", help="micro, RN50, ViT-B/16, ARCH@TAG ...; default: the dataset's")
    p.add_argument("-t", "--trainer", default="", help="a name from configs/trainers, or a plugin's")
    p.add_argument("--shots", type=int, help="training images per class; default: all")
    p.add_argument("--seed", type=int, help="0 is a seed too; negative: unseeded")
    p.add_argument("--root", default="", help="folder of the datasets (default: data)")
    _add_plugin(p)
    p.add_argument("--output-dir", default="", help="folder of this run (default: output/<its names>)")
    p.add_argument("--resume", default="", help="folder of checkpoints to go on from")
    p.add_argument("--dataset-config-file", default="", help="a YAML in place of --dataset")
    p.add_argument("--config-file", default="", help="one more YAML, merged after the trainer's own")
    p.add_argument("--eval-only", action="store_true", help="test the model in --model-dir, train nothing")
    p.add_argument("--model-dir", default="", help="a run's folder, for --eval-only")
    p.add_argument("--load-epoch", type=int, help="epoch to load, for --eval-only (default: the best, else the last)")
    p.add_argument("--no-train", action="store_true", help="only build everything")
    p.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides")
    p.set_defaults(command=_train)


def _add_plugin(p) -> None:
    about = "a file or module that registers datasets and trainers; may be given several times"
    p.add_argument("--plugin", action="append", default=[], metavar="FILE_OR_MODULE", help=about)


def _train(arguments: argparse.Namespace) -> None:
    from unskew.runs.run import execute, is_finished

    dataset = arguments.dataset_config_file or arguments.dataset
    if not dataset or not arguments.trainer:
        missing = "--dataset" if not dataset else "--trainer"
        raise ValueError(f"train needs {missing}, a name from configs/{missing.strip('-')}s")
    plugins.load(arguments.plugin)
    run = _run(dataset, arguments.trainer, arguments)
    if arguments.eval_only or arguments.no_train:
        _evaluate(run, arguments)
    else:
        earlier = ", finished earlier" if is_finished(run) else ""
        metrics = execute(run)
        accuracy = f"accuracy {metrics['accuracy']:.1f}%" if "accuracy" in metrics else "not tested"
        print(f"{accuracy}{earlier}, in {run.config().OUTPUT_DIR}")


def _run(dataset: str, trainer: str, arguments: argparse.Namespace):
    """The run that the flags describe; names are checked here, before torch is imported."""
    from unskew.runs.run import Run

    opts = list(arguments.opts)
    if not dataset.endswith((".yaml", ".yml")):
        config.check_name("datasets", dataset)
    config.check_name("trainers", trainer)
    if arguments.backbone:
        config.check_backbone(arguments.backbone)
        if config.has_members(trainer):
            raise ValueError(f"{trainer} has several backbones: set TRAINER.BACKDOOR.MEMBERS in place of --backbone")
    pairs = dict(zip(opts[::2], opts[1::2], strict=False))
    for shots in (arguments.shots, pairs.get("DATASET.NUM_SHOTS")):
        if shots is not None:
            check_shots(shots)
    if arguments.resume:
        if not os.path.isdir(arguments.resume):
            raise ValueError(f"--resume '{arguments.resume}' is not a folder; give that of an interrupted run")
        opts += ["RESUME", arguments.resume]
    return Run(
        dataset=dataset,
        trainer=trainer,
        backbone=arguments.backbone,
        shots=arguments.shots,
        seed=arguments.seed,
        root=arguments.root,
        folder=arguments.output_dir or pairs.get("OUTPUT_DIR", ""),
        opts=tuple(opts),
        config_file=arguments.config_file,
        plugins=tuple(arguments.plugin),
    )


def check_shots(text: str | int) -> int:
    """A number of shots: 1 or more, or -1 for all images."""
    try:
        shots = int(text)
    except ValueError as error:
        raise ValueError(f"shots must be a number such as 16, a list in quotes or 'all'; got '{text}'") from error
    if shots < 1 and shots != -1:
        raise ValueError(f"shots must be 1 or more (or -1 for all images); got {shots}")
    return shots


def _evaluate(run, arguments: argparse.Namespace) -> None:
    cfg = run.config()
    if arguments.eval_only and arguments.model_dir:
        _check_weights(cfg, arguments.model_dir)
    from unskew.engine.trainer import build_trainer, set_random_seed, setup_logger

    with setup_logger(arguments.output_dir or None, console=True):
        set_random_seed(cfg.SEED)
        trainer = build_trainer(cfg)
        if arguments.eval_only:
            if trainer.get_model_names() and not arguments.model_dir:
                raise ValueError(f"--eval-only needs --model-dir, the folder of a finished {run.trainer} run")
            trainer.load_model(arguments.model_dir, epoch=arguments.load_epoch)
            trainer.test()


def _check_weights(cfg, folder: str) -> None:
    """Weights that were learned with one backbone or method mean nothing to another, also where they fit."""
    file = os.path.join(folder, "config.yaml")
    if not os.path.isfile(file):  # CoOp's runs have none
        return
    saved = dict(config.flatten(config.read_yaml(file)))
    for key, own in (("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME), ("TRAINER.NAME", cfg.TRAINER.NAME)):
        if saved.get(key, own) != own:
            raise ValueError(f"the run in '{folder}' has {key} {saved[key]}, this one {own}: evaluate it with its own")


# --- sweep ------------------------------------------------------------------------------------------


def _add_sweep(commands) -> None:
    p = commands.add_parser("sweep", help="trainers x shots x seeds in one process, then one table")
    p.add_argument("-d", "--dataset", required=True)
    p.add_argument("-t", "--trainers", nargs="+", required=True, metavar="TRAINER")
    many = "numbers, or 'all' (1 2 4 8 16), or -1: all images; default: 16, of a long-tailed dataset all images"
    p.add_argument("--shots", nargs="+", default=[], help=many)
    p.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    p.add_argument("-b", "--backbone", nargs="+", default=[""], help="several give one table; 'members': Backdoor's")
    p.add_argument("--columns", nargs="+", default=[], metavar="METRIC", help="of the table, in place of the shots")
    p.add_argument("--root", default="", help="folder of the datasets (default: data)")
    _add_plugin(p)
    p.add_argument("--output", default="output")
    p.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="config overrides for every run")
    p.set_defaults(command=_sweep)


def _check_writable(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise ValueError(f"the output folder '{folder}' cannot be made ({error.strerror}); choose another") from error
    if not os.access(folder, os.W_OK):
        raise ValueError(f"the output folder '{folder}' cannot be written; choose another")


def _sweep(arguments: argparse.Namespace) -> None:
    from unskew.runs import report
    from unskew.runs.launch import launch
    from unskew.runs.run import Run, execute

    plugins.load(arguments.plugin)
    config.check_name("datasets", arguments.dataset)
    for trainer in arguments.trainers:
        config.check_name("trainers", trainer)
    backbones = arguments.backbone
    if backbones == ["members"]:
        members = config.load(arguments.dataset, trainer="Backdoor", opts=arguments.opts).TRAINER.BACKDOOR.MEMBERS
        backbones = list(dict.fromkeys(member.partition("#")[0] for member in members))
    for backbone in filter(None, backbones):
        config.check_backbone(backbone)
    longtail = dict(config.flatten(config.dataset_layer(arguments.dataset)[1])).get("DATASET.LONGTAIL", False)
    words = " ".join(arguments.shots or ["-1" if longtail else "16"]).replace(",", " ").split()
    shots = [check_shots(word) for word in (ALL_SHOTS if words == ["all"] else words)]
    _check_writable(arguments.output)
    runs = [
        Run(
            arguments.dataset,
            trainer,
            backbone,
            k,
            seed,
            arguments.root,
            arguments.output,
            opts=tuple(arguments.opts),
            plugins=tuple(arguments.plugin),
        )
        for trainer in arguments.trainers
        for backbone in ([""] if config.has_members(trainer) else backbones)
        for k in shots
        for seed in arguments.seeds
    ]
    runs = list(dict.fromkeys(runs))
    for run in runs:
        run.config()  # a mistake in a key is in every run: it is said once, before the first
    outcomes = list(launch(runs, lambda run: execute(run, console=False)))
    rows = [outcome for outcome in outcomes if isinstance(outcome, dict)]
    if rows:
        # A dataset without groups of classes has no columns for them.
        groups, known = ("d_", "p_"), set().union(*rows)
        columns = [name for name in arguments.columns if name in known or not name.startswith(groups)]
        print(f"\n{report.table(rows, columns=columns, together=len(backbones) > 1)}")
    if len(rows) < len(runs):
        failed = len(runs) - len(rows)
        raise ValueError(f"{failed} of {len(runs)} runs failed, see above; the same command runs only these again")


# --- table, adjust, micro ---------------------------------------------------------------------------


def _add_table(commands) -> None:
    p = commands.add_parser("table", help="the table of all finished runs below a folder")
    p.add_argument("folder", nargs="?", default="output")
    shown = p.add_mutually_exclusive_group()
    shown.add_argument("--metric", default="accuracy", help="a number in metrics.json; columns are shots")
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


def _add_adjust(commands) -> None:
    p = commands.add_parser(
        "adjust",
        help="GLA on saved logits",
        description="GLA on saved logits: .safetensors, .npy or .pt files, or FILE:KEY for one of several tensors.",
    )
    p.add_argument("--zeroshot", required=True, metavar="FILE", help="zero-shot logits [N, C]")
    p.add_argument("--finetuned", required=True, metavar="FILE", help="fine-tuned logits of the same samples")
    p.add_argument("--labels", default="", metavar="FILE", help="[N]; they score, and cross-fit without --val-...")
    for name in ("zeroshot", "finetuned", "labels"):
        p.add_argument(f"--val-{name}", default="", metavar="FILE", help="of samples to fit on; all three or none")
    p.add_argument("--prior", default="", metavar="FILE", help="q, in place of an estimate (json, npy, pt, csv)")
    p.add_argument("--train-counts", default="", metavar="FILE", help="of the fine-tuned model; takes log p out")
    p.add_argument("--target", default="uniform", metavar="FILE", help="class frequencies to predict for, or 'uniform'")
    p.add_argument("--temperature", default="", choices=("confidence", "nll", "none"), help="default: confidence")
    p.add_argument("--method", default="", help="convex, eigen, em or released; default: convex, without labels em")
    p.add_argument("--strength", metavar="K", help="pseudo-samples of the uniform prior, or 'cv'")
    p.add_argument("--combine", default="fitted", choices=("fitted", "sum"), help="sum: the paper's, nothing fitted")
    p.add_argument("--checkpoints", nargs=2, default=(), metavar="RUN", help="two run folders, or 'init' and one")
    p.add_argument("--alpha", type=float, default=0.5, help="of WiSE-FT between them: 0 is the first, 1 the second")
    p.add_argument("--out", default="", metavar="FILE", help="a .safetensors file for GLA's logits and log_q")
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


def _add_micro(commands) -> None:
    micro = commands.add_parser("micro", help="the embedded world").add_subparsers(required=True, metavar="COMMAND")
    p = micro.add_parser("pretrain", help="train one of the shipped models again")
    p.add_argument("name", help="micro, micro-a, micro-b, micro-c or micro-vit")
    p.add_argument("--steps", type=int, help="default: as the shipped model")
    p.add_argument("--out", default="", help="folder for the weights (default: output/micro)")
    p.set_defaults(command=_pretrain)


def _pretrain(arguments: argparse.Namespace) -> None:
    from unskew.micro import pretrain, weights

    weights.model_config(arguments.name)  # an unknown name is said before a folder is made
    pretrain.run(arguments.name, arguments.steps, arguments.out or "output/micro")
