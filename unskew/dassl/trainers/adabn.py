"""Adaptive batch normalization (Li et al., arXiv 1603.04779)."""

from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from unskew.dassl.engine import TrainerXU
from unskew.dassl.trainers._shared import require_source_weights
from unskew.engine.trainer import TRAINER_REGISTRY


@TRAINER_REGISTRY.register()
class AdaBN(TrainerXU):
    """The batch norms of a trained network take the target's statistics; no weight changes.

    ``MODEL.INIT_WEIGHTS`` is a checkpoint of the source network.
    """

    def check_cfg(self, cfg: Any) -> None:
        """Raise ``ValueError`` without the weights of a source network."""
        require_source_weights(cfg)

    def before_epoch(self) -> None:
        """Reset the statistics before the first epoch; a resumed run keeps those of its checkpoint."""
        if self.epoch == 0:
            for module in self.model.modules():
                if isinstance(module, _BatchNorm):
                    module.reset_running_stats()

    def forward_backward(self, batch_x: dict[str, Any], batch_u: dict[str, Any]) -> None:  # type: ignore[override]
        """Update the statistics with the target's images; there is no loss."""
        with torch.no_grad():
            self.model(batch_u["img"].to(self.device))
