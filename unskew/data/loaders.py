"""Images on disk -> batches: `DatasetWrapper`, `DataManager`, with Dassl's names.

One generator a loader decides its order and its workers' seeds. `seed_loader` sets it from (seed,
epoch), so that an epoch is the same whether the run came there in one go or was resumed.
"""

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from tabulate import tabulate
from torch.utils.data import DataLoader, Dataset

from unskew.data.dataset import build_dataset
from unskew.data.images import read_image
from unskew.data.samplers import build_sampler
from unskew.data.transforms import build_crops, build_transform
from unskew.utils.logging import warn_once
from unskew.utils.seeds import derive_seed

logger = logging.getLogger("unskew")

# Fewer images than this are read before a worker process has started.
WORKERS_FROM = 256


def seed_loader(loader, seed: int, epoch: int) -> None:
    """Make the loader's next pass that of ``epoch``. A loader with its own ``set_epoch`` is told the epoch."""
    generator = getattr(loader, "generator", None)
    if generator is not None and seed >= 0:
        generator.manual_seed(derive_seed(seed, epoch))
    if hasattr(loader, "set_epoch"):
        loader.set_epoch(epoch)


# --- loaders -----------------------------------------------------------------------------------------


class Unlabelled(NamedTuple):
    """An image whose label is nobody's business, with `Datum`'s attributes."""

    impath: str
    label: int = -1
    domain: int = -1
    classname: str = ""


class DatasetWrapper(Dataset):
    """Items -> ``{"label", "domain", "impath", "index", "img"}``.

    A tuple of transforms gives ``img``, ``img2`` and so on. Without a transform ``img`` is the PIL image.
    """

    def __init__(self, cfg, data_source: Sequence, transform=None, is_train: bool = False) -> None:
        self.cfg, self.data_source, self.transform, self.is_train = cfg, data_source, transform, is_train

    def __len__(self) -> int:
        return len(self.data_source)

    def __getitem__(self, index: int) -> dict:
        item = self.data_source[index]
        image = read_image(item.impath, self.cfg.DATASET.NAME)
        output = {"label": item.label, "domain": item.domain, "impath": item.impath, "index": index}
        return {**output, **self._views(image)}

    def _views(self, image: Image.Image) -> dict[str, Any]:
        """Apply the transforms: ``{"img": ..., "img2": ...}``."""
        if self.transform is None:
            return {"img": image}
        transforms = self.transform if isinstance(self.transform, list | tuple) else [self.transform]
        names = ["img", *(f"img{number}" for number in range(2, len(transforms) + 1))]
        return {
            name: self._transform_image(transform, image) for name, transform in zip(names, transforms, strict=True)
        }

    def _transform_image(self, transform: Callable, image: Image.Image) -> Any:
        return transform(image)


def build_data_loader(
    cfg,
    sampler_type: str = "SequentialSampler",
    data_source: Sequence | None = None,
    batch_size: int = 64,
    n_domain: int = 0,
    n_ins: int = 2,
    tfm=None,
    is_train: bool = True,
    dataset_wrapper=None,
    *,
    own_generator: bool = True,
) -> DataLoader:
    """A loader of `DatasetWrapper`'s dicts.

    In training an incomplete last batch is dropped if there is a complete one.

    Args:
        own_generator: the loader draws from a generator of its own, seeded with ``cfg.SEED``; else from the global one.

    Raises:
        ValueError: no images.
    """
    if not data_source:
        raise ValueError(f"dataset '{cfg.DATASET.NAME}' has no images for a loader; check its folder and its split")
    generator = torch.Generator().manual_seed(derive_seed(cfg.SEED)) if own_generator else None
    sampler = build_sampler(sampler_type, cfg, data_source, batch_size, n_domain, n_ins, generator)
    workers = min(cfg.DATALOADER.NUM_WORKERS, os.cpu_count() or 1) if len(data_source) >= WORKERS_FROM else 0
    if dataset_wrapper is None:
        _check_keys(cfg.DATALOADER)
        dataset_wrapper = DatasetWrapper
    return DataLoader(
        dataset_wrapper(cfg, data_source, transform=tfm, is_train=is_train),
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        drop_last=is_train and len(sampler) >= batch_size,
        pin_memory=torch.cuda.is_available() and cfg.USE_CUDA,
        generator=generator,
    )


def _check_keys(node) -> None:
    if node.K_TRANSFORMS != 1 or node.RETURN_IMG0:
        raise ValueError(
            f"DATALOADER.K_TRANSFORMS {node.K_TRANSFORMS} and RETURN_IMG0 {node.RETURN_IMG0} need a trainer of Dassl's "
            "API: derive it from `dassl.engine`, or set K_TRANSFORMS 1 and RETURN_IMG0 False"
        )


