"""Thirds of the classes by the pre-training prior q, the same for all runs on a dataset."""

import contextlib
import hashlib
import json
import logging
import math
import random
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from yacs.config import CfgNode

from unskew import config
from unskew.clip import backbones, text
from unskew.data.dataset import DatasetBase, Datum, build_dataset
from unskew.data.images import file_keys
from unskew.data.sampling import sample_for_logits, sample_up_to
from unskew.debias.metrics import prior_groups
from unskew.debias.prior import estimate
from unskew.debias.temperature import fit_temperature
from unskew.engine.fingerprint import USER_DATASETS, files
from unskew.engine.run_dir import backbones_of
from unskew.utils.logging import errors_only, warn_once
from unskew.utils.row_store import stored

logger = logging.getLogger("unskew")

# One sample for every run on a dataset, so that the rows of a table share their groups.
SHOTS, SEED = 16, 1

# Part of the key of stored priors: increase it when they are estimated with other results.
VERSION = 1

# Images times classes that are solved at a time: half a gigabyte with the solver's copy in float64.
PART_LOGITS = 40_000_000


def dataset_groups(cfg: CfgNode, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Return the `prior_groups` of a run's dataset, the same for every backbone, trainer, number of shots and seed.

    The prior q is estimated with the dataset's default backbone (for a user's own images with the run's, or with its
    first member), on the train and val images that 16 shots and seed 1 draw. On a long-tailed dataset these are up to
    16 train images per class and all of val. Log q is kept on disk, keyed by the states of the images and of the
    backbone's files. Of several thousand classes it is the mean over parts of the images, so that memory stays small.

    There are no groups, and one warning, if that backbone cannot be loaded. There are none for a plugin's dataset
    either: it has no default backbone, and drawing its sample might write files that later runs read.

    Args:
        cfg: the run's config.
        device: where the groups are computed.

    Returns:
        Classes [G] of each group by name.
    """
    if cfg.DATASET.NAME not in config.names("datasets"):
        return {}
    cfg = groups_config(cfg)
    used = {key: value for key, value in config.flatten(cfg) if key.startswith(("INPUT.", "DATASET.", "MODEL."))}
    key = json.dumps([used, str(device), files(cfg)])
    if key not in _groups:
        _groups[key] = _estimate_groups(cfg, device)
    return _groups[key]


_groups: dict[str, dict[str, Tensor]] = {}  # by the config, the device and the states of the user's files


def groups_config(cfg: CfgNode) -> CfgNode:
    """Return the config of the images and the backbone that define the groups."""
    user_data = cfg.DATASET.NAME in USER_DATASETS  # without a default backbone to compare by
    own = backbones_of(cfg)[0].partition("#")[0] if user_data else ""  # the member "micro#2" is a replica of micro
    values = config.dataset_values(cfg.DATASET.NAME, own)
    same = ("ROOT", "SUBSAMPLE_CLASSES", "IMBALANCE", "TEMPLATE", "CLASSNAMES", "LONGTAIL")
    values |= {f"DATASET.{key}": cfg.DATASET[key] for key in same}
    if user_data:
        values["DATASET.UNREADABLE"] = "skip"  # the sample may have images that the run does not have
    values |= {"DATASET.NUM_SHOTS": -1 if cfg.DATASET.LONGTAIL else SHOTS, "SEED": SEED}
    values["TEST.MODEL_DIR"] = ""  # else the sample would count as images that an evaluated run was not trained on
    return config.derive(cfg, values)


class _NoBackboneError(Exception):
    """The backbone of the groups cannot be loaded."""


@contextlib.contextmanager
def _loading() -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise _NoBackboneError(str(error)) from error


def _estimate_groups(cfg: CfgNode, device: str | torch.device) -> dict[str, Tensor]:
    try:
        return prior_groups(_stored_log_q(cfg, device).to(device))
    except _NoBackboneError as error:
        logger.debug(f"the groups of '{cfg.DATASET.NAME}': {error}")
        warn_once(f"no p_many, p_medium and p_few: the weights of '{cfg.MODEL.BACKBONE.NAME}' cannot be loaded")
        return {}


def _stored_log_q(cfg: CfgNode, device: str | torch.device) -> Tensor:
    """Return log q [C] from disk, which needs neither the backbone nor features; estimate it if it is missing."""
    from unskew.clip import features  # torchvision, which `prior_groups` alone does not need

    with _loading():
        weights = backbones.weights_state(cfg.MODEL.BACKBONE.NAME)
    with errors_only():  # the sample of 16 shots is not the user's
        dataset = build_dataset(cfg)
    train = sample_up_to(dataset.train_x, SHOTS, random.Random(SEED)) if cfg.DATASET.LONGTAIL else dataset.train_x
    items = sample_for_logits([*train, *(dataset.val or [])], dataset.num_classes, random.Random(0))
    settings = {
        "images": _digest([file_keys([item.impath for item in items]).tolist(), [item.label for item in items]]),
        "backbone": weights,
        "device": torch.device(device).type,
        "input": [[key, value] for key, value in config.flatten(cfg.INPUT)],
        "upright": cfg.DATASET.UPRIGHT,
        "classnames": dataset.classnames,
        "templates": list(dataset.templates),
        "part": PART_LOGITS,
        "versions": [VERSION, features.VERSION, text.VERSION],
    }
    make = lambda: _log_q(cfg, dataset, items, device)[:, None]  # noqa: E731
    return stored("groups", settings, dataset.num_classes, make, shared=True)[:, 0]


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@torch.no_grad()
def _log_q(cfg: CfgNode, dataset: DatasetBase, items: Sequence[Datum], device: str | torch.device) -> Tensor:
    """Estimate log q [C] of the groups' backbone on some images."""
    from unskew.clip import features
    from unskew.data.loaders import build_transform

    with _loading():
        backbone = backbones.load_backbone(cfg.MODEL.BACKBONE.NAME, "fp32", device)
    rows = features.extract(
        backbone,
        [item.impath for item in items],
        build_transform(cfg, backbone, train=False),  # type: ignore[arg-type]  # None only with INPUT.NO_TRANSFORM, which CLIPTrainer refuses
        workers=cfg.DATALOADER.NUM_WORKERS,
        dataset=cfg.DATASET.NAME,
        upright=cfg.DATASET.UPRIGHT,
        shared=True,
    )  # [N, D]
    labels = torch.tensor([item.label for item in items], device=rows.device)
    weights = text.zeroshot_classifier(backbone, dataset.classnames, dataset.templates)  # [C, D]
    return _estimate(lambda part: text.cosine_logits(backbone, rows[part], weights), labels, len(weights))


