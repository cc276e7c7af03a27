"""ProGrad: prompt tuning that may not unlearn zero-shot CLIP (Zhu et al. 2023, arXiv 2205.14865)."""

import torch
from torch import Tensor

from unskew.clip.prompts import LearnableContext
from unskew.clip.text import encode_prompts
from unskew.debias import losses
from unskew.debias.metrics import compute_accuracy
from unskew.engine.clip_trainer import CLIPTrainer
from unskew.engine.trainer import TRAINER_REGISTRY


def prograd_direction(g_ce: Tensor, g_kl: Tensor, strength: float, precision: torch.dtype = torch.float32) -> Tensor:
    """The gradient that ProGrad follows (its section 3.2), for one parameter tensor.

    ``g_ce - strength * <g_ce, g_kl> / ||g_kl||^2 * g_kl`` where the two disagree, else ``g_ce``. At the
    first step the prompts are the zero-shot ones and ``g_kl`` is rounding noise: then ``g_ce`` too.

    Args:
        precision: of the computation that the gradients come from; it says what is rounding noise.
    """
    wide = torch.promote_types(g_ce.dtype, torch.float32)  # half precision would overflow in the squares
    ce, kl = g_ce.to(wide), g_kl.to(wide)
    dot, norm = (ce * kl).sum(), kl.square().sum()
    noise = torch.finfo(precision).eps ** 2 * ce.square().sum()
    share = torch.where((dot < 0) & (norm > noise), strength * dot / norm.clamp_min(torch.finfo(wide).tiny), 0.0)
    return (ce - share * kl).to(g_ce.dtype)


@TRAINER_REGISTRY.register()
class ProGrad(CLIPTrainer):
    """CoOp from a hand-made prompt; where cross entropy pulls against the zero-shot prediction, that part is cut."""

    def check_cfg(self, cfg) -> None:
        super().check_cfg(cfg)
        if cfg.TRAINER.PROGRAD.T <= 0:
            raise ValueError(f"TRAINER.PROGRAD.T is a temperature and must be above 0, got {cfg.TRAINER.PROGRAD.T}")

    def build_model(self) -> None:
        node = self.cfg.TRAINER.PROGRAD
        self.prompt_learner = LearnableContext(
            self.backbone,
            self.classnames,
            ctx_init=node.CTX_INIT or self.dataset.context_init,
            csc=node.CSC,
            position=node.CLASS_TOKEN_POSITION,
            generator=self.generator,
        )
        self.register_for_training("prompt_learner", self.prompt_learner, class_bound=node.CSC)
        # The prediction to stay near to is that of the prompts it starts from, computed as the student's is.
        with torch.no_grad(), self.accelerator.autocast():
            self.initial_weights = encode_prompts(self.backbone, self.prompt_learner())  # [C, D]

    def logits(self, image_features: Tensor) -> Tensor:
        return self.cosine_logits(image_features, encode_prompts(self.backbone, self.prompt_learner()))

    def forward_backward(self, batch: dict) -> dict[str, Tensor]:
        node = self.cfg.TRAINER.PROGRAD
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
        for parameter, ce_part, kl_part in zip(parameters, g_ce, g_kl, strict=True):
            # Both carry the same loss scale, so the rule, of degree one, carries it through.
            parameter.grad = prograd_direction(ce_part, kl_part, node.LAMBDA, logits.dtype)
        self.model_update()
        acc = compute_accuracy(logits.detach(), labels)[0]
        return {"loss": ce.detach(), "loss_kl": kl.detach(), "acc": acc}