def keep_test_apart(dataset, name: str):
    """The dataset without a ``train_x`` or ``val`` that has test images, on which nothing may be fitted.

    Datasets written for Dassl may give test images as val too, and those that are only tested as training images.
    """
    tested = {item.impath for item in dataset.test or ()}
    for split in ("train_x", "val"):
        if any(item.impath in tested for item in getattr(dataset, split) or ()):
            warn_once(f"{split} of '{name}' has test images: this run has no {split}")
            setattr(dataset, split, [])
    return dataset


class DataManager:
    """The dataset of a config with its loaders.

    Args:
        custom_tfm_train, custom_tfm_test: in place of `build_transform`'s.
        dataset_wrapper: in place of `DatasetWrapper`.
        backbone: decides size and normalisation, see `build_transform`.
        dataset: in place of ``build_dataset(cfg)``.

    Attributes:
        dataset: with ``train_x``, ``train_u``, ``val``, ``test``.
        train_loader_x, train_loader_u, val_loader, test_loader: ``None`` where the split is empty.
        tfm_crops: the transforms of the views of which predictions are the mean; ``[tfm_test]`` for one.
        tfm_train, tfm_test, num_classes, num_source_domains, lab2cname.
    """

    _build_loader = staticmethod(build_data_loader)

    def __init__(
        self, cfg, custom_tfm_train=None, custom_tfm_test=None, dataset_wrapper=None, backbone=None, dataset=None
    ) -> None:
        self.cfg, self.dataset_wrapper = cfg, dataset_wrapper
        self.dataset = keep_test_apart(build_dataset(cfg), cfg.DATASET.NAME) if dataset is None else dataset
        self.tfm_train = build_transform(cfg, backbone, True) if custom_tfm_train is None else custom_tfm_train
        self.tfm_test = build_transform(cfg, backbone, False) if custom_tfm_test is None else custom_tfm_test
        self.tfm_crops = build_crops(cfg, backbone) if custom_tfm_test is None else [custom_tfm_test]
        node = cfg.DATALOADER
        unlabelled = node.TRAIN_X if node.TRAIN_U.SAME_AS_X else node.TRAIN_U
        self.train_loader_x = self._train_loader(self.dataset.train_x, node.TRAIN_X) if self.dataset.train_x else None
        self.train_loader_u = self._train_loader(self.dataset.train_u, unlabelled) if self.dataset.train_u else None
        self.val_loader = self._test_loader(self.dataset.val) if self.dataset.val else None
        self.test_loader = self._test_loader(self.dataset.test) if self.dataset.test else None
        self.num_classes = self.dataset.num_classes
        self.num_source_domains = len(cfg.DATASET.SOURCE_DOMAINS)
        self.lab2cname = self.dataset.lab2cname
        if cfg.VERBOSE:
            self.show_dataset_summary(cfg)

    def _train_loader(self, items, node) -> DataLoader:
        return self._build_loader(
            self.cfg,
            node.SAMPLER,
            items,
            node.BATCH_SIZE,
            node.N_DOMAIN,
            node.N_INS,
            self.tfm_train,
            is_train=True,
            dataset_wrapper=self.dataset_wrapper,
        )

    def _test_loader(self, items) -> DataLoader:
        node = self.cfg.DATALOADER.TEST
        return self._build_loader(
            self.cfg,
            node.SAMPLER,
            items,
            node.BATCH_SIZE,
            tfm=self.tfm_test,
            is_train=False,
            dataset_wrapper=self.dataset_wrapper,
        )

    def path_loader(self, paths: Sequence[str]) -> DataLoader:
        """The images of ``paths`` in their order, as for testing; every label and domain is -1.

        With several crops they are ``img``, ``img2`` and so on.
        """
        return self._build_loader(
            self.cfg,
            "SequentialSampler",
            [Unlabelled(path) for path in paths],
            self.cfg.DATALOADER.TEST.BATCH_SIZE,
            tfm=self.tfm_crops if len(self.tfm_crops) > 1 else self.tfm_crops[0],
            is_train=False,
            dataset_wrapper=self.dataset_wrapper,
        )

    def show_dataset_summary(self, cfg) -> None:
        rows = [["Dataset", cfg.DATASET.NAME]]
        rows += [[name, list(d)] for name, d in _domains(cfg) if d]
        rows.append(["# classes", f"{self.num_classes:,}"])
        for split in ("train_x", "train_u", "val", "test"):
            items = getattr(self.dataset, split)
            if items:
                rows.append([f"# {split}", f"{len(items):,}"])
        logger.info(tabulate(rows))


def _domains(cfg) -> list[tuple[str, Sequence[str]]]:
    return [("Source", cfg.DATASET.SOURCE_DOMAINS), ("Target", cfg.DATASET.TARGET_DOMAINS)]
