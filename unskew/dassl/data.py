"""`dassl.data`: datasets with Dassl's attributes, and loaders and a data manager with its arguments."""

import logging
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T
from yacs.config import CfgNode

from unskew.dassl.config import complete
from unskew.dassl.samplers import build_sampler
from unskew.dassl.transforms import INTERPOLATION_MODES, build_transform
from unskew.data import dataset, loaders
from unskew.data.dataset import DATASET_REGISTRY, USER_DATASETS
from unskew.data.transforms import interpolation, pair
from unskew.download.archives import extract
from unskew.download.fetch import fetch
from unskew.download.sources import Source
from unskew.utils.files import move_into_place, remove_leftovers, temporary_path

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

Items = Sequence[dataset.Datum]


def _kept_in(name: str) -> property:
    """Return a property that reads and writes another attribute."""
    return property(lambda self: getattr(self, name), lambda self, value: setattr(self, name, value))


class Datum(dataset.Datum):
    """A mutable `unskew.data.Datum` that pickles as Dassl's; the label -1 means unlabelled."""

    lowest = -1
    # Items are compared by identity, as in Dassl.
    __setattr__, __eq__, __hash__ = object.__setattr__, object.__eq__, object.__hash__
    _impath, _label = _kept_in("impath"), _kept_in("label")
    _domain, _classname = _kept_in("domain"), _kept_in("classname")

    def __getstate__(self) -> dict:
        fields = {f"_{name}": getattr(self, name) for name in ("impath", "label", "domain", "classname")}
        return {**self.__dict__, **fields}

    def __setstate__(self, state: dict) -> None:
        for name, value in state.items():
            setattr(self, name, value)


# A pickle names a class by its module, so with this name Dassl reads our few-shot files and we read Dassl's.
Datum.__module__ = "dassl.data.datasets.base_dataset"