def _estimate(logits_of: Callable[[Tensor], Tensor], labels: Tensor, classes: int) -> Tensor:
    """Return the mean log q [C] over parts of the images; a class counts where it has images.

    Args:
        logits_of: function of image indices [n] -> logits [n, C], which it may not keep.
        labels: [N].
        classes: C.
    """
    total, count = torch.zeros(2, classes, device=labels.device)
    for part in _parts(labels, classes):
        logits = logits_of(part)
        logits /= fit_temperature(logits, labels[part])
        seen = labels[part].bincount(minlength=classes) > 0
        total += estimate(logits, labels[part], "convex").log_q * seen
        count += seen
        del logits  # before the next part needs its memory
    return torch.where(count > 0, total / count, -math.log(classes))


def _parts(labels: Tensor, classes: int) -> list[Tensor]:
    """Divide images [N] into parts of at most `PART_LOGITS` logits or one image per class; return their indices.

    The images of a class are dealt to the parts in turn.
    """
    if len(labels) * classes <= PART_LOGITS:
        return [torch.arange(len(labels), device=labels.device)]
    counts = labels.bincount(minlength=classes)
    order = labels.argsort(stable=True)
    number = torch.empty_like(order)  # of each image in its class
    number[order] = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[labels[order]]
    count = -(-int(counts.max()) // max(1, PART_LOGITS // classes**2))
    return [(number % count == part).nonzero()[:, 0] for part in range(count)]
