"""Linear probe: logistic regression on frozen image features (Radford et al. 2021, arXiv 2103.00020, section 3.2).

By default the penalty pulls the weights to the zero-shot classifier, and not to zero.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from yacs.config import CfgNode

from unskew.clip.logistic import logistic_path
from unskew.data.dataset import Datum
from unskew.engine.checkpoint import bind_to_classes
from unskew.engine.clip_trainer import CLIPTrainer
from unskew.engine.debiasing import check_choice
from unskew.engine.trainer import TRAINER_REGISTRY
from unskew.utils.blocks import row_blocks

# Of C; close to a text classifier, even small values fit few images.
CANDIDATES = {
    "text": tuple(10.0**power for power in range(-2, 3)),
    "zeros": tuple(10.0**power for power in range(-2, 5)),
}


@TRAINER_REGISTRY.register()
class LinearProbe(CLIPTrainer):
    """Multinomial logistic regression (L2) on normalised features of the images, without augmentation."""

    class_bound = True

    @property
    def uses_val(self) -> bool:
        return not self.node.C

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        check_choice(cfg, f"{self.node_name}.INIT", tuple(CANDIDATES))
        if not 0 <= self.node.C < math.inf:
            raise ValueError(f"TRAINER.{self.node_name}.C must be 0 (the best on val) or more (got {self.node.C})")

    def build_model(self) -> None:
        with torch.device(self.device):
            self.head = torch.nn.Linear(self.zeroshot_weights.shape[1], self.num_classes).requires_grad_(False)
        bind_to_classes(self.head, self.classnames)
        self.register_model("head", self.head.to(self.device))

    def trained_parameters(self) -> int:
        return self.head.weight.numel() + self.head.bias.numel()

    def logits(self, image_features: Tensor) -> Tensor:
        return self.head(F.normalize(image_features, dim=-1))

    def linear_head(self) -> tuple[Tensor, Tensor]:
        return self.head.weight.detach(), self.head.bias.detach()

    @torch.no_grad()
    def train(self) -> None:
        self.before_train()
        weight, bias = self.solve()
        self.head.weight.copy_(weight)
        self.head.bias.copy_(bias)
        self.save_model(0, self.output_dir)
        self.after_train()

    def solve(self) -> tuple[Tensor, Tensor]:
        """Return the weights [C, D] and biases [C] with the C of the best accuracy on val, the smallest of equals."""
        candidates: Sequence[float] = CANDIDATES[self.node.INIT] if self.dataset.val else (1.0,)
        if self.node.C:
            candidates = (self.node.C,)
        centre = self.cosine_head(self.zeroshot_weights)[0] if self.node.INIT == "text" else None
        models = logistic_path(*self._inputs(self.dataset.train_x), self.num_classes, candidates, centre)
        if len(candidates) == 1:
            (model,) = models
            return model
        features, labels = self._inputs(self.dataset.val)
        progress = tqdm(models, desc="linear probe", total=len(candidates), delay=2, leave=False, disable=None)
        return max(progress, key=lambda head: correct_of(head[0], head[1], features, labels))

    def _inputs(self, items: Sequence[Datum]) -> tuple[Tensor, Tensor]:
        """Return normalised features [N, D] and labels [N]."""
        paths, labels = self.labelled(items)
        return F.normalize(self.encode(paths), dim=-1), labels


def correct_of(weight: Tensor, bias: Tensor, features: Tensor, labels: Tensor) -> int:
    """Return the number of correct predictions, in blocks of rows, so that memory does not grow with the images."""
    blocks = row_blocks(len(features), len(weight))
    return sum(int((F.linear(features[rows], weight, bias).argmax(1) == labels[rows]).sum()) for rows in blocks)
