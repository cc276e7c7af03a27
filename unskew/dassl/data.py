"""`dassl.data`: datasets that keep their state in Dassl's attributes, and the manager that takes its arguments."""

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms as T
from yacs.config import CfgNode

from unskew.dassl.samplers import build_sampler
from unskew.dassl.transforms import INTERPOLATION_MODES, build_transform
from unskew.data import dataset, loaders
from unskew.data.dataset import DATASET_REGISTRY
from unskew.data.transforms import interpolation, pair
from unskew.download.archives import extract
from unskew.download.fetch import fetch
from unskew.download.sources import Source

__all__ = [
    "DATASET_REGISTRY",
    "INTERPOLATION_MODES",
    "DataManager",
    "DatasetBase",
    "DatasetWrapper",
    "Datum",
    "build_data_loader",
    "build_dataset",
    "build_sampler",
    "build_transform",
]

logger = logging.getLogger("unskew")


def _kept_in(name: str) -> property:
    """A property whose value is another attribute's, which may also be read and set by its own name."""
    return property(lambda self: getattr(self, name), lambda self, value: setattr(self, name, value))


class Datum(dataset.Datum):
    """`unskew.data.Datum` with Dassl's pickles; it may be relabelled, and the label -1 says that there is none."""

    lowest = -1
    __setattr__, __eq__, __hash__ = object.__setattr__, object.__eq__, object.__hash__  # two images are never one
    _impath, _label = _kept_in("impath"), _kept_in("label")
    _domain, _classname = _kept_in("domain"), _kept_in("classname")

    def __getstate__(self) -> dict:
        fields = {f"_{name}": getattr(self, name) for name in ("impath", "label", "domain", "classname")}
        return {**self.__dict__, **fields}

    def __setstate__(self, state: dict) -> None:
        for name, value in state.items():
            setattr(self, name, value)


# Few-shot files pickle a class by its module and name; so either side reads the other's.
Datum.__module__ = "dassl.data.datasets.base_dataset"


class DatasetBase(dataset.DatasetBase):
    """A dataset whose classes are those of its training images, as in Dassl: val and test may number theirs anew.

    Attributes:
        domains: names of all domains.

    Raises:
        ValueError: no training images.
    """

    domains: Sequence[str] = ()
    train_x, train_u = _kept_in("_train_x"), _kept_in("_train_u")
    val, test = _kept_in("_val"), _kept_in("_test")
    num_classes, lab2cname, classnames = _kept_in("_num_classes"), _kept_in("_lab2cname"), _kept_in("_classnames")

    def __init__(self, train_x=None, train_u=None, val=None, test=None) -> None:
        if not train_x:
            raise ValueError(
                f"{type(self).__name__}: train_x has no images, and the classes are those of train_x; a dataset that "
                "is only tested passes its test images there too"
            )
        lab2cname, classnames = self.get_lab2cname(train_x)
        super().__init__(train_x, train_u, val, test, classnames)
        self._num_classes, self._lab2cname, self._classnames = self.get_num_classes(train_x), lab2cname, classnames

    @staticmethod
    def get_num_classes(data_source) -> int:
        """The highest label and one."""
        return max(item.label for item in data_source) + 1

    @staticmethod
    def get_lab2cname(data_source) -> tuple[dict[int, str], list[str]]:
        """``{label: class name}``, and the names, both in label order."""
        names = {item.label: item.classname for item in data_source}
        names = {label: names[label] for label in sorted(names)}
        return names, list(names.values())

    def generate_fewshot_dataset(self, *data_sources, num_shots=-1, repeat=False):
        """``num_shots`` images per class of each source, by Python's global generator; fewer than 1: all of them."""
        if num_shots >= 1:
            logger.info(f"Creating a {num_shots}-shot dataset")
        return super().generate_fewshot_dataset(*data_sources, num_shots=num_shots, repeat=repeat)

    def check_input_domains(self, source_domains, target_domains) -> None:
        """Raise ``ValueError`` unless both name domains of the dataset."""
        for role, domains in (("source", source_domains), ("target", target_domains)):
            if not domains:
                raise ValueError(f"no {role} domains; set DATASET.{role.upper()}_DOMAINS to some of {self.domains}")
            self.is_input_domain_valid(domains)

    def is_input_domain_valid(self, input_domains) -> None:
        """Raise ``ValueError`` for a domain that the dataset has not."""
        for domain in input_domains:
            if domain not in self.domains:
                raise ValueError(f"unknown domain '{domain}'; choose from {self.domains}")

    def download_data(self, url, dst, from_gdrive=True) -> None:
        """Download an archive to ``dst``, if it is not there, and unpack it beside.

        Args:
            url: of a file of Google Drive ("https://drive.google.com/uc?id=ID"), else of any file.

        Raises:
            ConnectionError: it cannot be downloaded; it says what to fetch by hand.
            ValueError: it is damaged, or no .zip, .tar or .tar.gz archive.
        """
        archive = Path(dst)
        fetch(_source(archive.name, url, from_gdrive), archive)
        with tempfile.TemporaryDirectory(prefix=".", dir=archive.parent) as work:
            extract(archive, work)
            for part in Path(work).iterdir():
                target = archive.parent / part.name
                if target.is_dir():
                    shutil.copytree(part, target, symlinks=True, copy_function=os.replace, dirs_exist_ok=True)
                else:
                    os.replace(part, target)
        logger.info(f"File extracted to {archive.parent}")


