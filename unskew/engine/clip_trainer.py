"""The base of all trainers on a CLIP: backbone, cached features, zero-shot head and the training step."""

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from unskew.clip import backbones, features
from unskew.clip.description import describe
from unskew.clip.text import cosine_logits, zeroshot_classifier
from unskew.data.dataset import Datum
from unskew.data.loaders import DataManager
from unskew.data.saved_run import SavedRun
from unskew.debias import losses
from unskew.debias.metrics import compute_accuracy, crossed_groups
from unskew.engine.checkpoint import bind_to_classes
from unskew.engine.dataset_groups import dataset_groups
from unskew.engine.feature_loader import FeatureLoader
from unskew.engine.image_models import ImageModel, linear_logits
from unskew.engine.optim import build_lr_scheduler, build_optimizer
from unskew.engine.trainer import SimpleTrainer, TrainerX
from unskew.utils.blocks import in_blocks, row_blocks


class CLIPTrainer(TrainerX):
    """Base of the trainers here. A method defines ``build_model`` and ``logits``; it inherits the rest.

    ``build_model`` calls ``register_for_training`` with the module to train, or registers nothing.
    ``logits(features)`` maps image features [B, D] to logits [B, C]. A trainer with ``needs_images`` receives the
    preprocessed images [B, 3, H, W] instead of features.

    Attributes:
        loss: the training loss, a function of logits [B, C] and labels [B].

    Examples:
        >>> import torch, unskew
        >>> class ClassBias(unskew.CLIPTrainer):
        ...     def build_model(self):
        ...         self.bias = torch.nn.ParameterList([torch.zeros(self.num_classes)])
        ...         self.register_for_training("bias", self.bias, class_bound=True)
        ...     def logits(self, image_features):
        ...         return self.cosine_logits(image_features, self.zeroshot_weights) + self.bias[0]
        >>> trainer = ClassBias(unskew.Run("digits", "ZeroshotCLIP", shots=1, seed=1).config)
        >>> trainer.predict([trainer.dataset.test[0].impath]).shape
        torch.Size([1, 10])
    """

    loss: Callable[[Tensor, Tensor], Tensor] = staticmethod(losses.cross_entropy)

    @property
    def needs_images(self) -> bool:
        """True for a trainer that changes the image tower and so trains on images."""
        return False

    def check_cfg(self, cfg: CfgNode) -> None:
        """Raise ``ValueError`` for a config that does not suit the method; a method calls ``super()`` first."""
        if cfg.INPUT.NO_TRANSFORM:
            raise ValueError("INPUT.NO_TRANSFORM must be False: CLIP's image tower needs its own preprocessing")
        if cfg.DATALOADER.K_TRANSFORMS != 1:
            raise ValueError(
                f"DATALOADER.K_TRANSFORMS must be 1 for CLIP's trainers (got {cfg.DATALOADER.K_TRANSFORMS})"
            )
        if cfg.INPUT.VIEWS < 0:
            raise ValueError(f"INPUT.VIEWS must be 0 (a new view every epoch) or more (got {cfg.INPUT.VIEWS})")

    def build_data_loader(self) -> None:
        """Build the backbone, the data and, for a frozen image tower, the loader of cached features."""
        cfg = self.cfg
        self.backbone = backbones.load_backbone(cfg.MODEL.BACKBONE.NAME, cfg.TRAINER.PREC, self.device)
        self.dm = DataManager(cfg, backbone=self.backbone)
        if isinstance(self.dm.dataset, SavedRun):
            self.dm.dataset.check_backbone(self.backbone)
        self.train_loader_x, self.train_loader_u = self.dm.train_loader_x, self.dm.train_loader_u
        self.val_loader, self.test_loader = self.dm.val_loader, None  # test labels are the evaluator's alone
        self.num_classes, self.num_source_domains = self.dm.num_classes, self.dm.num_source_domains
        self.lab2cname = self.dm.lab2cname
        self.dataset, self.classnames = self.dm.dataset, self.dm.dataset.classnames
        self.backbone.warn_of_unknown_names(self.classnames)
        if not self.needs_images:
            sampler = cfg.DATALOADER.TRAIN_X.SAMPLER
            if sampler != "RandomSampler":
                raise ValueError(
                    f"{type(self).__name__} trains on cached features: DATALOADER.TRAIN_X.SAMPLER must be "
                    f"RandomSampler (got {sampler})"
                )
            self.train_loader_x = FeatureLoader(
                self.dataset.train_x,
                self._weak_encoder(),
                cfg.DATALOADER.TRAIN_X.BATCH_SIZE,
                cfg.INPUT.VIEWS,
                cfg.SEED,
                self.accelerator.process_index,
                self.accelerator.num_processes,
            )

    def foundation_models(self) -> list[dict[str, Any]]:
        """Return the description of the backbone."""
        return [describe(self.cfg, self.backbone)]

    def _weak_encoder(self) -> Callable[[Sequence[str], Sequence[int], bool], Tensor]:
        """Return `_encode_views` without a reference to the trainer, whose memory a cycle would keep."""
        trainer = weakref.proxy(self)
        return lambda paths, views, keep: trainer._encode_views(paths, views, keep)

    def _encode_views(self, paths: Sequence[str], views: Sequence[int], keep: bool = True) -> Tensor:
        """Return the features [N, V, D] of augmented views."""
        return self._extract(paths, self.dm.tfm_train, views=views, keep=keep)

    def encode(self, paths: Sequence[str]) -> Tensor:
        """Return the features [N, D] of one centre crop of each image, without augmentation."""
        return self._extract(paths, self.dm.tfm_test)

    def _extract(self, paths: Sequence[str], transform: Callable, **options: Any) -> Tensor:
        cfg = self.cfg
        options |= {"dataset": cfg.DATASET.NAME, "upright": cfg.DATASET.UPRIGHT, "workers": cfg.DATALOADER.NUM_WORKERS}
        return features.extract(self.backbone, paths, transform, shared=True, **options)

    # --- the zero-shot half -------------------------------------------------------------------------

    @property
    def zeroshot_weights(self) -> Tensor:
        """The zero-shot classifier [C, D], normalised: text features averaged over the dataset's templates."""
        if not hasattr(self, "_zeroshot_weights"):
            self._zeroshot_weights = zeroshot_classifier(self.backbone, self.classnames, self.dataset.templates).float()
        return self._zeroshot_weights

    def cosine_logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Return exp(logit_scale) times the cosines [B, C] of image features [B, D] and text features [C, D]."""
        return cosine_logits(self.backbone, image_features, text_features)

    @torch.no_grad()
    def zeroshot_logits(self, paths: Sequence[str]) -> Tensor:
        """Return the logits [N, C] of the pre-trained model, not calibrated."""
        return self._mean_over_crops(lambda features: self.cosine_logits(features, self.zeroshot_weights), paths)

    def _mean_over_crops(self, logits_of: Callable[[Tensor], Tensor], paths: Sequence[str]) -> Tensor:
        """Return logits [N, C] averaged over ``TEST.CROPS`` views of each image."""
        crops = [self._extract(paths, transform) for transform in self.dm.tfm_crops]  # [N, D] each

        def mean(rows: slice) -> dict[str, Tensor]:
            logits = logits_of(torch.cat([crop[rows] for crop in crops])).unflatten(0, (len(crops), -1))
            return {"logits": logits.mean(0) if len(crops) > 1 else logits[0]}

        return in_blocks(mean, row_blocks(len(paths), len(crops) * self.num_classes))["logits"]

    # --- as functions of features and of images, for export -----------------------------------------

    def cosine_head(self, text_features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the `linear_head` of the `cosine_logits` with text features [C, D]."""
        rows = F.normalize(text_features.detach().float(), dim=-1)
        return self.backbone.logit_scale.detach().exp().float() * rows, rows.new_zeros(len(rows))

    def reads_features_of(self, other: SimpleTrainer) -> bool:
        """Return whether another trainer predicts from the features of the same tower and crops."""
        if not isinstance(other, CLIPTrainer):
            return False
        mine, theirs = (
            (trainer.backbone.id, trainer.backbone.dtype, repr(trainer.dm.tfm_crops), trainer.cfg.DATASET.UPRIGHT)
            for trainer in (self, other)
        )
        return mine == theirs

    @torch.no_grad()
    def mean_features(self, paths: Sequence[str]) -> Tensor:
        """Return the features x [N, D] that `linear_head` reads: the mean of the crops' normalised features."""
        crops = (F.normalize(self._extract(paths, transform), dim=-1) for transform in self.dm.tfm_crops)
        return torch.stack(list(crops)).mean(0)

    def image_model(self) -> nn.Module:
        """Return the prediction as a module; a linear trainer is its image tower and its linear head."""
        if self.needs_images:
            return super().image_model()
        head = self.linear_head()
        logits = self.logits if head is None else functools.partial(linear_logits, *head)
        return self.feature_model(logits)

    def feature_model(self, logits_of: Callable[[Tensor], Tensor]) -> ImageModel:
        """Return the `image_model` of a function of image features [B, D]."""

        def logits(images: Tensor) -> Tensor:
            return logits_of(self.backbone.encode_image(images).float())

        return ImageModel(self, logits, [self.backbone.visual, *self._models.values()])

    # --- training and prediction --------------------------------------------------------------------

    def register_for_training(self, name: str, module: nn.Module, class_bound: bool = False) -> None:
        """Move a module to the device and register it with the optimizer and schedule of the config.

        Args:
            name: the folder of its checkpoints.
            module: the module to train.
            class_bound: whether its weights belong to single classes; its checkpoint is then refused for other classes.
        """
        if class_bound:
            bind_to_classes(module, self.classnames)
        module.to(self.device)
        optimizer = build_optimizer(module, self.cfg.OPTIM)
        self.register_model(name, module, optimizer, build_lr_scheduler(optimizer, self.cfg.OPTIM))

    def logits(self, image_features: Tensor) -> Tensor:
        """Return the logits [B, C] of image features [B, D]; a method defines it."""
        raise NotImplementedError(f"{type(self).__name__} must define logits(image_features)")

    def model_inference(self, input: Tensor) -> Tensor:
        """Return the logits [B, C] of a batch."""
        return self.logits(input)

    def parse_batch_train(self, batch: dict) -> tuple[Tensor, ...]:
        """Return images or features, and labels, on the device."""
        keys = ("img" if self.needs_images else "features", "label")
        return tuple(batch[key].to(self.device, non_blocking=True) for key in keys)

    def forward_backward(self, batch: dict) -> dict[str, Tensor]:
        """Take a step on a batch; return its loss and accuracy."""
        inputs, labels = self.parse_batch_train(batch)
        with self.accelerator.autocast():
            logits = self.logits(inputs)
        loss = self.loss(logits.float(), labels)
        self.model_backward_and_update(loss)
        return {"loss": loss.detach(), "acc": compute_accuracy(logits.detach(), labels)[0]}

    def run_epoch(self) -> None:
        """Train on each batch once, then step the schedules."""
        super().run_epoch()
        self.update_lr()

    @torch.no_grad()
    def predict(self, paths: Sequence[str]) -> Tensor:
        """Return the logits [N, C] of images without augmentation, averaged over ``TEST.CROPS`` views."""
        if self.needs_images:
            return super().predict(paths)
        self.set_model_mode("eval")
        return self._mean_over_crops(self.logits, paths).float()

    def class_groups(self) -> dict[str, Tensor]:
        """Return the class indices of each group: by training counts, by the pre-training prior, and crossed."""
        if not self.dataset.train_x:  # a test-only set
            return {}
        groups = {**super().class_groups(), **dataset_groups(self.cfg, self.device)}
        return groups | crossed_groups(groups)

    def labelled(self, items: Sequence[Datum]) -> tuple[list[str], Tensor]:
        """Return the paths and labels [N] of training or validation images."""
        labels = [item.label for item in items]
        return [item.impath for item in items], torch.tensor(labels, dtype=torch.long, device=self.device)
