"""FineTune: parameter-efficient tuning of the image tower, with a cosine head and a loss for long tails.

The recipe of LIFT (Shi et al., ICML 2024, arXiv 2309.10019), which a member of the backdoor adjustment follows.
"""

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from unskew.clip import adapters, features, heads
from unskew.debias.losses import LOGIT_ADJUSTED, build_loss
from unskew.engine.checkpoint import bind_to_classes
from unskew.engine.clip_trainer import CLIPTrainer
from unskew.engine.debiasing import pretraining_prior
from unskew.engine.trainer import TRAINER_REGISTRY
from unskew.utils.registry import unknown_name


class Tuned(nn.Module):
    """Input -> ``body`` -> ``head`` -> logits [B, C]; it stays in ``eval()``, and only what trains is its state.

    Attributes:
        backbone_id: the id of the backbone that the rest of the weights comes from, as bytes: a checkpoint holds it.
    """

    def __init__(self, body: nn.Module, head: nn.Module, backbone_id: str, classnames: Sequence[str]) -> None:
        super().__init__()
        self.body, self.head = body, head
        bind_to_classes(self, classnames)
        self.register_buffer("backbone_id", torch.tensor(list(backbone_id.encode()), dtype=torch.uint8))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def train(self, mode: bool = True) -> "Tuned":
        """Stays in evaluation mode: a few images must not move the batch statistics of the tower."""
        return super().train(False)

    def state_dict(self, *args, **kwargs) -> dict[str, Tensor]:
        kept = {name for name, parameter in self.named_parameters() if parameter.requires_grad} | {
            "backbone_id",
            "classes",
        }
        return {key: value for key, value in super().state_dict(*args, **kwargs).items() if key in kept}

    def load_state_dict(self, state: dict[str, Tensor], strict: bool = True, assign: bool = False):
        """As any module's, of what `state_dict` gives.

        Raises:
            ValueError: the weights belong to another backbone, or to other classes (see `class_bound`).
        """
        own = self.state_dict()
        theirs, ours = (bytes(s.get("backbone_id", own["backbone_id"]).tolist()).decode() for s in (state, own))
        if theirs != ours:
            raise ValueError(
                f"the weights were trained on backbone '{theirs}', but this one is '{ours}'; load them onto theirs"
            )
        frozen = {key: value for key, value in super().state_dict().items() if key not in own}
        return super().load_state_dict({**frozen, **state}, strict, assign)


@TRAINER_REGISTRY.register()
class FineTune(CLIPTrainer):
    """Cosine head and adapter trained together; everything else of the image tower stays frozen.

    An adapter in the tower trains on images, and the head reads the feature before the projection where that is a
    matrix. One behind it (bottleneck), or none, trains on cached features, which are projected.
    """

    @property
    def adapter(self) -> str:
        return adapters.check_adapter(self.node.ADAPTER, self.backbone.visual)

    @property
    def needs_images(self) -> bool:
        return self.adapter in adapters.IN_TOWER

    @property
    def logit_adjusted(self) -> bool:
        return self.node.LOSS in LOGIT_ADJUSTED

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        node = self.node
        if node.HEAD_INIT not in heads.STARTS:
            raise ValueError(unknown_name(f"TRAINER.{self.node_name}.HEAD_INIT", node.HEAD_INIT, heads.STARTS))
        if node.WIDTH < 0 or node.SCALE <= 0:
            raise ValueError(
                f"TRAINER.{self.node_name}.WIDTH must be 0 or more and SCALE above 0, got {node.WIDTH} and {node.SCALE}"
            )

    def build_model(self) -> None:
        if self.dataset.train_x:  # a model may be tested on a set that has test images only
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
        log_q = pretraining_prior(self, self.node) if self.node.LOSS == "gla_train" else None
        return build_loss(self.node.LOSS, counts, log_q)

    def _width(self) -> int:
        if self.adapter == "vpt":
            return self.node.WIDTH or adapters.PROMPTS
        in_blocks = self.adapter in adapters.IN_BLOCKS
        count = len(self.backbone.visual.transformer.resblocks) if in_blocks else 1
        return self.node.WIDTH or adapters.default_width(self.num_classes, count)

    def _head_start(self, tower: nn.Module | None = None) -> Tensor:
        """Rows [C, D] in the space of the tower's features; without one, of the projected ones."""
        rows = self.zeroshot_weights
        if tower is not None and isinstance(getattr(self.backbone.visual, "proj", None), nn.Parameter):
            rows = F.normalize(rows @ self.backbone.visual.proj.detach().float().T, dim=-1)
        start = self.node.HEAD_INIT
        if start == "text":
            return rows
        if start == "random":
            return torch.randn(rows.shape, generator=self.generator).to(rows)
        paths, labels = self.labelled(self.dataset.train_x)
        image_features = self.encode(paths) if tower is None else self._encode_with(tower, paths)
        means = heads.class_means(image_features, labels, rows)
        if start == "class_mean":
            return means
        return heads.linear_probe(image_features, labels, means, self.loss, self.node.SCALE)

    def _encode_with(self, tower: nn.Module, paths: Sequence[str]) -> Tensor:
        """Features [N, D] of images without augmentation, by a frozen tower of one's own."""
        stand_in = SimpleNamespace(
            id=f"{self.backbone.id} before its projection",
            dtype=torch.float32,
            device=self.device,
            encode_image=tower.to(self.device),
        )
        workers = self.cfg.DATALOADER.NUM_WORKERS
        return features.extract(
            stand_in, paths, self.dm.tfm_test, keep=False, workers=workers, dataset=self.cfg.DATASET.NAME
        )

    def logits(self, inputs: Tensor) -> Tensor:
        """Images [B, 3, H, W] or, where the tower is left alone, features [B, D] -> [B, C]."""
        return self.model(inputs)