def _source(name: str, url: str, from_gdrive: bool) -> Source:
    identity = re.search(r"(?:[?&]id=|/d/)([\w-]+)", url) if from_gdrive else None
    return Source(name, f"drive:{identity[1]}" if identity else url)


def build_dataset(cfg):
    """The dataset registered as ``cfg.DATASET.NAME``."""
    if cfg.VERBOSE:
        logger.info(f"Loading dataset: {cfg.DATASET.NAME}")
    return dataset.build_dataset(cfg)


class DatasetWrapper(loaders.DatasetWrapper):
    """Items -> ``{"label", "domain", "impath", "index", "img"}``.

    ``DATALOADER.K_TRANSFORMS`` > 1 gives a list of K augmented tensors as ``img`` in training, and
    ``DATALOADER.RETURN_IMG0`` adds the image without augmentation as ``img0``.
    """

    def __init__(self, cfg: CfgNode, data_source: Sequence[Any], transform: Any = None, is_train: bool = False) -> None:
        super().__init__(cfg, data_source, transform, is_train)
        self.k_tfm = cfg.DATALOADER.K_TRANSFORMS if is_train else 1
        self.return_img0 = cfg.DATALOADER.RETURN_IMG0
        if self.k_tfm > 1 and transform is None:
            raise ValueError(f"DATALOADER.K_TRANSFORMS is {self.k_tfm}, but there is no transform to apply")
        steps = [T.Resize(pair(cfg.INPUT.SIZE), interpolation(cfg.INPUT)), T.ToTensor()]
        if "normalize" in cfg.INPUT.TRANSFORMS:
            steps.append(T.Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD))
        self.to_tensor = T.Compose(steps)

    def _views(self, image: Image.Image) -> dict[str, Any]:
        views = super()._views(image)
        return {**views, "img0": self.to_tensor(image)} if self.return_img0 else views

    def _transform_image(self, transform: Callable[[Image.Image], Tensor], image: Image.Image) -> Tensor | list[Tensor]:
        views = [transform(image) for _ in range(self.k_tfm)]
        return views[0] if self.k_tfm == 1 else views


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
) -> DataLoader:
    """`unskew.data.loaders.build_data_loader`, whose loader draws from PyTorch's global generator."""
    sampling = (sampler_type, data_source, batch_size, n_domain, n_ins)
    wrapper = dataset_wrapper or DatasetWrapper
    return loaders.build_data_loader(cfg, *sampling, tfm, is_train, wrapper, own_generator=False)


class DataManager(loaders.DataManager):
    """The dataset of a config with Dassl's loaders and transforms.

    Args:
        custom_tfm_train, custom_tfm_test: in place of `build_transform`'s.
        dataset_wrapper: in place of `DatasetWrapper`.
    """

    num_classes, lab2cname = _kept_in("_num_classes"), _kept_in("_lab2cname")
    num_source_domains = _kept_in("_num_source_domains")
    _build_loader = staticmethod(build_data_loader)

    def __init__(self, cfg, custom_tfm_train=None, custom_tfm_test=None, dataset_wrapper=None) -> None:
        dataset = build_dataset(cfg)
        transforms = []
        for custom, use, is_train in ((custom_tfm_train, "training", True), (custom_tfm_test, "testing", False)):
            if custom is not None:
                logger.info(f"* Using custom transform for {use}")
            transforms.append(build_transform(cfg, is_train) if custom is None else custom)
        super().__init__(cfg, *transforms, dataset_wrapper, dataset=dataset)
