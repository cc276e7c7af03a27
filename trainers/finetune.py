"""FineTune: parameter-efficient tuning of the image tower, with a cosine head and a loss for long tails.

The recipe of LIFT (Shi et al., ICML 2024, arXiv 2309.10019), which the members of the backdoor adjustment follow.
"""

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from unskew.clip import adapters, features, heads
from unskew.debias.losses import LOGIT_ADJUSTED, build_loss
from unskew.debias.prior import METHODS
from unskew.engine.checkpoint import bind_to_classes
from unskew.engine.clip_trainer import CLIPTrainer
from unskew.engine.debiasing import check_prior, pretraining_prior
from unskew.engine.label_prior import LabelPrior
from unskew.engine.trainer import TRAINER_REGISTRY
from unskew.utils.registry import unknown_name


class Tuned(nn.Module):
    """A model ``head(body(x))`` -> logits [B, C] that stays in evaluation mode and saves only its trained weights.

    Attributes:
        backbone_id: the bytes of the id of the backbone that provides the frozen weights; a checkpoint holds them.
    """

    backbone_id: Tensor

    def __init__(self, body: nn.Module, head: nn.Module, backbone_id: str, classnames: Sequence[str]) -> None:
        super().__init__()
        self.body, self.head = body, head
        bind_to_classes(self, classnames)
        self.register_buffer("backbone_id", torch.tensor(list(backbone_id.encode()), dtype=torch.uint8))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, C]."""
        return self.head(self.body(x))

    def train(self, mode: bool = True) -> "Tuned":
        """Keep evaluation mode: a few images must not change the batch statistics of the tower."""
        return super().train(False)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the trained weights and the fingerprints of backbone and classes."""
        saved = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        saved |= {"backbone_id", "classes"}
        return {key: value for key, value in super().state_dict(*args, **kwargs).items() if key in saved}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load the weights that `state_dict` returned.

        Raises:
            ValueError: the weights were trained on another backbone or on other classes.
        """
        trained_on, current = (
            bytes(backbone_id.tolist()).decode()
            for backbone_id in (state_dict.get("backbone_id", self.backbone_id), self.backbone_id)
        )
        if trained_on != current:
            raise ValueError(
                f"the weights were trained on the backbone '{trained_on}', but this model has '{current}': load them "
                "into a model with their backbone"
            )
        saved = self.state_dict()
        frozen = {key: value for key, value in super().state_dict().items() if key not in saved}
        return super().load_state_dict({**frozen, **state_dict}, strict, assign)


@TRAINER_REGISTRY.register()
class FineTune(CLIPTrainer):
    """A cosine head and an adapter, trained together; the image tower stays frozen.

    An adapter inside the tower trains on images; if the tower's projection is a matrix, the head reads the feature
    before it. The adapters ``bottleneck`` and ``none`` train on cached features, after the projection.

    Attributes:
        prior: the label prior that the loss ``gla_train`` takes out.
    """

    class_bound = True
    prior: LabelPrior | None = None

    @property
    def adapter(self) -> str:
        """The name of the adapter, ``ADAPTER`` or the tower's default."""
        return adapters.check_adapter(self.node.ADAPTER, self.backbone.visual)

    @property
    def needs_images(self) -> bool:
        return self.adapter in adapters.IN_TOWER

    @property
    def logit_adjusted(self) -> bool:
        return self.node.LOSS in LOGIT_ADJUSTED

    @property
    def uses_val(self) -> bool:
        return self.node.LOSS == "gla_train" and self.node.PRIOR in METHODS

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        node = self.node
        if node.HEAD_INIT not in heads.STARTS:
            raise ValueError(unknown_name(f"TRAINER.{self.node_name}.HEAD_INIT", node.HEAD_INIT, heads.STARTS))
        check_prior(cfg, self.node_name)
        if node.PRIOR == "unlabelled":
            raise ValueError(f"TRAINER.{self.node_name}.PRIOR unlabelled concerns images to predict: choose map")
        if node.WIDTH < 0 or node.SCALE <= 0:
            raise ValueError(
                f"TRAINER.{self.node_name}.WIDTH must be 0 or more and SCALE above 0 (got {node.WIDTH} and "
                f"{node.SCALE})"
            )

    def build_model(self) -> None:
        if self.dataset.train_x:  # a dataset with only test images has no counts
            self.loss = self._build_loss()
        if self.needs_images:
            tower = adapters.frozen_copy(self.backbone.visual)
            rows = self._head_start(tower)
            body = adapters.adapt(tower, self.adapter, self._width(), self.generator, self.node.VPT_DEEP)
        else:
            rows = self._head_start()
            bottleneck = self.adapter == "bottleneck"
            body = adapters.Bottleneck(rows.shape[1], self._width(), self.generator) if bottleneck else nn.Identity()
        self.model = Tuned(body, heads.CosineHead(rows, self.node.SCALE), self.backbone.id, self.classnames)
        self.register_for_training("finetune", self.model)

    def _build_loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        counts = torch.bincount(self.labelled(self.dataset.train_x)[1].cpu(), minlength=self.num_classes)
        if self.node.LOSS == "gla_train":
            self.prior = pretraining_prior(self, self.node)
        return build_loss(self.node.LOSS, counts, self.prior.log_q if self.prior else None)

    def label_prior(self) -> LabelPrior | None:
        return self.prior

    def _width(self) -> int:
        if self.adapter == "vpt":
            return self.node.WIDTH or adapters.PROMPTS
        in_blocks = self.adapter in adapters.IN_BLOCKS
        count = len(list(self.backbone.visual.get_submodule("transformer.resblocks").children())) if in_blocks else 1
        return self.node.WIDTH or adapters.default_width(self.num_classes, count)

    def _head_start(self, tower: nn.Module | None = None) -> Tensor:
        """Return the head's initial rows [C, D], for the features of ``tower`` or, by default, of the backbone."""
        rows = self.zeroshot_weights
        projection = getattr(self.backbone.visual, "proj", None)
        if tower is not None and isinstance(projection, nn.Parameter):
            rows = F.normalize(rows @ projection.detach().float().T, dim=-1)
        start = self.node.HEAD_INIT
        if start == "random":
            return torch.randn(rows.shape, generator=self.generator).to(rows)
        if start == "text" or not self.dataset.train_x:  # without images, a checkpoint replaces the rows
            return rows
        paths, labels = self.labelled(self.dataset.train_x)
        image_features = self.encode(paths) if tower is None else self._encode_with(tower, paths)
        means = heads.class_means(image_features, labels, rows)
        if start == "class_mean":
            return means
        return heads.linear_probe(image_features, labels, means, self.loss, self.node.SCALE)

    def _encode_with(self, tower: nn.Module, paths: Sequence[str]) -> Tensor:
        """Return the features [N, D] of images without augmentation, encoded by ``tower``."""
        encoder = SimpleNamespace(
            id=f"{self.backbone.id} before its projection",
            dtype=torch.float32,
            device=self.device,
            encode_image=tower.to(self.device),
        )
        cfg = self.cfg
        options = {"dataset": cfg.DATASET.NAME, "upright": cfg.DATASET.UPRIGHT, "workers": cfg.DATALOADER.NUM_WORKERS}
        return features.extract(encoder, paths, self.dm.tfm_test, keep=False, shared=True, **options)

    def logits(self, inputs: Tensor) -> Tensor:
        """Return the logits [B, C] of images [B, 3, H, W] or, if not `needs_images`, of features [B, D]."""
        return self.model(inputs)

    def linear_head(self) -> tuple[Tensor, Tensor] | None:
        """Return the cosine head if it reads the feature itself, without an adapter."""
        if self.adapter != "none":
            return None
        rows = self.node.SCALE * F.normalize(self.model.get_parameter("head.weight").detach(), dim=-1)
        return rows, rows.new_zeros(len(rows))
