"""What every trainer on a CLIP shares: backbone, features, zero-shot head, the training step."""

import weakref
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from unskew.clip import backbones, features
from unskew.clip.text import cosine_logits, zeroshot_classifier
from unskew.data.loaders import DataManager
from unskew.debias import losses
from unskew.debias.metrics import compute_accuracy, crossed_groups
from unskew.engine.checkpoint import bind_to_classes
from unskew.engine.dataset_groups import dataset_groups
from unskew.engine.optim import build_lr_scheduler, build_optimizer
from unskew.engine.trainer import TrainerX
from unskew.utils.seeds import derive_seed


class FeatureLoader:
    """Batches of the training images' features; epoch e uses augmented view e modulo ``views``.

    The order of epoch e depends on the seed and e alone, so that a resumed run sees the same
    batches. An incomplete last batch is dropped if there is a complete one, as Dassl does.

    Args:
        encode: ``encode(paths, views, keep)`` -> features [N, V, D].
        views: how many views are kept; 0 draws (and encodes) a new one every epoch.
        rank, world: this process and how many there are; each takes its part of every epoch.
    """

    def __init__(
        self, items: Sequence, encode, batch_size: int, views: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        self.paths = [item.impath for item in items]
        self.labels = torch.tensor([item.label for item in items])
        self.encode, self.batch_size, self.views, self.seed = encode, batch_size, views, seed
        self.rank, self.world = rank, world
        self.epoch = 0
        self._kept: Tensor | None = None  # [N, V, D]

    def __len__(self) -> int:
        return max(1, len(self.paths) // self.world // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def _view(self) -> Tensor:
        """This epoch's features [N, D]."""
        if self.views == 0:
            return self.encode(self.paths, [derive_seed(self.seed, self.epoch)], False)[:, 0]
        if self._kept is None:
            self._kept = self.encode(self.paths, range(self.views), True)
            self.labels = self.labels.to(self._kept.device)
        return self._kept[:, self.epoch % self.views]

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        epoch = {"features": self._view()}
        device = epoch["features"].device
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        order = torch.randperm(len(self.paths), generator=generator)[self.rank :: self.world].to(device)
        epoch["label"] = self.labels.to(device)
        epoch = {name: rows.index_select(0, order) for name, rows in epoch.items()} | {"index": order}
        for step in range(len(self)):
            batch = slice(step * self.batch_size, (step + 1) * self.batch_size)
            yield {name: values[batch] for name, values in epoch.items()}


def _check_loader(node, trainer: str) -> None:
    if node.TRAIN_X.SAMPLER != "RandomSampler":
        raise ValueError(
            f"{trainer} trains on cached features: DATALOADER.TRAIN_X.SAMPLER must be RandomSampler, "
            f"got {node.TRAIN_X.SAMPLER}"
        )


class CLIPTrainer(TrainerX):
    """Base of the trainers here. A method defines ``build_model`` and ``logits``; it inherits the rest.

    ``build_model`` calls ``register_for_training`` with the module to train, or registers nothing.
    ``logits(features)`` maps image features [B, D] to logits [B, C]. A trainer with ``needs_images`` receives the
    preprocessed images [B, 3, H, W] instead of features.

    Attributes:
        loss: the training loss, a function of logits [B, C] and labels [B].

    Example:
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

    def check_cfg(self, cfg) -> None:
        if cfg.INPUT.NO_TRANSFORM:
            raise ValueError("INPUT.NO_TRANSFORM must be False: CLIP's image tower needs its own preprocessing")
        if cfg.DATALOADER.K_TRANSFORMS != 1:
            raise ValueError(
                f"DATALOADER.K_TRANSFORMS must be 1 for CLIP's trainers, got {cfg.DATALOADER.K_TRANSFORMS}"
            )
        if cfg.INPUT.VIEWS < 0:
            raise ValueError(f"INPUT.VIEWS must be 0 (a new view every epoch) or more, got {cfg.INPUT.VIEWS}")

    def build_data_loader(self) -> None:
        cfg = self.cfg
        self.backbone = backbones.load_backbone(cfg.MODEL.BACKBONE.NAME, cfg.TRAINER.PREC, self.device)
        self.dm = DataManager(cfg, backbone=self.backbone)
        self.train_loader_x, self.train_loader_u = self.dm.train_loader_x, self.dm.train_loader_u
        self.val_loader, self.test_loader = self.dm.val_loader, None  # test labels are the evaluator's alone
        self.num_classes, self.num_source_domains = self.dm.num_classes, self.dm.num_source_domains
        self.lab2cname = self.dm.lab2cname
        self.dataset, self.classnames = self.dm.dataset, self.dm.dataset.classnames
        if not self.needs_images:
            _check_loader(cfg.DATALOADER, type(self).__name__)
            encode = weakref.WeakMethod(self._encode_views)  # a trainer out of use leaves the memory at once
            self.train_loader_x = FeatureLoader(
                self.dataset.train_x,
                lambda *views: encode()(*views),
                cfg.DATALOADER.TRAIN_X.BATCH_SIZE,
                min(cfg.INPUT.VIEWS, cfg.OPTIM.MAX_EPOCH),
                cfg.SEED,
                self.accelerator.process_index,
                self.accelerator.num_processes,
            )

    def _encode_views(self, paths: Sequence[str], views: Sequence[int], keep: bool = True) -> Tensor:
        """Features [N, V, D] of augmented views."""
        return self._extract(paths, self.dm.tfm_train, views=views, keep=keep)

    def encode(self, paths: Sequence[str]) -> Tensor:
        """Features [N, D] of images without augmentation, one centre crop of each."""
        return self._extract(paths, self.dm.tfm_test)

    def _extract(self, paths: Sequence[str], transform, **options) -> Tensor:
        where = {"dataset": self.cfg.DATASET.NAME, "workers": self.cfg.DATALOADER.NUM_WORKERS}
        return features.extract(self.backbone, paths, transform, **where, **options)

    # --- the zero-shot half -------------------------------------------------------------------------

    @property
    def zeroshot_weights(self) -> Tensor:
        """[C, D], normalised: the text features of the dataset's templates, averaged."""
        if not hasattr(self, "_zeroshot_weights"):
            self._zeroshot_weights = zeroshot_classifier(self.backbone, self.classnames, self.dataset.templates).float()
        return self._zeroshot_weights

    def cosine_logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """exp(logit_scale) * cos: [B, D], [C, D] -> [B, C]."""
        return cosine_logits(self.backbone, image_features, text_features)

    @torch.no_grad()
    def zeroshot_logits(self, paths: Sequence[str]) -> Tensor:
        """Logits [N, C] of the untouched model, not calibrated."""
        return self._mean_over_crops(lambda features: self.cosine_logits(features, self.zeroshot_weights), paths)

    def _mean_over_crops(self, logits_of: Callable[[Tensor], Tensor], paths: Sequence[str]) -> Tensor:
        """Logits [N, C], each the mean over ``TEST.CROPS`` views of an image."""
        crops = [self._extract(paths, transform) for transform in self.dm.tfm_crops]
        return logits_of(torch.cat(crops)).unflatten(0, (len(crops), -1)).mean(0)

    # --- training and prediction --------------------------------------------------------------------

    def register_for_training(self, name: str, module: torch.nn.Module, class_bound: bool = False) -> None:
        """Move a module to the device and train its parameters as the config says.

        Args:
            class_bound: its weights are of these classes, and a checkpoint of it is not loaded for others.
        """
        if class_bound:
            bind_to_classes(module, self.classnames)
        module.to(self.device)
        optimizer = build_optimizer(module, self.cfg.OPTIM)
        self.register_model(name, module, optimizer, build_lr_scheduler(optimizer, self.cfg.OPTIM))

    def logits(self, image_features: Tensor) -> Tensor:
        """[B, D] -> [B, C]; what a method defines."""
        raise NotImplementedError(f"{type(self).__name__} has to define logits(image_features)")

    def model_inference(self, input: Tensor) -> Tensor:
        return self.logits(input)

    def parse_batch_train(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Images or features, and labels, on the device."""
        keys = ("img" if self.needs_images else "features", "label")
        return tuple(batch[key].to(self.device, non_blocking=True) for key in keys)

    def forward_backward(self, batch: dict) -> dict[str, Tensor]:
        inputs, labels = self.parse_batch_train(batch)
        with self.accelerator.autocast():
            logits = self.logits(inputs)
        loss = self.loss(logits.float(), labels)
        self.model_backward_and_update(loss)
        return {"loss": loss.detach(), "acc": compute_accuracy(logits.detach(), labels)[0]}

    def run_epoch(self) -> None:
        super().run_epoch()
        self.update_lr()

    @torch.no_grad()
    def predict(self, paths: Sequence[str]) -> Tensor:
        """Logits [N, C] of images, without augmentation; with ``TEST.CROPS`` their mean over the crops."""
        if self.needs_images:
            return super().predict(paths)
        self.set_model_mode("eval")
        return self._mean_over_crops(self.logits, paths).float()

    def class_groups(self) -> dict[str, Tensor]:
        if not self.dataset.train_x:  # a test-only set
            return {}
        groups = {**super().class_groups(), **dataset_groups(self.cfg, self.device)}
        return groups | crossed_groups(groups)

    def labelled(self, items: Sequence) -> tuple[list[str], Tensor]:
        """Paths and labels [N] of training or validation images."""
        return [item.impath for item in items], torch.tensor(
            [item.label for item in items], dtype=torch.long, device=self.device
        )
