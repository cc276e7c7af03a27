"""The command `unskew train`: one run, or the evaluation of one."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from unskew.cli.arguments import add_overrides, add_plugin, add_threads
from unskew.cli.data import Commands

if TYPE_CHECKING:
    from unskew.runs.run import Run


def add(commands: Commands) -> None:
    """Add the command to the parser of `unskew`."""
    p = commands.add_parser("train", help="one run: train and test (CoOp's flags work too)")
    p.add_argument("-d", "--dataset", default="", help="a name from configs/datasets, or a plugin's")
    p.add_argument(
        "-b", "--backbone", default="", help="micro, ViT-B/16, ARCH@TAG, local-dir:FOLDER ...; default: the dataset's"
    )
    p.add_argument("-t", "--trainer", default="", help="a name from configs/trainers, or a plugin's")
    p.add_argument("--shots", type=int, help="training images per class; default: all")
    p.add_argument("--seed", type=int, help="random seed, 0 or more (default: 1); negative: unseeded")
    p.add_argument("--root", default="", help="folder of the datasets (default: data)")
    add_plugin(p)
    add_threads(p)
    several = "processes that train together, one for each GPU, without a GPU on the CPU"
    p.add_argument("--devices", type=int, metavar="N", help=several)
    p.add_argument("--output-dir", default="", help="folder of this run (default: output/<its names>)")
    p.add_argument("--resume", default="", help="folder of checkpoints to continue from")
    p.add_argument("--dataset-config-file", default="", help="a YAML instead of --dataset")
    p.add_argument("--config-file", default="", help="one more YAML, merged after the trainer's own")
    evaluation = "test the model in --model-dir without training, with its settings unless other ones are given"
    p.add_argument("--eval-only", action="store_true", help=evaluation)
    p.add_argument("--model-dir", default="", help="a run's folder, for --eval-only")
    p.add_argument("--load-epoch", type=int, help="epoch to load, for --eval-only (default: the best, else the last)")
    p.add_argument("--no-train", action="store_true", help="only build the trainer and the data")
    add_overrides(p)
    p.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int | None:
    """Run the command."""
    from unskew.runs import devices, evaluate
    from unskew.runs.run import execute, finished_metrics

    described = described_run(arguments)
    several = arguments.devices is not None and devices.check(arguments.devices, described.config.USE_CUDA)
    if several and (arguments.eval_only or arguments.no_train or finished_metrics(described) is None):
        return devices.start(arguments.words, arguments.devices, described.config)
    if arguments.no_train:
        evaluate.build(described)
        return None
    folder: Path | None = described.path
    earlier = ""
    if arguments.eval_only:
        source, epoch = arguments.model_dir, arguments.load_epoch
        if evaluate.finished_evaluation(described, source, epoch) is not None:
            earlier = ", finished earlier"
        metrics, folder = evaluate.evaluate(described, source, epoch)
    elif (finished := finished_metrics(described)) is not None:
        metrics, earlier = finished, ", finished earlier"
    else:
        metrics = execute(described)
    accuracy = f"accuracy {metrics['accuracy']:.1f}%" if "accuracy" in metrics else "not tested"
    print(f"{accuracy}{earlier}" + (f", in {folder}" if folder else ""))
    return None


def described_run(arguments: argparse.Namespace) -> "Run":
    """Return the run that the flags describe, after a check of its names and paths."""
    from unskew import config
    from unskew.runs import plugins
    from unskew.runs.evaluate import with_settings_of
    from unskew.runs.launch import check_shots
    from unskew.runs.run import Run

    plugins.load(arguments.plugin)
    dataset, trainer, backbone = arguments.dataset, arguments.trainer, arguments.backbone
    run = Run(
        dataset=arguments.dataset_config_file or (dataset and config.check_name("datasets", dataset)),
        trainer=trainer and config.check_name("trainers", trainer),
        backbone=backbone and config.check_backbone(backbone),
        shots=arguments.shots,
        seed=arguments.seed,
        root=arguments.root,
        folder=arguments.output_dir,
        opts=(*arguments.opts, "RESUME", arguments.resume) if arguments.resume else tuple(arguments.opts),
        config_file=arguments.config_file,
        plugins=tuple(arguments.plugin),
    )
    if arguments.eval_only and arguments.model_dir:
        run = with_settings_of(arguments.model_dir, run)
    for flag, value in (("dataset", run.dataset), ("trainer", run.trainer)):
        if not value and arguments.eval_only and arguments.model_dir:
            raise ValueError(f"--model-dir '{arguments.model_dir}' has no config.yaml of a run: add --{flag}")
        if not value:
            raise ValueError(f"train needs --{flag}, a name from configs/{flag}s")
    if backbone and config.has_members(run.trainer):
        raise ValueError(f"{run.trainer} has several backbones: set TRAINER.BACKDOOR.MEMBERS instead of --backbone")
    if arguments.shots is not None:
        check_shots(arguments.shots)
    if arguments.resume and not os.path.isdir(arguments.resume):
        raise ValueError(f"--resume '{arguments.resume}' is not a folder: pass the folder of an interrupted run")
    return run
