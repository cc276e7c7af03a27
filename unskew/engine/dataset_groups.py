"""Groups of classes whose accuracy is reported together: by training counts (D), thirds of the prior q (P), or both."""

import functools
import logging
import random
from itertools import chain

import torch
from torch import Tensor

from unskew import config
from unskew.clip import backbones
from unskew.clip.text import cosine_logits, zeroshot_classifier
from unskew.data.dataset import build_dataset
from unskew.data.sampling import sample_up_to
from unskew.debias.metrics import prior_groups
from unskew.debias.prior import estimate_log_prior
from unskew.debias.temperature import fit_temperature
from unskew.engine.fingerprint import OWN

logger = logging.getLogger("unskew")

# One sample for every run on a dataset, so that the rows of a table share their groups.
SHOTS, SEED = 16, 1


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
    from unskew.clip import features  # torchvision, which whoever only wants the thirds of a prior need not wait for
    from unskew.data.loaders import build_transform

    shots = -1 if longtail else SHOTS
    opts = (*chain.from_iterable(same), "DATASET.NUM_SHOTS", shots, "SEED", SEED)
    try:
        cfg = config.load(name, own, "ZeroshotCLIP", opts)
        backbone = backbones.load_backbone(cfg.MODEL.BACKBONE.NAME, "fp32", device)
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
