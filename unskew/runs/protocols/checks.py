"""Mistakes in a protocol that are known before its first run."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from unskew import config
from unskew.data.catalogue import dataset_class
from unskew.data.dataset import USER_DATASETS, build_dataset
from unskew.data.published import PublishedDataset
from unskew.data.transfer import match
from unskew.runs.run import Run, check_root

if TYPE_CHECKING:
    from unskew.runs.protocols.evaluations import Evaluation


def check_datasets(protocol: str, datasets: Sequence[str], targets: Sequence[str]) -> None:
    """Raise ``ValueError`` for datasets that do not suit a protocol.

    Args:
        protocol: the name of the protocol.
        datasets: the datasets to train on.
        targets: the datasets to test on.
    """
    for names in (datasets, targets):
        if twice := next((name for name in names if names.count(name) > 1), ""):
            raise ValueError(f"'{twice}' is given twice: give each dataset once")
    if same := next((name for name in targets if name in datasets), ""):
        raise ValueError(f"'{same}' is both the source and a target: its own test is part of the training run")
    own = next((name for name in (*datasets, *targets) if name in USER_DATASETS), "")
    if own and len(datasets) + len(targets) > 1:
        raise ValueError(
            f"'{own}' is all of --root, which other datasets cannot share: run it alone, or test a trained run on it "
            f"with `unskew train --eval-only --model-dir RUN -d {own} --root PATH`"
        )
    for name in datasets:
        info = getattr(dataset_class(name), "info", None)
        if info and not info.train:
            raise ValueError(f"'{name}' has only test images: train on the dataset that it belongs to")
        if protocol == "long_tail" and not _is_longtailed(name):
            raise ValueError(f"'{name}' is not long-tailed: choose few_shot, or a dataset such as shapes_lt")


def _is_longtailed(name: str) -> bool:
    return bool(dict(config.flatten(config.dataset_layer(name)[1])).get("DATASET.LONGTAIL", False))


def check_folders(runs: Iterable[Run]) -> None:
    """Raise ``FileNotFoundError`` for a dataset that is not there, and ``ValueError`` for a wrong config."""
    checked = set()
    for run in runs:
        place = (run.dataset, run.config.DATASET.ROOT)  # reading the config checks it
        if place in checked:
            continue
        checked.add(place)
        check_root(run.config)
        dataset = dataset_class(run.dataset)
        if issubclass(dataset, PublishedDataset):
            dataset.root(run.config)


def check_classes(runs: Sequence[Run], evaluations: Sequence["Evaluation"], others: Sequence[str]) -> None:
    """Raise ``ValueError`` for trainers whose weights belong to single classes if they are to classify other ones.

    Args:
        runs: the runs to train.
        evaluations: their evaluations.
        others: trainers that can classify other classes, for the message.
    """
    from unskew.engine.trainer import TRAINER_REGISTRY

    first = {run.trainer: run for run in reversed(runs)}
    bound = [
        name
        for name in dict.fromkeys(run.trainer for run in runs)
        if TRAINER_REGISTRY.get(config.class_name(name)).is_class_bound(first[name].config)
    ]
    tests = [test for test in evaluations if bound and test.source is first[bound[0]]]
    if new := next(filter(_has_other_classes, tests), None):
        what = f"the {new.half} classes of '{new.dataset}'" if new.half else f"'{new.dataset}', which has other classes"
        raise ValueError(
            f"{', '.join(bound)} cannot be tested on {what}, as they hold terms of single classes: choose others, "
            f"such as {', '.join(name for name in others if name not in bound)}"
        )


def _has_other_classes(evaluation: "Evaluation") -> bool:
    """Return whether a class of an evaluation's test images is not among those of its source."""
    if evaluation.half:
        return True
    source, target = (build_dataset(run.config) for run in (evaluation.source, evaluation.preview))
    labels = range(target.num_classes) if target.test_classes is None else target.test_classes
    return match([target.classnames[label] for label in labels], source.classnames) is None
