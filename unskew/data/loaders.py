"""Loaders of images: `DatasetWrapper`, `build_data_loader` and `DataManager`, with Dassl's names.

One generator per loader decides its order and the seeds of its workers. `seed_loader` seeds it from (seed, epoch), so
that an epoch of a resumed run equals the same epoch of an uninterrupted run.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from tabulate import tabulate
from torch.utils.data import DataLoader, Dataset
from yacs.config import CfgNode

from unskew.data.dataset import DatasetBase, Datum, build_dataset
from unskew.data.fewshot import expected_shots
from unskew.data.images import read_image
from unskew.data.samplers import SHARE, build_sampler
from unskew.data.transforms import Preprocessing, build_crops, build_transform
from unskew.utils import processes
from unskew.utils.logging import warn_once
from unskew.utils.seeds import derive_seed

logger = logging.getLogger("unskew")

# Fewer images than this are read faster than a worker process starts.
WORKERS_FROM = 256


def seed_loader(loader: Any, seed: int, epoch: int) -> None:
    """Seed a loader for ``epoch``: its generator, its augmentation, and its ``set_epoch`` if it has this method."""
    generator = getattr(loader, "generator", None)
    if generator is not None and seed >= 0:
        generator.manual_seed(derive_seed(seed, epoch))
        if isinstance(loader.dataset, DatasetWrapper):
            loader.dataset.epoch_seed = derive_seed(seed, epoch)
    if hasattr(loader, "set_epoch"):
        loader.set_epoch(epoch)


class SharedLoader:
    """This process's part of each batch of a loader; the batches have the key `SHARE`.

    The main process draws the batches of an epoch, so that they are those of a run with one process.
    """

    def __init__(self, loader: DataLoader) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the loader, such as its ``generator``."""
        return getattr(self.__dict__["loader"], name)

    def _draw(self) -> list[list[int]]:
        torch.empty((), dtype=torch.int64).random_(generator=self.loader.generator)  # as an iterator of the loader does
        return list(self.loader.batch_sampler or ())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        drawn = processes.from_main(self._draw)
        shares = [processes.Share.of(len(batch), processes.rank(), processes.count()) for batch in drawn]
        parts = [[batch[place] for place in share.rows] for batch, share in zip(drawn, shares, strict=True)]
        names = ("dataset", "num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "generator")
        options: dict[str, Any] = {name: getattr(self.loader, name) for name in names}
        batches = iter(DataLoader(batch_sampler=parts, **options))
        for share in shares:
            batch: Any = None
            with processes.together():
                batch = next(batches)
            yield {**batch, SHARE: share} if isinstance(batch, dict) else batch


class Unlabelled(NamedTuple):
    """An unlabelled item (label -1) for prediction."""

    impath: str
    label: int = -1
    domain: int = -1
    classname: str = ""


Items = Sequence[Datum | Unlabelled]


class DatasetWrapper(Dataset[dict[str, Any]]):
    """A dataset of dicts with ``label``, ``domain``, ``impath``, ``index`` and ``img``.

    A tuple of transforms gives ``img``, ``img2`` and so on. Without a transform ``img`` is the PIL image.

    Attributes:
        epoch_seed: the seed of the augmentation, which depends on it and on the number of the image, but not on workers
            or processes; ``None`` for PyTorch's global generator.
    """

    def __init__(
        self,
        cfg: CfgNode,
        data_source: Items,
        transform: Callable | Sequence[Callable] | None = None,
        is_train: bool = False,
    ) -> None:
        self.cfg, self.data_source, self.transform, self.is_train = cfg, data_source, transform, is_train
        self.upright = cfg.DATASET.UPRIGHT
        self.epoch_seed: int | None = None

    def __len__(self) -> int:
        return len(self.data_source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.data_source[index]
        image = read_image(item.impath, dataset=self.cfg.DATASET.NAME, upright=self.upright)
        path = item.impath if isinstance(item.impath, str) else ""  # a prediction may be of PIL images
        output = {"label": item.label, "domain": item.domain, "impath": path, "index": index}
        if not self.is_train or self.epoch_seed is None:
            return {**output, **self._views(image)}
        state = torch.get_rng_state()
        try:
            torch.default_generator.manual_seed(derive_seed(self.epoch_seed, index))
            return {**output, **self._views(image)}
        finally:
            torch.set_rng_state(state)

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
    cfg: CfgNode,
    sampler_type: str = "SequentialSampler",
    data_source: Items | None = None,
    batch_size: int = 64,
    n_domain: int = 0,
    n_ins: int = 2,
    tfm: Callable | Sequence[Callable] | None = None,
    is_train: bool = True,
    dataset_wrapper: Callable[..., Dataset] | None = None,
    *,
    own_generator: bool = True,
) -> DataLoader:
    """Build a loader of `DatasetWrapper`'s dicts.

    In training, the loader drops an incomplete last batch if there is a complete one.

    Args:
        cfg: the config.
        sampler_type: name of the sampler.
        data_source: the items.
        batch_size: images per batch.
        n_domain: see `build_sampler`.
        n_ins: see `build_sampler`.
        tfm: the transform or transforms of `DatasetWrapper`.
        is_train: whether the loader is for training.
        dataset_wrapper: replaces `DatasetWrapper`.
        own_generator: draw from a new generator seeded with ``cfg.SEED``, not from the global one.

    Raises:
        ValueError: there are no images, or a key needs Dassl's API.
    """
    if not data_source:
        raise ValueError(f"dataset '{cfg.DATASET.NAME}' has no images for a loader; check its folder and its split")
    if dataset_wrapper is None:
        _check_keys(cfg.DATALOADER)
        dataset_wrapper = DatasetWrapper
    generator = torch.Generator().manual_seed(derive_seed(cfg.SEED)) if own_generator else None
    sampler = build_sampler(sampler_type, cfg, data_source, batch_size, n_domain, n_ins, generator)
    workers = min(cfg.DATALOADER.NUM_WORKERS, processes.cores()) if len(data_source) >= WORKERS_FROM else 0
    return DataLoader(
        dataset_wrapper(cfg, data_source, transform=tfm, is_train=is_train),
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        drop_last=is_train and len(sampler) >= batch_size,  # type: ignore[arg-type]  # all our samplers have a length
        pin_memory=torch.cuda.is_available() and cfg.USE_CUDA,
        generator=generator,
    )


def _check_keys(node: CfgNode) -> None:
    if node.K_TRANSFORMS != 1 or node.RETURN_IMG0:
        raise ValueError(
            f"DATALOADER.K_TRANSFORMS {node.K_TRANSFORMS} and RETURN_IMG0 {node.RETURN_IMG0} need a trainer of Dassl's "
            "API: derive it from `dassl.engine`, or set K_TRANSFORMS 1 and RETURN_IMG0 False"
        )


def keep_test_apart(dataset: DatasetBase, name: str) -> DatasetBase:
    """Empty ``train_x`` or ``val`` of a dataset if it has test images, on which nothing may be fitted.

    Datasets written for Dassl may repeat their test images as val, and test-only ones as training images.
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
        cfg: the config.
        custom_tfm_train: replaces the training transform of `build_transform`.
        custom_tfm_test: replaces the test transform.
        dataset_wrapper: replaces `DatasetWrapper`.
        backbone: decides size and normalisation, see `build_transform`.
        dataset: replaces ``build_dataset(cfg)``.

    Attributes:
        dataset: has ``train_x``, ``train_u``, ``val`` and ``test``.
        train_loader_x, train_loader_u, val_loader, test_loader: ``None`` if the split is empty.
        tfm_train, tfm_test: the transforms for training and testing.
        tfm_crops: the transforms of the views over which predictions are averaged; ``[tfm_test]`` for one view.
        num_classes, num_source_domains, lab2cname: as in Dassl.
    """

    _build_loader: Callable[..., DataLoader] = staticmethod(build_data_loader)

    def __init__(
        self,
        cfg: CfgNode,
        custom_tfm_train: Callable | None = None,
        custom_tfm_test: Callable | None = None,
        dataset_wrapper: Callable[..., Dataset] | None = None,
        backbone: Preprocessing | None = None,
        dataset: DatasetBase | None = None,
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

    def _train_loader(self, items: Items, node: CfgNode) -> DataLoader:
        sampling = (node.SAMPLER, items, node.BATCH_SIZE, node.N_DOMAIN, node.N_INS)
        return self._build_loader(self.cfg, *sampling, self.tfm_train, True, self.dataset_wrapper)

    def _test_loader(self, items: Items) -> DataLoader:
        return self._loader_for_testing(self.cfg.DATALOADER.TEST.SAMPLER, items, self.tfm_test)

    def path_loader(self, paths: Sequence[str]) -> DataLoader:
        """Load the images of ``paths`` in order, as for testing; every label and domain is -1.

        With several crops they are ``img``, ``img2`` and so on.
        """
        transform = self.tfm_crops if len(self.tfm_crops) > 1 else self.tfm_crops[0]
        return self._loader_for_testing("SequentialSampler", [Unlabelled(path) for path in paths], transform)

    def _loader_for_testing(self, sampler: str, items: Items, transform: Any) -> DataLoader:
        size = self.cfg.DATALOADER.TEST.BATCH_SIZE
        options = {"tfm": transform, "is_train": False, "dataset_wrapper": self.dataset_wrapper}
        return self._build_loader(self.cfg, sampler, items, size, **options)

    def show_dataset_summary(self, cfg: CfgNode) -> None:
        """Log a table of the dataset's classes and split sizes."""
        rows: list[tuple[str, object]] = [("Dataset", cfg.DATASET.NAME)]
        for name, domains in (("Source", cfg.DATASET.SOURCE_DOMAINS), ("Target", cfg.DATASET.TARGET_DOMAINS)):
            if domains:
                rows.append((name, list(domains)))
        rows.append(("# classes", f"{self.num_classes:,}"))
        for split in ("train_x", "train_u", "val", "test"):
            items = getattr(self.dataset, split)
            if items:
                rows.append((f"# {split}", f"{len(items):,}"))
        logger.info(tabulate(rows))
        for split, shots in expected_shots(cfg).items():
            _warn_of_small_classes(split, getattr(self.dataset, split) or [], self.lab2cname, shots)


def _warn_of_small_classes(split: str, items: Items, names: Mapping[int, str], shots: int) -> None:
    """Warn of classes with fewer images than shots; a split without any image is empty on purpose."""
    counts = Counter(item.label for item in items)
    small = [(counts[label], name) for label, name in names.items() if counts[label] < shots]
    if small and items:
        fewest, name = min(small)
        logger.warning(
            f"{split}: {len(small):,} of {len(names):,} classes have fewer than {shots} images, for instance '{name}' "
            f"with {fewest}; all of their images are used"
        )
