"""Results of a run: its metrics, and the content of its file of predictions."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from yacs.config import CfgNode

from unskew.engine.run_dir import RunDir, backbone_label, dataset_label, trainer_label
from unskew.runs import tables

if TYPE_CHECKING:
    from torch import Tensor

    from unskew.engine.trainer import SimpleTrainer
    from unskew.utils.derived_tensors import Sum


def results_of(trainer: "SimpleTrainer", cfg: CfgNode, **more: object) -> "tuple[dict, dict[str, Tensor | Sum]]":
    """Return the metrics of a trainer's last test and the content of its file of predictions.

    Args:
        trainer: the trainer; a plugin's may lack everything that Dassl's trainers lack.
        cfg: the run's config.
        **more: further values for ``metrics.json``.
    """
    from unskew.runs import predictions

    results = {name: float(value) for name, value in trainer.results.items()}  # a plugin's values may be tensors
    metrics = {**_describe(cfg), **results, **more, **_versions()}
    if getattr(trainer, "transductive", False):
        metrics["transductive"] = True
    dataset = getattr(getattr(trainer, "dm", None), "dataset", None)
    if skipped := getattr(dataset, "unreadable_test", None):
        metrics |= {"unreadable_test": len(skipped), "unreadable_test_names": skipped}
    content = predictions.collect(trainer.evaluator, cfg.TEST.PARTS_DTYPE) if results else {}
    if content:
        metrics["per_class_accuracy"] = trainer.evaluator.per_class_accuracy()
    names = trainer.test_names()
    metrics["classnames"] = [names[label] for label in sorted(names)]
    return metrics, content


def write_results(folder: RunDir, metrics: dict, content: "Mapping[str, Tensor | Sum]") -> None:
    """Write ``predictions.safetensors``, unless there are no predictions, and ``metrics.json``."""
    from unskew.runs import predictions

    if content:
        predictions.write(folder.predictions, content)
    tables.write_metrics(folder.metrics, metrics)


def _describe(cfg: CfgNode) -> dict:
    half = cfg.DATASET.SUBSAMPLE_CLASSES
    return {
        "dataset": dataset_label(cfg),
        "trainer": trainer_label(cfg),
        "backbone": backbone_label(cfg),
        "shots": cfg.DATASET.NUM_SHOTS,
        "longtail": cfg.DATASET.LONGTAIL,
        "seed": cfg.SEED,
        **({} if half == "all" else {"subsample": half}),
        **({} if cfg.TEST.SPLIT == "test" else {"split": cfg.TEST.SPLIT}),
    }


def _versions() -> dict:
    from importlib.metadata import version

    return {package: version(package) for package in ("torch", "open_clip_torch")}
