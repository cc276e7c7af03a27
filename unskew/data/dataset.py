"""`Datum`, one image, and `DatasetBase`, the base class of all datasets."""

import operator
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from yacs.config import CfgNode

from unskew.data.sampling import group, sample_fewshot
from unskew.utils.registry import Registry

# Datasets that consist of the user's images at DATASET.ROOT.
USER_DATASETS = ("folder", "csv")


@dataclass(frozen=True, slots=True)
class Datum:
    """One image: its path, label, domain and class name. Labels and domains count from 0.

    The file may be missing: a million checks on a network disk take minutes.

    Raises:
        ValueError: the path is not a string, or label or domain is not an integer >= 0.

    Examples:
        >>> import unskew
        >>> unskew.Datum("birds/wren/1.jpg", label=3, classname="wren").label
        3
    """

    impath: str = ""
    label: int = 0
    domain: int = 0
    classname: str = ""

    lowest: ClassVar[int] = 0  # of label and domain

    def __post_init__(self) -> None:
        if not isinstance(self.impath, str):
            raise ValueError(f"the path of an image must be a string, not {self.impath!r}")
        for field in ("label", "domain"):
            value = getattr(self, field)
            if type(value) is not int:  # NumPy's integers cannot be written to JSON
                try:
                    object.__setattr__(self, field, operator.index(value))
                except TypeError:
                    raise ValueError(f"the {field} of '{self.impath}' must be an integer, not {value!r}") from None
            if value < self.lowest:
                raise ValueError(f"the {field} of '{self.impath}' must be {self.lowest} or more, not {value}")


class DatasetBase:
    """The splits of one dataset, with Dassl's attributes.

    A subclass's ``__init__(cfg)`` reads its files and calls ``super().__init__(train_x=..., val=..., test=...)``.

    Attributes:
        dataset_dir: the dataset's folder below ``cfg.DATASET.ROOT``.
        template: the prompt of a class; ``{}`` is the place of its name.
        templates: prompts that the zero-shot ensemble averages; default ``[template]``.
        context_init: prompt that initialises residual prompts and ProGrad; default ``template``.
        classnames: class names in the order of the labels; ``lab2cname`` has the same names by label.
        test_classes: the labels among which test images are classified; ``None`` for all labels.
        transfer: in the evaluation of a run that was trained on other images, how the classes match, see
            `unskew.data.transfer`.

    Args:
        train_x: training images.
        train_u: unlabelled training images.
        val: validation images.
        test: test images.
        classnames: the names of all labels; needed if a label has no image.
        unreadable_test: the names of test images that are skipped because they cannot be read.

    Raises:
        ValueError: there are no images, the labels are not 0..C-1, or a label has two names.

    Examples:
        >>> from unskew import DatasetBase, Datum
        >>> images = [Datum(f"{name}.jpg", label, 0, name) for label, name in enumerate(["cat", "dog"])]
        >>> DatasetBase(train_x=images, test=images).classnames
        ['cat', 'dog']
    """

    dataset_dir: str = ""
    template: str = "a photo of a {}."
    templates: Sequence[str] = ()
    context_init: str = ""
    test_classes: Sequence[int] | None = None
    transfer: str = ""

    def __init__(
        self,
        train_x: Sequence[Datum] | None = None,
        train_u: Sequence[Datum] | None = None,
        val: Sequence[Datum] | None = None,
        test: Sequence[Datum] | None = None,
        classnames: Sequence[str] | None = None,
        unreadable_test: Sequence[str] = (),
    ) -> None:
        self.unreadable_test = list(unreadable_test)
        self.train_x, self.train_u, self.val, self.test = train_x or [], train_u or [], val or [], test or []
        self.lab2cname = dict(enumerate(classnames or ())) or class_names(
            type(self).__name__, [self.train_x, self.val, self.test]
        )
        self.classnames = [self.lab2cname[label] for label in range(len(self.lab2cname))]
        self.num_classes = len(self.classnames)
        self.templates = list(self.templates or [self.template])
        self.context_init = self.context_init or self.template

    @staticmethod
    def generate_fewshot_dataset(*data_sources: Sequence[Datum], num_shots: int = -1, repeat: bool = False) -> Any:
        """Draw ``num_shots`` images per class of each source with Python's global generator, as Dassl does.

        Args:
            *data_sources: lists of images.
            num_shots: images per class; all images if it is below 1.
            repeat: draw with replacement in classes that have too few images.

        Returns:
            A list for one source, a list of lists for several.
        """
        samples: list[Sequence[Datum]] = list(data_sources)
        if num_shots >= 1:
            # The summary of the dataset warns of small classes, unless their images are drawn repeatedly.
            samples = [sample_fewshot(items, num_shots, random, repeat, warn=repeat) for items in data_sources]  # type: ignore[arg-type]  # a module with a generator's functions
        return samples[0] if len(samples) == 1 else samples

    @staticmethod
    def split_dataset_by_label(data_source: Sequence[Datum]) -> dict[int, list[Datum]]:
        """Return ``{label: its images}`` with the labels in order of first appearance."""
        return group(data_source)

    @staticmethod
    def split_dataset_by_domain(data_source: Sequence[Datum]) -> dict[int, list[Datum]]:
        """Return ``{domain: its images}`` with the domains in order of first appearance."""
        return group(data_source, "domain")


DATASET_REGISTRY: Registry[type[DatasetBase]] = Registry("DATASET", "unskew.datasets")


def build_dataset(cfg: CfgNode) -> DatasetBase:
    """Build the dataset ``cfg.DATASET.NAME``; for the evaluation of a trained run, with the run's classes if they fit.

    Raises:
        ValueError: the name is unknown, or ``cfg.DATASET.TEMPLATE`` has no ``{}`` for the class.
    """
    template = getattr(cfg.DATASET, "TEMPLATE", "")
    if template and "{}" not in template:
        raise ValueError(f"DATASET.TEMPLATE '{template}' has no {{}} for the class name")
    dataset = DATASET_REGISTRY.get(cfg.DATASET.NAME)(cfg)
    if template:
        dataset.template, dataset.templates = template, [template]
        if not template.startswith("{}"):  # a context needs words before the class name
            dataset.context_init = template
    if getattr(getattr(cfg, "TEST", None), "MODEL_DIR", ""):
        from unskew.data.transfer import adopt

        adopt(dataset, cfg)
    return dataset


def class_names(dataset: str, splits: Sequence[Sequence[Datum]]) -> dict[int, str]:
    """Return ``{label: class name}`` of all splits in the order of the labels.

    Args:
        dataset: the dataset's name for error messages.
        splits: lists of images.

    Raises:
        ValueError: there are no images, the labels are not 0..C-1, or a label has two names.
    """
    names: dict[int, str] = {}
    for label, name in sorted({(item.label, item.classname) for split in splits for item in split}):
        if label in names:
            raise ValueError(f"{dataset}: label {label} has two class names, '{names[label]}' and '{name}'")
        names[label] = name
    if not names:
        raise ValueError(f"{dataset}: no images in train, val or test")
    missing = sorted(set(range(max(names) + 1)) - set(names))
    if missing:
        raise ValueError(f"{dataset}: labels must be 0..{max(names)} without gaps; {missing[0]} has no image")
    return names
