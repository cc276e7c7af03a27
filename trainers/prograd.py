"""ProGrad: prompt tuning that does not forget zero-shot CLIP (Zhu et al. 2023, arXiv 2205.14865)."""

import torch
from torch import Tensor
from yacs.config import CfgNode

from unskew.clip.prompts import LearnableContext
from unskew.debias import losses
from unskew.debias.metrics import compute_accuracy
from unskew.engine.prompt_trainer import PromptTrainer
from unskew.engine.trainer import TRAINER_REGISTRY


def prograd_direction(g_ce: Tensor, g_kl: Tensor, strength: float, precision: torch.dtype = torch.float32) -> Tensor:
    """Return the gradient that ProGrad follows (its section 3.2), for one parameter tensor.

    The result is ``g_ce - strength * <g_ce, g_kl> / ||g_kl||^2 * g_kl`` if the two gradients disagree, else ``g_ce``.
    At the first step the prompts are the zero-shot ones and ``g_kl`` is rounding noise; the result is then ``g_ce``.

    Args:
        g_ce: gradient of the cross entropy.
        g_kl: gradient of the distillation loss, of the same shape.
        strength: share of the conflicting part to remove.
        precision: type in which the gradients were computed; it decides which norms are rounding noise.
    """
    wide = torch.promote_types(g_ce.dtype, torch.float32)  # half precision would overflow in the squares
    ce, kl = g_ce.to(wide), g_kl.to(wide)
    dot, norm = (ce * kl).sum(), kl.square().sum()
    noise = torch.finfo(precision).eps ** 2 * ce.square().sum()
    share = torch.where((dot < 0) & (norm > noise), strength * dot / norm.clamp_min(torch.finfo(wide).tiny), 0.0)
    return (ce - share * kl).to(g_ce.dtype)


@TRAINER_REGISTRY.register()
class ProGrad(PromptTrainer):
    """CoOp from a hand-made prompt, without the part of each step that opposes the zero-shot prediction."""

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        self.check_context()
        if self.node.T <= 0:
            raise ValueError(f"TRAINER.{self.node_name}.T must be above 0 (got {self.node.T})")

    def build_prompts(self) -> LearnableContext:
        return self.build_context(ctx_init=self.node.CTX_INIT or self.dataset.context_init)

    def build_model(self) -> None:
        super().build_model()
        # The teacher is the prediction of the initial prompts, computed in the same way as the student's.
        with torch.no_grad(), self.accelerator.autocast():
            self.initial_weights = self.text_features()  # [C, D]

    def forward_backward(self, batch: dict) -> dict[str, Tensor]:
        node = self.node
        image_features, labels = self.parse_batch_train(batch)
        with self.accelerator.autocast():
            logits = self.logits(image_features)
            with torch.no_grad():
                zeroshot = self.cosine_logits(image_features, self.initial_weights)
        ce = losses.cross_entropy(logits.float(), labels)
        kl = losses.distillation_kl(logits.float(), zeroshot.float(), node.T)
        self.watch(ce + kl)
        self.model_zero_grad()
        parameters = list(self.prompt_learner.parameters())
        g_ce = torch.autograd.grad(self.scale_loss(ce), parameters, retain_graph=True)
        g_kl = torch.autograd.grad(self.scale_loss(kl), parameters)
        means = self.average_over_processes([*g_ce, *g_kl])
        for parameter, ce_part, kl_part in zip(parameters, means[: len(g_ce)], means[len(g_ce) :], strict=True):
            # Both gradients have the same loss scale, and the rule is homogeneous of degree one.
            parameter.grad = prograd_direction(ce_part, kl_part, node.LAMBDA, logits.dtype)
        self.model_update()
        acc = compute_accuracy(logits.detach(), labels)[0]
        return {"loss": ce.detach(), "loss_kl": kl.detach(), "acc": acc}
