"""Results of a run: its metrics, and the content of its file of predictions."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yacs.config import CfgNode

from unskew.engine.run_dir import RunDir, backbone_label, dataset_label, trainer_label
from unskew.utils.files import write_atomically

if TYPE_CHECKING:
    from torch import Tensor

    from unskew.utils.derived_tensors import Sum


def results_of(
    trainer: Any, cfg: CfgNode, results: Mapping[str, Any], **more: object
) -> "tuple[dict, dict[str, Tensor | Sum]]":
    """Return the metrics of a trainer's last test and the content of its file of predictions.

    Args:
        trainer: the trainer; a plugin's may lack everything that Dassl's trainers lack.
        cfg: the run's config.
        results: the numbers of the test by name; empty without a test.
        **more: further values for ``metrics.json``.
    """
    from unskew.engine import prediction_file

    numbers = {name: float(value) for name, value in results.items()}  # a plugin's values may be tensors
    metrics = {**_describe(cfg), **numbers, **more, **_versions()}
    if getattr(trainer, "transductive", False):
        metrics["transductive"] = True
    dataset = getattr(getattr(trainer, "dm", None), "dataset", None)
    if skipped := getattr(dataset, "unreadable_test", None):
        metrics |= {"unreadable_test": len(skipped), "unreadable_test_names": skipped}
    content = prediction_file.collect(trainer.evaluator, cfg.TEST.PARTS_DTYPE) if numbers else {}
    if content:
        metrics["per_class_accuracy"] = trainer.evaluator.per_class_accuracy()
    names = trainer.test_names()
    metrics["classnames"] = [names[label] for label in sorted(names)]
    return metrics, content


def counts_of(trainer: Any) -> dict[str, object]:
    """Return the trained parameters and the labelled images of a trainer; one written for Dassl may lack some.

    ``labelled_images`` is the mean number of images per class whose labels the trainer uses, in train and val.
    """
    counts: dict[str, object] = {}
    if hasattr(trainer, "trained_parameters"):
        counts["trained_parameters"] = trainer.trained_parameters()
    if hasattr(trainer, "labelled_items"):
        counts["labelled_images"] = round(len(trainer.labelled_items()) / trainer.num_classes, 2)
    return counts


def write_results(folder: RunDir, metrics: dict, content: "Mapping[str, Tensor | Sum]") -> None:
    """Write ``predictions.safetensors``, unless there are no predictions, and ``metrics.json``."""
    from unskew.engine import prediction_file

    if content:
        prediction_file.write(folder.predictions, content)
    write_metrics(folder.metrics, metrics)


def write_metrics(path: Path, metrics: Mapping[str, object]) -> None:
    """Write metrics as a JSON object with one line for each key."""
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in metrics.items())
    write_atomically(path, f"{{\n{lines}\n}}\n")


def _describe(cfg: CfgNode) -> dict:
    half = cfg.DATASET.SUBSAMPLE_CLASSES
    return {
        "dataset": dataset_label(cfg),
        "trainer": trainer_label(cfg),
        "backbone": backbone_label(cfg),
        "shots": -1 if cfg.DATASET.NUM_SHOTS is None else cfg.DATASET.NUM_SHOTS,  # None in some scripts
        "longtail": cfg.DATASET.LONGTAIL,
        "seed": cfg.SEED,
        **({} if half == "all" else {"subsample": half}),
        **({} if cfg.TEST.SPLIT == "test" else {"split": cfg.TEST.SPLIT}),
    }


def _versions() -> dict:
    from importlib.metadata import version

    return {package: version(package) for package in ("torch", "open_clip_torch")}
