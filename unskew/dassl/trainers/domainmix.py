"""DomainMix: mixup of images of different domains (Sun et al., Dynamic Domain Generalization, IJCAI 2022)."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Beta
from torch.nn import functional as F

from unskew.dassl.engine import TrainerX
from unskew.dassl.metrics import compute_accuracy
from unskew.dassl.trainers._shared import finish_batch, numbers, require
from unskew.engine.trainer import TRAINER_REGISTRY


@TRAINER_REGISTRY.register()
class DomainMix(TrainerX):
    """Each batch is mixed with its permutation at a share of Beta(``ALPHA``, ``BETA``).

    With ``TYPE`` crossdomain the other image is from another domain; with random it is any image of the batch.
    """

    def check_cfg(self, cfg: Any) -> None:
        """Raise ``ValueError`` for an unknown ``TYPE``."""
        kind = cfg.TRAINER.DOMAINMIX.TYPE
        require(
            kind in ("crossdomain", "random"),
            f"TRAINER.DOMAINMIX.TYPE must be crossdomain or random, got '{kind}'",
        )

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, float]:
        """Take one step on the mean of both labels' losses, weighted as the images."""
        images, labels_a, labels_b, share = self.parse_batch_train(batch)
        logits = self.model(images)
        loss = (share * F.cross_entropy(logits, labels_a) + (1 - share) * F.cross_entropy(logits, labels_b)).mean()
        self.model_backward_and_update(loss)
        finish_batch(self)
        return numbers(loss=loss, acc=compute_accuracy(logits, labels_a)[0])

    def parse_batch_train(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return `domain_mix` of the batch on the device."""
        return self.domain_mix(*super().parse_batch_train(batch))

    def domain_mix(self, x: Tensor, target: Tensor, domain: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return mixed images [B, 3, H, W], labels [B], the other images' labels [B] and the share [1] of the first."""
        node = self.node
        share = Beta(node.ALPHA, node.BETA).rsample((1,)) if node.ALPHA > 0 else torch.ones(1)
        share = share.to(x.device)
        order = torch.randperm(len(x), device=x.device)
        if node.TYPE == "crossdomain" and len(domains := domain.unique()) > 1:
            for value in domains:
                count, others = int((domain == value).sum()), (domain != value).nonzero()[:, 0]
                chosen = torch.ones(len(others)).multinomial(count, replacement=count > len(others))
                order[domain == value] = others[chosen.to(x.device)]
        return share * x + (1 - share) * x[order], target, target[order], share
