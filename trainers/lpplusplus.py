"""LP++: a linear probe with text-blended weights w + alpha t (Huang et al., CVPR 2024, arXiv 2404.02285)."""

import logging
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode

from unskew.engine.trainer import TRAINER_REGISTRY
from unskew.trainers import linearprobe
from unskew.utils.blocks import row_blocks

logger = logging.getLogger("unskew")

MOMENTUM = 0.9  # of the steps of w

ALPHA_EVERY = 10  # iterations for each step of alpha

ALPHA_START = 250.0  # factor of the mean cosine of an image and its class's text in the start of alpha


@TRAINER_REGISTRY.register()
class LPPlusPlus(linearprobe.LinearProbe):
    """Logits = (w_c + alpha_c t_c) x + b_c, by full-batch gradient steps whose sizes come from Lipschitz constants."""

    class_bound = True
    uses_val = True

    def check_cfg(self, cfg: CfgNode) -> None:
        super(linearprobe.LinearProbe, self).check_cfg(cfg)
        if cfg.OPTIM.MAX_EPOCH < 1:
            raise ValueError(f"OPTIM.MAX_EPOCH, the iterations of LP++, must be at least 1 (got {cfg.OPTIM.MAX_EPOCH})")

    def trained_parameters(self) -> int:
        return super().trained_parameters() + self.num_classes  # alpha

    def solve(self) -> tuple[Tensor, Tensor]:
        """Return the weights [C, D] and biases [C] of the iteration that is best on val, the last of equals."""
        paths, labels = self.labelled(self.dataset.train_x)
        views = self.cfg.INPUT.VIEWS
        rows = self._encode_views(paths, range(views)).flatten(0, 1) if views else self.encode(paths)
        data = F.normalize(rows, dim=-1), labels.repeat_interleave(max(1, views))
        val = self._inputs(self.dataset.val) if self.dataset.val else None
        heads = enumerate(iterate(*data, self.zeroshot_weights, self.max_epoch), start=1)

        def score(numbered: tuple[int, tuple[Tensor, Tensor]]) -> tuple[int, int]:
            step, head = numbered
            return 0 if val is None else linearprobe.correct_of(*head, *val), step

        step, head = max(heads, key=score)
        logger.info(f"{type(self).__name__}: the weights of iteration {step} of {self.max_epoch}")
        return head


def iterate(features: Tensor, labels: Tensor, texts: Tensor, iterations: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the weights w + alpha t [C, D] and biases [C] after each iteration.

    The loss is the mean cross entropy. Its gradient in the whole weights, G [C, D], is that of w, and G_c t_c is that
    of alpha_c.

    Args:
        features: [N, D], normalised.
        labels: [N].
        texts: [C, D], normalised.
        iterations: number of iterations.
    """
    classes, texts = len(texts), texts.to(features)
    w = torch.zeros_like(texts).index_add_(0, labels, features)
    counts = labels.bincount(minlength=classes)
    cosines = torch.linalg.vecdot(w, texts)[counts > 0] / counts[counts > 0]  # of the present classes, means
    alpha = (ALPHA_START * cosines.mean()).repeat(classes)
    bias = torch.zeros_like(alpha)
    w_step, alpha_step = step_sizes(features, texts)
    momentum, slopes = [torch.zeros_like(w), torch.zeros_like(bias)], torch.zeros_like(alpha)
    for iteration in range(1, iterations + 1):
        gradients = gradient(features, labels, w + alpha[:, None] * texts, bias)
        slopes += torch.linalg.vecdot(gradients[0], texts)  # never reset, as released
        for value, velocity, slope in zip((w, bias), momentum, gradients, strict=True):
            value.sub_(velocity.mul_(MOMENTUM).add_(slope), alpha=w_step)
        if iteration % ALPHA_EVERY == 0:
            alpha.sub_(slopes, alpha=alpha_step)
        yield w + alpha[:, None] * texts, bias.clone()


def step_sizes(features: Tensor, texts: Tensor) -> tuple[float, float]:
    """Return the steps of w and of alpha: 4N / max eigenvalue of F^T F, and N / (4 max_c |F t_c|^2)."""
    gram = torch.zeros(features.shape[1], features.shape[1], dtype=torch.float64, device=features.device)
    squares = torch.zeros(len(texts), dtype=torch.float64, device=features.device)
    for rows in row_blocks(len(features), max(len(texts), features.shape[1])):
        block = features[rows]
        gram += block.T @ block
        squares += (block @ texts.T).double().square().sum(0)
    largest = torch.linalg.eigvalsh(gram)[-1]
    return 4 * len(features) / float(largest), len(features) / (4 * float(squares.max()))


def gradient(features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of the mean cross entropy in the weights [C, D] and biases [C], in blocks of rows."""
    of_weight, of_bias = torch.zeros_like(weight), torch.zeros_like(bias)
    for rows in row_blocks(len(labels), len(weight)):
        p = torch.addmm(bias, features[rows], weight.T).softmax(1)
        p[torch.arange(len(p), device=p.device), labels[rows]] -= 1
        of_weight.addmm_(p.T, features[rows])
        of_bias += p.sum(0)
    return of_weight / len(labels), of_bias / len(labels)
