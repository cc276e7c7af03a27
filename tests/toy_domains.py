"""A dataset of four domains, small networks and a config for tests of Dassl's trainers."""

import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from unskew.dassl.config import clean_cfg, get_cfg_default
from unskew.dassl.data import DATASET_REGISTRY, DatasetBase, Datum
from unskew.dassl.modeling import BACKBONE_REGISTRY, NETWORK_REGISTRY, Backbone

CLASSES, WIDTH, SIDE = 3, 8, 8
SOURCES, TARGET = ("dark", "grey", "bright"), "noisy"


@DATASET_REGISTRY.register()
class ToyDomains(DatasetBase):
    """8 x 8 images: the channel of the class is bright; domains differ in brightness and noise.

    Each source domain has 12 images to train on; the target has 12 unlabelled and 30 test images.
    """

    domains = (*SOURCES, TARGET)

    def __init__(self, cfg):
        root = Path(cfg.DATASET.ROOT)
        train = [self.draw(root, domain, number) for domain in range(3) for number in range(12)]
        target = [self.draw(root, 3, number) for number in range(42)]
        super().__init__(train_x=train, train_u=target[:12], test=target[12:])

    def draw(self, root, domain, number):
        label = number % CLASSES
        path = root / f"{self.domains[domain]}{number:02d}.png"
        generator = np.random.default_rng([domain, number])
        pixels = generator.integers(0, 90 if domain == 3 else 60, (SIDE, SIDE, 3), dtype=np.uint8) + 30 * domain
        pixels[..., label] += 70
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        return Datum(str(path), label, domain % 3, f"class {label}")


class ToyFeatures(Backbone):
    """``tanh(W x + b)`` of flat images, after an optional batch norm."""

    def __init__(self, norm=False):
        super().__init__()
        self.norm = nn.BatchNorm2d(3) if norm else nn.Identity()
        self.layer = nn.Linear(3 * SIDE * SIDE, WIDTH)
        self._out_features = WIDTH

    def forward(self, x):
        return self.layer(self.norm(x).flatten(1)).tanh()


class ToyGenerator(nn.Module):
    """``x + lmda tanh(a x + b)``."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.tensor(-0.2))

    def forward(self, x, lmda=1.0):
        return x + lmda * torch.tanh(self.a * x + self.b)


BACKBONE_REGISTRY.register("toy_features", lambda pretrained=False: ToyFeatures())
BACKBONE_REGISTRY.register("toy_norm", lambda pretrained=False: ToyFeatures(norm=True))
NETWORK_REGISTRY.register("toy_generator", lambda: ToyGenerator())

STRONG = ["random_flip", "cutout", "normalize"]
DOMAIN_BATCHES = ("DATALOADER.TRAIN_X.SAMPLER", "RandomDomainSampler", "DATALOADER.TRAIN_U.SAME_AS_X", False)
TWO_VIEWS = ("DATALOADER.K_TRANSFORMS", 2)

# What a trainer needs besides the common settings.
NEEDS = {
    "DAEL": (*DOMAIN_BATCHES, "TRAINER.DAEL.STRONG_TRANSFORMS", STRONG, "TRAINER.DAEL.CONF_THRE", 0.5),
    "DAELDG": (*DOMAIN_BATCHES, "TRAINER.DAELDG.STRONG_TRANSFORMS", STRONG),
    "DDAIG": ("TRAINER.DDAIG.G_ARCH", "toy_generator"),
    "MixMatch": (*TWO_VIEWS, "TRAINER.MIXMATCH.RAMPUP", 100),
    "FixMatch": ("TRAINER.FIXMATCH.STRONG_TRANSFORMS", STRONG, "TRAINER.FIXMATCH.CONF_THRE", 0.5),
    "SE": (*TWO_VIEWS, "TRAINER.SE.CONF_THRE", 0.5),
    "CDAC": (
        *(*TWO_VIEWS, "TRAINER.CDAC.STRONG_TRANSFORMS", STRONG, "TRAINER.CDAC.P_THRESH", 0.5),
        *("TRAINER.CDAC.TOPK_MATCH", 2, "TRAINER.CDAC.RAMPUP_ITRS", 30, "TRAINER.CDAC.CLASS_LR_MULTI", 2),
        *("TRAINER.CDAC.RAMPUP_COEF", 3),
    ),
    "M3SDA": DOMAIN_BATCHES,
}


def make_cfg(trainer, root, *pairs):
    """Return the frozen config of a trainer on `ToyDomains` below ``root``."""
    cfg = get_cfg_default()
    cfg.merge_from_list(["DATASET.NAME", "ToyDomains", "DATASET.ROOT", str(root), "OUTPUT_DIR", str(root / "run")])
    cfg.merge_from_list(["DATASET.SOURCE_DOMAINS", SOURCES, "DATASET.TARGET_DOMAINS", (TARGET,)])
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", "toy_features", "MODEL.BACKBONE.PRETRAINED", False])
    cfg.merge_from_list(["INPUT.SIZE", (SIDE, SIDE), "INPUT.TRANSFORMS", ["random_flip", "normalize"]])
    cfg.merge_from_list(["INPUT.CUTOUT_LEN", 4, "USE_CUDA", False, "SEED", 1, "TRAINER.NAME", trainer])
    cfg.merge_from_list(["DATALOADER.TRAIN_X.BATCH_SIZE", 12, "DATALOADER.TRAIN_U.BATCH_SIZE", 6])
    cfg.merge_from_list(["DATALOADER.TRAIN_U.SAME_AS_X", False, "DATALOADER.NUM_WORKERS", 0])
    cfg.merge_from_list(["OPTIM.NAME", "sgd", "OPTIM.LR", 0.05, "OPTIM.MAX_EPOCH", 8, "VERBOSE", False])
    cfg.merge_from_list([*NEEDS.get(trainer, ()), *pairs])
    clean_cfg(cfg, trainer)
    cfg.freeze()
    return cfg


def seed_all(seed=1):
    """Seed the generators as scripts do."""
    random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)  # noqa: NPY002
