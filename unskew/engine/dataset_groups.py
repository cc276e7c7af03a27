"""Thirds of the classes by the pre-training prior q, the same for all runs on a dataset."""

import json
import logging
import random

import torch
from torch import Tensor
from yacs.config import CfgNode

from unskew import config
from unskew.clip import backbones
from unskew.clip.text import cosine_logits, zeroshot_classifier
from unskew.data.dataset import build_dataset
from unskew.data.sampling import sample_up_to
from unskew.debias.metrics import prior_groups
from unskew.debias.prior import estimate
from unskew.debias.temperature import fit_temperature
from unskew.engine.fingerprint import USER_DATASETS
from unskew.engine.run_dir import backbones_of
from unskew.utils.logging import errors_only, warn_once

logger = logging.getLogger("unskew")

# One sample for every run on a dataset, so that the rows of a table share their groups.
SHOTS, SEED = 16, 1


def dataset_groups(cfg: CfgNode, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Return the `prior_groups` of a run's dataset, the same for every backbone, trainer, number of shots and seed.

    The prior q is estimated once per process with the dataset's default backbone (for a user's own images with the
    run's, or with its first member), on the train and val images that 16 shots and seed 1 draw. On a long-tailed
    dataset these are up to 16 train images per class and all of val. There are no groups, and one warning, if that
    backbone cannot be loaded. There are none for a plugin's dataset either: it has no default backbone, and drawing its
    sample might write files that later runs read.

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
    key = json.dumps([used, str(device)])
    if key not in _groups:
        _groups[key] = _estimate_groups(cfg, device)
    return _groups[key]


_groups: dict[str, dict[str, Tensor]] = {}  # by the config and the device


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
    return config.derive(cfg, values)


def _estimate_groups(cfg: CfgNode, device: str | torch.device) -> dict[str, Tensor]:
    from unskew.clip import features  # torchvision, which `prior_groups` alone does not need
    from unskew.data.loaders import build_transform

    try:
        backbone = backbones.load_backbone(cfg.MODEL.BACKBONE.NAME, "fp32", device)
    except (OSError, ValueError) as error:
        logger.debug(f"the groups of '{cfg.DATASET.NAME}': {error}")
        warn_once(f"no p_many, p_medium and p_few: the weights of '{cfg.MODEL.BACKBONE.NAME}' cannot be loaded")
        return {}
    with errors_only():  # the sample of 16 shots is not the user's
        dataset = build_dataset(cfg)
    train = sample_up_to(dataset.train_x, SHOTS, random.Random(SEED)) if cfg.DATASET.LONGTAIL else dataset.train_x
    items = [*train, *(dataset.val or [])]
    transform = build_transform(cfg, backbone, train=False)
    rows = features.extract(
        backbone,
        [item.impath for item in items],
        transform,  # type: ignore[arg-type]  # None only with INPUT.NO_TRANSFORM, which CLIPTrainer refuses
        workers=cfg.DATALOADER.NUM_WORKERS,
        dataset=cfg.DATASET.NAME,
        upright=cfg.DATASET.UPRIGHT,
    )  # [N, D]
    labels = torch.tensor([item.label for item in items], device=rows.device)
    weights = zeroshot_classifier(backbone, dataset.classnames, dataset.templates)  # [C, D]
    with torch.no_grad():
        logits = cosine_logits(backbone, rows, weights)
    temperature = fit_temperature(logits, labels)
    return prior_groups(estimate(logits / temperature, labels, "convex").log_q)
