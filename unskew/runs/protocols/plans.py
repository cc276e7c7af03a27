"""Plans of protocols: training runs, and evaluations of each."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unskew import config
from unskew.runs import launch
from unskew.runs import plugins as plugin_files
from unskew.runs.protocols import checks
from unskew.runs.protocols.evaluations import Evaluation
from unskew.runs.run import Run, flat, several

logger = logging.getLogger("unskew")

NAMES = ("few_shot", "base_to_new", "cross_dataset", "domain_generalisation", "long_tail")
HALF = "DATASET.SUBSAMPLE_CLASSES"

# Protocols that test on other datasets, and that test on other classes than those of the training.
_TO_TARGETS, _TO_NEW_CLASSES = ("cross_dataset", "domain_generalisation"), ("base_to_new", "cross_dataset")

_FEW_SHOT = ("ZeroshotCLIP", "DebiasedZeroshot", "LinearProbe", "CoOp", "ProGrad", "TipAdapterF", "CLAP", "GLA")
# All other trainers of few-shot runs have weights of single classes, or fit a class bias on labelled images.
_OF_ANY_CLASSES = ("ZeroshotCLIP", "CoOp", "ProGrad", "CLIPAdapter", "GLA")
TRAINERS = {
    "few_shot": _FEW_SHOT,
    "base_to_new": _OF_ANY_CLASSES,
    "cross_dataset": _OF_ANY_CLASSES,
    "domain_generalisation": _FEW_SHOT,
    "long_tail": ("FineTune", "GLA", "Backdoor", "SeedEnsemble"),
}
_IMAGENET = ("imagenet", ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"))


@dataclass(frozen=True)
class Plan:
    """The training runs of a protocol, and the evaluations that follow them.

    Attributes:
        protocol: one of `NAMES`.
        runs: the training runs, each once.
        evaluations: the evaluations; their sources are among the runs.
    """

    protocol: str
    runs: tuple[Run, ...]
    evaluations: tuple[Evaluation, ...] = ()


def plan(
    protocol: str,
    datasets: Sequence[str] = (),
    trainers: Sequence[str] = (),
    *,
    targets: Sequence[str] = (),
    backbones: Sequence[str] = (),
    shots: Sequence[int] = (),
    seeds: Sequence[int] = (1, 2, 3),
    root: str = "",
    output: str | Path = "output",
    opts: Mapping[str, object] | Sequence = (),
    plugins: Sequence[str] = (),
) -> Plan:
    """Return the plan of a protocol; names, configs and the folders of the datasets are checked.

    Args:
        protocol: one of `NAMES`.
        datasets: the datasets to train on; ``["all"]``: see `catalogue.few_shot_names`.
        trainers: names of trainers; default: those of `TRAINERS`.
        targets: the datasets to test on, in cross_dataset and domain_generalisation.
        backbones: names of backbones; default: the dataset's, and the members of Backdoor in long_tail.
        shots: training images per class; default: 16, and all images in long_tail.
        seeds: one run for each.
        root: the folder of the datasets; default: "data".
        output: the folder below which each run has its place.
        opts: config values by key for every run.
        plugins: files or modules that bring datasets and trainers.

    Raises:
        ValueError: a name, a key or a combination is wrong; the message says which.
        FileNotFoundError: a dataset is not prepared.
    """
    plugin_files.load(several(plugins))
    opts = flat(opts)
    chosen = _datasets(protocol, several(datasets), root)
    targets = _targets(protocol, chosen, several(targets), bool(several(datasets)))
    checks.check_datasets(protocol, chosen, targets)
    runs = [
        run
        for dataset in chosen
        for run in launch.plan(
            dataset,
            several(trainers) or TRAINERS[protocol],
            backbones=several(backbones) or (["members"] if protocol == "long_tail" else [""]),
            shots=several(shots) or ([] if protocol == "long_tail" else [16]),
            seeds=seeds,
            root=root,
            output=os.path.join(output, protocol) if protocol == "base_to_new" else output,
            opts=_options(protocol, opts, os.fspath(output)),
            plugins=plugins,
        )
    ]
    if protocol == "base_to_new":
        evaluations = [Evaluation(run, run.dataset, "new") for run in runs]
    else:
        evaluations = [Evaluation(run, target) for run in runs for target in targets]
    checks.check_folders([*runs, *(evaluation.preview for evaluation in evaluations)])
    if evaluations:
        checks.check_classes(runs, evaluations, _OF_ANY_CLASSES)
    return Plan(protocol, tuple(runs), tuple(evaluations))


def _datasets(protocol: str, names: Sequence[str], root: str) -> list[str]:
    """Return the names of the datasets to train on."""
    if protocol not in NAMES:
        raise ValueError(f"unknown protocol '{protocol}'; choose one of {', '.join(NAMES)}")
    if "all" in names:
        if len(names) > 1 or protocol not in ("few_shot", "base_to_new"):
            raise ValueError(f"'all' is for few_shot and base_to_new, alone: give {protocol} the names of its datasets")
        from unskew.data import catalogue

        found = catalogue.few_shot_names(root or str(config.get_cfg_default().DATASET.ROOT))
        logger.warning(f"'all' is {', '.join(found)}")
        return found
    if not names and protocol == "domain_generalisation":
        return [_IMAGENET[0]]
    if not names:
        raise ValueError(f"{protocol} needs the name of a dataset: give --datasets")
    if len(names) > 1 and protocol in _TO_TARGETS:
        raise ValueError(f"{protocol} has one source (got {', '.join(names)}): give the other datasets as --targets")
    return [config.check_name("datasets", name) for name in names]


def _targets(protocol: str, datasets: Sequence[str], names: Sequence[str], is_given: bool) -> list[str]:
    """Return the names of the datasets to test on; ``is_given`` tells whether the user chose the source."""
    if protocol not in _TO_TARGETS:
        if names:
            raise ValueError(f"{protocol} has no --targets: leave them out, or choose {' or '.join(_TO_TARGETS)}")
        return []
    if not names and protocol == "domain_generalisation" and (not is_given or datasets[0] == _IMAGENET[0]):
        return list(_IMAGENET[1])
    if not names:
        raise ValueError(f"{protocol} needs datasets to test on: give --targets")
    return [config.check_name("datasets", name) for name in names]


def _options(protocol: str, opts: Sequence, output: str) -> tuple:
    """Return KEY VALUE pairs with those of a protocol.

    The default base of GLA has a residual for each class, so GLA gets another base for new classes.
    """
    keys = opts[::2]
    if protocol == "base_to_new" and HALF in keys:
        raise ValueError(f"{HALF} is what base_to_new sets itself: leave it out")
    defaults = {"TRAINER.GLA.BASE": "ProGrad"} if protocol in _TO_NEW_CLASSES else {}
    if protocol == "long_tail":  # what FineTune has trained is a member already
        defaults = {"TRAINER.GLA.BASE": "FineTune", "TRAINER.BACKDOOR.MEMBERS_DIR": output}
    own = {HALF: "base"} if protocol == "base_to_new" else {}
    return tuple(
        part for pair in {**defaults, **dict(zip(keys, opts[1::2], strict=True)), **own}.items() for part in pair
    )