class DatasetBase(dataset.DatasetBase):
    """A dataset whose classes are the classes of its training images, as in Dassl; val and test may number others.

    Attributes:
        domains: names of all domains.

    Raises:
        ValueError: there are no training images.
    """

    domains: ClassVar[Sequence[str]] = ()
    train_x, train_u = _kept_in("_train_x"), _kept_in("_train_u")
    val, test = _kept_in("_val"), _kept_in("_test")
    num_classes, lab2cname, classnames = _kept_in("_num_classes"), _kept_in("_lab2cname"), _kept_in("_classnames")

    def __init__(
        self,
        train_x: Items | None = None,
        train_u: Items | None = None,
        val: Items | None = None,
        test: Items | None = None,
    ) -> None:
        if not train_x:
            raise ValueError(
                f"{type(self).__name__}: train_x has no images, so the classes are unknown; for a test-only dataset, "
                "pass the test images as train_x too"
            )
        lab2cname, classnames = self.get_lab2cname(train_x)
        super().__init__(train_x, train_u, val, test, classnames)
        self._train_u, self._val, self._test = train_u, val, test  # a missing split is None, as in Dassl
        self._num_classes, self._lab2cname, self._classnames = self.get_num_classes(train_x), lab2cname, classnames

    @staticmethod
    def get_num_classes(data_source: Items) -> int:
        """Return the highest label plus 1."""
        return max(item.label for item in data_source) + 1

    @staticmethod
    def get_lab2cname(data_source: Items) -> tuple[dict[int, str], list[str]]:
        """Return ``{label: class name}`` and the class names, both in label order."""
        names = {item.label: item.classname for item in data_source}
        names = {label: names[label] for label in sorted(names)}
        return names, list(names.values())

    # An instance method as in Dassl, whose signature has no generator.
    def generate_fewshot_dataset(  # type: ignore[override]
        self, *data_sources: Items, num_shots: int = -1, repeat: bool = False
    ) -> Any:
        """Draw ``num_shots`` images per class of each source with Python's global generator; all if below 1."""
        if num_shots >= 1:
            logger.info(f"Creating a {num_shots}-shot dataset")
        return super().generate_fewshot_dataset(*data_sources, num_shots=num_shots, repeat=repeat)

    def check_input_domains(self, source_domains: Sequence[str], target_domains: Sequence[str]) -> None:
        """Raise ``ValueError`` unless both are non-empty and name domains of the dataset."""
        for role, domains in (("source", source_domains), ("target", target_domains)):
            if not domains:
                raise ValueError(f"no {role} domains; set DATASET.{role.upper()}_DOMAINS to some of {self.domains}")
            self.is_input_domain_valid(domains)

    def is_input_domain_valid(self, input_domains: Sequence[str]) -> None:
        """Raise ``ValueError`` for an unknown domain."""
        for domain in input_domains:
            if domain not in self.domains:
                raise ValueError(f"unknown domain '{domain}'; choose from {self.domains}")

    def download_data(self, url: str, dst: str | Path, from_gdrive: bool = True) -> None:
        """Download an archive unless it exists, and extract it into its folder.

        Args:
            url: the archive's URL, such as "https://drive.google.com/uc?id=ID".
            dst: path of the archive.
            from_gdrive: whether ``url`` is a file of Google Drive.

        Raises:
            ConnectionError: the download fails.
            ValueError: the archive is damaged, or is not a .zip, .tar or .tar.gz file.
        """
        archive = Path(dst)
        fetch(_source(archive.name, url, from_gdrive), archive)
        remove_leftovers(archive.parent)
        work = temporary_path(archive)
        try:
            extract(archive, work)
            for entry in work.iterdir():
                target = archive.parent / entry.name
                if target.is_dir():
                    shutil.copytree(entry, target, symlinks=True, copy_function=move_into_place, dirs_exist_ok=True)
                else:
                    move_into_place(entry, target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        logger.info(f"File extracted to {archive.parent}")


def _source(name: str, url: str, from_gdrive: bool) -> Source:
    file_id = re.search(r"(?:[?&]id=|/d/)([\w-]+)", url) if from_gdrive else None
    return Source(name, (f"drive:{file_id[1]}" if file_id else url,))


def build_dataset(cfg: CfgNode) -> dataset.DatasetBase:
    """Build the dataset registered as ``cfg.DATASET.NAME``."""
    import unskew.dassl.datasets  # noqa: F401  # registers Dassl's own datasets, which import this module

    if complete(cfg).VERBOSE:
        logger.info(f"Loading dataset: {cfg.DATASET.NAME}")
    return dataset.build_dataset(cfg)


class DatasetWrapper(loaders.DatasetWrapper):
    """A dataset of dicts with ``label``, ``domain``, ``impath``, ``index`` and ``img``.

    ``DATALOADER.K_TRANSFORMS`` > 1 gives a list of K augmented tensors as ``img`` in training, and
    ``DATALOADER.RETURN_IMG0`` adds the image without augmentation as ``img0``.
    """

    def __init__(self, cfg: CfgNode, data_source: Sequence[Any], transform: Any = None, is_train: bool = False) -> None:
        super().__init__(complete(cfg), data_source, transform, is_train)
        self.upright |= cfg.DATASET.NAME in USER_DATASETS  # a script's config may lack our layer of these datasets
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
    cfg: CfgNode,
    sampler_type: str = "SequentialSampler",
    data_source: loaders.Items | None = None,
    batch_size: int = 64,
    n_domain: int = 0,
    n_ins: int = 2,
    tfm: Callable | Sequence[Callable] | None = None,
    is_train: bool = True,
    dataset_wrapper: Callable[..., Dataset] | None = None,
) -> DataLoader:
    """Build a loader that draws from PyTorch's global generator; see `unskew.data.loaders.build_data_loader`."""
    sampling = (sampler_type, data_source, batch_size, n_domain, n_ins)
    wrapper = dataset_wrapper or DatasetWrapper
    return loaders.build_data_loader(complete(cfg), *sampling, tfm, is_train, wrapper, own_generator=False)


class DataManager(loaders.DataManager):
    """The dataset of a config with Dassl's loaders and transforms.

    Args:
        cfg: the config.
        custom_tfm_train: replaces the training transform of `build_transform`.
        custom_tfm_test: replaces the test transform.
        dataset_wrapper: replaces `DatasetWrapper`.
    """

    num_classes, lab2cname = _kept_in("_num_classes"), _kept_in("_lab2cname")
    num_source_domains = _kept_in("_num_source_domains")
    _build_loader = staticmethod(build_data_loader)

    def __init__(
        self,
        cfg: CfgNode,
        custom_tfm_train: Callable | None = None,
        custom_tfm_test: Callable | None = None,
        dataset_wrapper: Callable[..., Dataset] | None = None,
    ) -> None:
        dataset = build_dataset(cfg)
        transforms = []
        for custom, use, is_train in ((custom_tfm_train, "training", True), (custom_tfm_test, "testing", False)):
            if custom is not None:
                logger.info(f"* Using custom transform for {use}")
            transforms.append(build_transform(cfg, is_train) if custom is None else custom)
        super().__init__(cfg, transforms[0], transforms[1], dataset_wrapper, dataset=dataset)
