"""Trainers whose teacher is the moving average of the model: `MeanTeacher` and `SE`.

Mean teacher: Tarvainen and Valpola, arXiv 1703.01780. Self-ensembling for domain adaptation: French et al., arXiv
1706.05208.
"""

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from unskew.dassl.engine import TrainerXU
from unskew.dassl.metrics import compute_accuracy
from unskew.dassl.ops import ema_model_update, sigmoid_rampup
from unskew.dassl.trainers._shared import finish_batch, numbers, require
from unskew.engine.trainer import TRAINER_REGISTRY


class _Taught(TrainerXU):
    """A model and its teacher, whose batch norms use the statistics of each batch."""

    teacher: nn.Module

    def build_model(self) -> None:
        """Build the model and its teacher."""
        super().build_model()
        self.teacher = copy.deepcopy(self.model).train().requires_grad_(False)

    @property
    def step(self) -> int:
        """The number of batches before this one."""
        return self.batch_idx + self.epoch * self.num_batches

    def update_teacher(self) -> None:
        """Average the weights of all steps (equation 1 of mean teacher); the first ones by their plain mean."""
        ema_model_update(self.model, self.teacher, min(1 - 1 / (self.step + 1), self.node.EMA_ALPHA))

    def extra_state(self) -> dict[str, Any]:
        """Return the teacher's weights and the states of the generators."""
        return {**super().extra_state(), "teacher": self.teacher.state_dict()}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore the teacher, which is the model itself in a checkpoint of Dassl."""
        super().load_extra_state(state)
        self.teacher.load_state_dict(state.get("teacher", self.model.state_dict()))


@TRAINER_REGISTRY.register()
class MeanTeacher(_Taught):
    """The model follows its teacher's predictions of the unlabelled images."""

    def forward_backward(self, batch_x: dict[str, Any], batch_u: dict[str, Any]) -> dict[str, float]:  # type: ignore[override]
        """Take one step on cross-entropy and the consistency cost (section 2), which ramps up by epoch."""
        images, labels, images_u = self.parse_batch_train(batch_x, batch_u)
        logits = self.model(images)
        loss_x = F.cross_entropy(logits, labels)
        target = self.teacher(images_u).softmax(1)
        loss_u = (self.model(images_u).softmax(1) - target).square().sum(1).mean()
        weight = self.node.WEIGHT_U * sigmoid_rampup(self.epoch, self.node.RAMPUP)
        self.model_backward_and_update(loss_x + loss_u * weight)
        self.update_teacher()
        finish_batch(self)
        return numbers(loss_x=loss_x, acc_x=compute_accuracy(logits, labels)[0], loss_u=loss_u)


@TRAINER_REGISTRY.register()
class SE(_Taught):
    """The model follows its teacher's confident predictions of another augmentation of the target's images."""

    def check_cfg(self, cfg: Any) -> None:
        """Raise ``ValueError`` unless there are two augmentations of each image."""
        count = cfg.DATALOADER.K_TRANSFORMS
        require(count == 2, f"SE compares two augmentations: set DATALOADER.K_TRANSFORMS to 2 (got {count})")

    def forward_backward(self, batch_x: dict[str, Any], batch_u: dict[str, Any]) -> dict[str, float]:  # type: ignore[override]
        """Take one step; the teacher's confidence above ``CONF_THRE`` or, if 0, a ramp-up weighs it."""
        images, labels, view1, view2 = self.parse_batch_train(batch_x, batch_u)
        logits = self.model(images)
        loss_x = F.cross_entropy(logits, labels)
        probabilities, target = self.model(view1).softmax(1), self.teacher(view2).softmax(1)
        loss_u = (probabilities - target).square().sum(1)
        if self.node.CONF_THRE:
            loss_u = (loss_u * (target.amax(1) > self.node.CONF_THRE)).mean()
        else:
            loss_u = loss_u.mean() * sigmoid_rampup(self.step, self.node.RAMPUP)
        self.model_backward_and_update(loss_x + loss_u)
        self.update_teacher()
        finish_batch(self)
        return numbers(loss_x=loss_x, acc_x=compute_accuracy(logits, labels)[0], loss_u=loss_u)

    def parse_batch_train(  # type: ignore[override]  # Dassl's signature
        self, batch_x: dict[str, Any], batch_u: dict[str, Any]
    ) -> tuple[Tensor, ...]:
        """Return the first view of labelled images, their labels and two views of the unlabelled images."""
        return tuple(part.to(self.device) for part in (batch_x["img"][0], batch_x["label"], *batch_u["img"]))
