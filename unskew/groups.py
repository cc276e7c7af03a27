"""Groups of classes whose accuracy is reported together: by training counts (D), thirds of the prior q (P), or both."""

import functools
import logging
import random
from collections.abc import Mapping
from itertools import chain

import torch
from torch import Tensor

from unskew import backbones, config
from unskew.calibration import fit_temperature
from unskew.data import build_dataset
from unskew.identity import OWN
from unskew.prior import estimate_log_prior
from unskew.sampling import sample_up_to
from unskew.text import cosine_logits, zeroshot_classifier

logger = logging.getLogger("unskew")

MANY, FEW = 100, 20  # training images: above, and below
# One sample for every run on a dataset, so that the rows of a table share their groups.
SHOTS, SEED = 16, 1


def training_groups(counts: Tensor) -> dict[str, Tensor]:
    """Class indices with more than 100, 20 to 100, and fewer than 20 training images, from counts [C].

    Empty where all classes are in one group, as in few-shot runs: its accuracy would be the balanced accuracy.
    """
    many, few = counts > MANY, counts < FEW
    groups = {"d_many": many, "d_medium": ~(many | few), "d_few": few}
    groups = {name: members.nonzero()[:, 0] for name, members in groups.items()}
    return {} if any(len(classes) == len(counts) for classes in groups.values()) else groups


def prior_groups(log_q: Tensor) -> dict[str, Tensor]:
    """Class indices in the upper, middle and lower third of q, from log q [C]; of equal q the lower label is first.

    Sizes differ by at most one: of 3n + 1 classes the middle third has one more, of 3n + 2 it has one fewer; two
    classes are one in the upper and one in the lower third.
    """
    classes = len(log_q)
    order = log_q.argsort(descending=True, stable=True)
    thirds = order.tensor_split((round(classes / 3), round(2 * classes / 3)))
    return dict(zip(("p_many", "p_medium", "p_few"), thirds, strict=True))


def crossed_groups(groups: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The classes that a D group and a P group share, as ``d_many_p_few``; a pair that shares none is left out."""
    data, prior = ([name for name in groups if name.startswith(kind)] for kind in ("d_", "p_"))
    shared = {f"{d}_{p}": groups[d][torch.isin(groups[d].cpu(), groups[p].cpu())] for d in data for p in prior}
    return {name: classes for name, classes in shared.items() if len(classes)}


def dataset_groups(cfg, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """The `prior_groups` of a run's dataset, the same whatever its backbone, trainer, shots and seed.

    q is that of the dataset's default backbone (of a user's own images: of the run's), estimated once per process on
    the train and val images that 16 shots and seed 1 draw; of a long-tailed dataset, on up to 16 train images per class
    and all of val. Where that backbone cannot be loaded there are no groups, which is said in one warning. Nor are
    there for a plugin's dataset: it has no default backbone, and drawing a sample may write files that later runs read.
    """
    node = cfg.DATASET
    if node.NAME not in config.names("datasets"):
        return {}
    keys = ("ROOT", "SUBSAMPLE_CLASSES", "IMBALANCE", "TEMPLATE", "CLASSNAMES")
    same = tuple((f"DATASET.{key}", node[key]) for key in keys)
    own = cfg.MODEL.BACKBONE.NAME if node.NAME in OWN else ""  # a user's own images have no default to compare by
    return _dataset_groups(node.NAME, own, same, node.LONGTAIL, device, cfg.DATALOADER.NUM_WORKERS)


@functools.cache
def _dataset_groups(name: str, own: str, same: tuple, longtail: bool, device, workers: int) -> dict[str, Tensor]:
    from unskew import features  # torchvision, which whoever only wants the thirds of a prior need not wait for
    from unskew.loaders import build_transform

    shots = -1 if longtail else SHOTS
    opts = (*chain.from_iterable(same), "DATASET.NUM_SHOTS", shots, "SEED", SEED)
    try:
        cfg = config.load(name, own, "ZeroshotCLIP", opts)
        backbone = backbones.load(cfg.MODEL.BACKBONE.NAME, "fp32", device)
    except (OSError, ValueError) as error:
        logger.warning(
            f"p_many, p_medium and p_few need the default backbone of '{name}', so they are left out: {error}"
        )
        return {}
    dataset = build_dataset(cfg)
    train = sample_up_to(dataset.train_x, SHOTS, random.Random(SEED)) if longtail else dataset.train_x
    items = [*train, *(dataset.val or [])]
    transform = build_transform(cfg, backbone, train=False)
    rows = features.extract(backbone, [i.impath for i in items], transform, workers=workers, dataset=name)  # [N, D]
    labels = torch.tensor([item.label for item in items], device=rows.device)
    weights = zeroshot_classifier(backbone, dataset.classnames, dataset.templates)  # [C, D]
    with torch.no_grad():
        logits = cosine_logits(backbone, rows, weights)
    temperature = fit_temperature(logits, labels)
    return prior_groups(estimate_log_prior(logits / temperature, labels).log_q)
