"""GLA, Generalized Logit Adjustment (Zhu et al., NeurIPS 2023, arXiv 2310.08106)."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from yacs.config import CfgNode

from unskew import config
from unskew.calibration import fit_temperature
from unskew.clip_trainer import CLIPTrainer
from unskew.engine import TRAINER_REGISTRY
from unskew.losses import cross_entropy
from unskew.prior import adjust, estimate_log_prior

logger = logging.getLogger("unskew")

# From this many shots on, the val images alone are enough to fit the prior and the zero-shot temperature.
ENOUGH_SHOTS = 20


def defaults() -> CfgNode:
    return CfgNode(
        {
            "BASE": "ResidualPrompt",  # the fine-tuned half: any registered trainer
            "STRENGTH": 1.0,  # kappa: pseudo-samples of the uniform prior
            "TEMPERATURE": "confidence",  # how both halves are calibrated: confidence or nll
        }
    )


class _Adjustment(torch.nn.Module):
    """What GLA adds to its base, as buffers that a checkpoint holds."""

    def __init__(self, log_q: Tensor, log_p: Tensor, zeroshot_temperature: float) -> None:
        super().__init__()
        self.register_buffer("log_q", log_q)  # [C], label prior of the pre-training data
        self.register_buffer("log_p", log_p)  # [C], label prior of the training images
        self.register_buffer("zeroshot_temperature", torch.tensor(zeroshot_temperature))
        self.register_buffer("finetuned_temperature", torch.tensor(1.0))


@TRAINER_REGISTRY.register()
class GLA(CLIPTrainer):
    """Logits = ft/T_ft + zs/T_zs - log q - log p (the paper's f_gla, with both halves calibrated).

    The base trains itself; GLA only decides which of its epochs is kept, by its own accuracy on val.
    q and T_zs are fitted once, on images that the untouched model has never seen: train and val
    below 20 shots, else val.
    """

    def build_model(self) -> None:
        self.base = TRAINER_REGISTRY.get(config.class_name(self.cfg.TRAINER.GLA.BASE))(self.cfg)
        self.base.validate = self.validate
        items = self._prior_items()
        paths, labels = self.labelled(items)
        zeroshot = self.zeroshot_logits(paths)
        node = self.cfg.TRAINER.GLA
        temperature = fit_temperature(zeroshot, labels, method=node.TEMPERATURE)
        estimate = estimate_log_prior(zeroshot / temperature, labels, strength=node.STRENGTH)
        if not estimate.converged:
            logger.warning(
                "GLA: the prior estimate has not converged; the logits of the zero-shot model look degenerate"
            )
        self.adjustment = _Adjustment(estimate.log_q.float(), self._train_log_prior(), temperature).to(self.device)
        self.register_model("gla", self.adjustment)

    def _prior_items(self) -> list:
        train, val = self.dataset.train_x, self.dataset.val or []
        few = 0 < self.cfg.DATASET.NUM_SHOTS < ENOUGH_SHOTS
        return [*train, *val] if few or not val else val

    def _train_log_prior(self) -> Tensor:
        """log p [C] from the training counts; zero for balanced shots, where it would cancel."""
        labels = torch.tensor([item.label for item in self.dataset.train_x])
        counts = torch.bincount(labels, minlength=self.num_classes).clamp_min(1)
        return torch.zeros(self.num_classes) if len(counts.unique()) == 1 else (counts / counts.sum()).log()

    # --- training: the base's, scored by GLA --------------------------------------------------------

    def train(self) -> None:
        self.before_train()
        self.base.fit()
        self._calibrate()
        self.save_model(0, self.output_dir)
        self.after_train()

    def _calibrate(self) -> tuple[list[str], Tensor, Tensor]:
        """Fit T_ft on val for the base as it is now (without val: on train)."""
        paths, labels = self.labelled(self.dataset.val or self.dataset.train_x)
        finetuned = self.base.predict(paths)
        temperature = fit_temperature(finetuned, labels, method=self.cfg.TRAINER.GLA.TEMPERATURE)
        self.adjustment.finetuned_temperature.fill_(temperature)
        return paths, labels, finetuned

    def validate(self) -> float:
        """Accuracy of GLA on val in percent, with T_ft fitted at this moment; the base's epochs are kept by it.

        A few shots' val has few images and epochs often tie: then the one of lower cross entropy is better.
        """
        paths, labels, finetuned = self._calibrate()
        scores = self._scores(paths, finetuned)["gla"]
        accuracy = (scores.argmax(1) == labels).float().mean()
        return (100 * accuracy - 1e-3 * cross_entropy(scores, labels)).item()

    # --- prediction ---------------------------------------------------------------------------------

    def _scores(self, paths: Sequence[str], finetuned: Tensor) -> dict[str, Tensor]:
        """The method's parts and the method, each [N, C]."""
        a = self.adjustment
        zs, ft = self.zeroshot_logits(paths) / a.zeroshot_temperature, finetuned / a.finetuned_temperature
        return {"zs": zs, "ft": ft, "ensemble": ft + zs, "gla": adjust(ft, zs, a.log_q, a.log_p)}

    def scores(self, paths: Sequence[str]) -> dict[str, Tensor]:
        """Logits [N, C] of zero-shot, fine-tuned, their plain ensemble and GLA; the last is `predict`'s."""
        return self._scores(paths, self.base.predict(paths))

    def predict(self, paths: Sequence[str]) -> Tensor:
        return self.scores(paths)["gla"]

    # --- checkpoints: the base's models lie beside GLA's own ----------------------------------------

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        self.base.load_model(directory, epoch)
        super().load_model(directory)
        if epoch is not None:  # the saved T_ft belongs to the epoch that was kept
            self._calibrate()

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        return {**self.base.state_dict(), **super().state_dict()}

    def load_state_dict(self, states: dict[str, dict[str, Tensor]]) -> None:
        own = set(self.get_model_names())
        super().load_state_dict({name: state for name, state in states.items() if name in own})
        self.base.load_state_dict({name: state for name, state in states.items() if name not in own})
