"""GDA: a Gaussian for each class, added to zero-shot CLIP without training (Wang et al., ICLR 2024, arXiv 2402.04087).

The classes share one covariance, so the classifier is linear. All classes have the prior 1 / C, in long tails too.
"""

import logging
import math

import torch
import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode

from unskew.engine.trainer import TRAINER_REGISTRY
from unskew.trainers import linearprobe
from unskew.utils.blocks import row_blocks

logger = logging.getLogger("unskew")

CANDIDATES = tuple(10.0**power for power in range(-4, 3))  # of alpha, as released

WITHOUT_VAL = 0.1  # alpha without val, where the release's search starts

NEIGHBOURS, COPIES = 64, 16  # images and copies of its text feature in the mean of a class without images


@TRAINER_REGISTRY.register()
class GDA(linearprobe.LinearProbe):
    """Logits = zero-shot + alpha (mu_c P x - mu_c P mu_c / 2), with class means mu_c and the shared precision P."""

    class_bound = True
    logit_adjusted = True  # the prior of all classes is 1 / C

    @property
    def uses_val(self) -> bool:
        return not self.node.ALPHA

    def check_cfg(self, cfg: CfgNode) -> None:
        super(linearprobe.LinearProbe, self).check_cfg(cfg)
        if self.node.ALPHA < 0:
            raise ValueError(f"TRAINER.{self.node_name}.ALPHA must be 0 or more (got {self.node.ALPHA})")

    def trained_parameters(self) -> int:
        return 0

    def solve(self) -> tuple[Tensor, Tensor]:
        """Return the weights [C, D] and biases [C] with the best alpha on val, the smallest of equals."""
        paths, labels = self.labelled(self.dataset.train_x)
        views = self.cfg.INPUT.VIEWS
        rows = self._encode_views(paths, range(views)).flatten(0, 1) if views else self.encode(paths)
        labels = labels.repeat_interleave(max(1, views))
        weight, bias = gaussian_head(F.normalize(rows, dim=-1), labels, self.zeroshot_weights)
        zeroshot, _ = self.cosine_head(self.zeroshot_weights)
        heads = {alpha: (zeroshot + alpha * weight, alpha * bias) for alpha in self._alphas()}
        alpha = next(iter(heads))
        if len(heads) > 1:
            val = self._inputs(self.dataset.val)
            correct = {alpha: linearprobe.correct_of(*head, *val) for alpha, head in heads.items()}
            alpha = max(correct, key=correct.__getitem__)
            logger.info(f"{type(self).__name__}: alpha {alpha:g} is the best on val")
        return heads[alpha]

    def _alphas(self) -> tuple[float, ...]:
        if self.node.ALPHA:
            return (self.node.ALPHA,)
        return CANDIDATES if self.dataset.val else (WITHOUT_VAL,)


def gaussian_head(features: Tensor, labels: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights [C, D] and biases [C] of Gaussian discriminant analysis (the paper's section 3.2).

    The precision is the ridge estimate D ((N - 1) S + tr(S) I)^-1 of the covariance S within classes (Kubokawa and
    Srivastava, J. Multivariate Anal. 99, 2008). It is I if no class has two different features.

    Args:
        features: [N, D], normalised.
        labels: [N].
        texts: [C, D], normalised text features, for classes without images; see `class_means`.
    """
    count, width = features.shape
    means = class_means(features, labels, texts)
    scatter = torch.zeros(width, width, dtype=means.dtype, device=means.device)
    for rows in row_blocks(count, width):
        centred = features[rows].to(means) - means[labels[rows]]
        scatter.addmm_(centred.T, centred)
    ridge = scatter.trace() / max(1, count - 1)
    weight = means.clone()
    if ridge > torch.finfo(features.dtype).eps ** 2:
        scatter.diagonal().add_(ridge)
        weight = width * torch.cholesky_solve(means.T, torch.linalg.cholesky(scatter)).T
    bias = -math.log(len(texts)) - 0.5 * torch.linalg.vecdot(weight, means)
    return weight.to(texts), bias.to(texts)


def class_means(features: Tensor, labels: Tensor, texts: Tensor) -> Tensor:
    """Return the mean feature [C, D] of each class, in float64.

    The mean of a class without images is the paper's for new classes (section 3.4): that of 64 images whose features
    are nearest to its text feature, and of 16 copies of the text feature.
    """
    sums = torch.zeros_like(texts, dtype=torch.float64).index_add_(0, labels, features.double())
    counts = labels.bincount(minlength=len(texts))
    means = sums / counts.clamp_min(1)[:, None]
    absent = (counts == 0).nonzero()[:, 0]
    if len(absent):
        count = min(NEIGHBOURS, len(features))
        nearest = (texts[absent].to(features) @ features.T).topk(count, dim=1).indices  # [absent, count]
        synthetic = torch.stack([features[rows].double().sum(0) for rows in nearest]) + COPIES * texts[absent].double()
        means[absent] = synthetic / (count + COPIES)
    return means
