"""Datasets as lists of `Datum`, and what every dataset class shares."""

import operator
import random
from collections.abc import Sequence
from dataclasses import dataclass

from unskew.data.sampling import group, sample_fewshot
from unskew.utils.registry import Registry

DATASET_REGISTRY = Registry("DATASET", "unskew.datasets")


def build_dataset(cfg):
    """The dataset that ``cfg.DATASET.NAME`` (its YAML's stem) names, built from ``cfg``.

    Raises:
        ValueError: no such dataset, or ``cfg.DATASET.TEMPLATE`` has no ``{}`` for the class.
    """
    template = getattr(cfg.DATASET, "TEMPLATE", "")
    if template and "{}" not in template:
        raise ValueError(f"DATASET.TEMPLATE '{template}' has no {{}} for the class name")
    dataset = DATASET_REGISTRY.get(cfg.DATASET.NAME)(cfg)
    if template:
        dataset.template, dataset.templates = template, [template]
        if not template.startswith("{}"):  # a context needs words before the class
            dataset.context_init = template
    return dataset


@dataclass(frozen=True, slots=True)
class Datum:
    """One image: its path, its label (from 0), its domain (from 0) and the name of its class.

    Whether the image exists is not looked up here: a million look-ups on a network disk take minutes.

    Raises:
        ValueError: the path is not a string, or label or domain is not an integer >= 0.
    """

    impath: str = ""
    label: int = 0
    domain: int = 0
    classname: str = ""

    lowest = 0  # label and domain

    def __post_init__(self):
        if not isinstance(self.impath, str):
            raise ValueError(f"the path of an image must be a string, not {self.impath!r}")
        for field in ("label", "domain"):
            value = getattr(self, field)
            if type(value) is not int:  # numpy's integers do not go into JSON
                try:
                    object.__setattr__(self, field, operator.index(value))
                except TypeError:
                    raise ValueError(f"the {field} of '{self.impath}' must be an integer, not {value!r}") from None
            if value < self.lowest:
                raise ValueError(f"the {field} of '{self.impath}' must be {self.lowest} or more, not {value}")


class DatasetBase:
    """Splits of one dataset, with Dassl's attributes. A subclass's ``__init__(cfg)`` reads its files and
    ends in ``super().__init__(train_x=..., val=..., test=...)``.

    Attributes:
        dataset_dir: the dataset's folder below ``cfg.DATASET.ROOT``.
        template: the prompt of a class; ``{}`` stands for its name.
        templates: prompts that the zero-shot ensemble averages; where the class gives none, ``[template]``.
        context_init: prompt that residual prompts and ProGrad start from; where the class gives none, ``template``.
        classnames: in the order of the labels; ``lab2cname`` has the same by label.
        test_classes: the labels that test images are classified among, in order; ``None``: all of them.

    Args:
        classnames: of all labels, where some of them have no image here.

    Raises:
        ValueError: no images, labels that are not 0..C-1, or two names for one label.
    """

    dataset_dir = ""
    template = "a photo of a {}."
    templates = None
    context_init = None
    test_classes = None

    def __init__(self, train_x=None, train_u=None, val=None, test=None, classnames=None):
        self.train_x, self.train_u, self.val, self.test = train_x, train_u, val, test
        self.lab2cname = dict(enumerate(classnames or ())) or class_names(type(self).__name__, [train_x, val, test])
        self.classnames = [self.lab2cname[label] for label in range(len(self.lab2cname))]
        self.num_classes = len(self.classnames)
        self.templates = list(self.templates or [self.template])
        self.context_init = self.context_init or self.template

    @staticmethod
    def generate_fewshot_dataset(*data_sources, num_shots=-1, repeat=False, rng=random):
        """Dassl's sampler: ``num_shots`` images per class of each source; fewer than 1 means all of them.

        Args:
            repeat: fill a class that has too few by drawing with replacement.
            rng: a `random.Random`; Python's global generator unless given, as in Dassl.

        Returns:
            A list for one source, a list of lists for several.
        """
        if num_shots >= 1:
            data_sources = [sample_fewshot(items, num_shots, rng, repeat) for items in data_sources]
        return data_sources[0] if len(data_sources) == 1 else list(data_sources)

    @staticmethod
    def split_dataset_by_label(data_source):
        """``{label: its images}``, labels in order of first appearance."""
        return group(data_source)

    @staticmethod
    def split_dataset_by_domain(data_source):
        """``{domain: its images}``, domains in order of first appearance."""
        return group(data_source, "domain")


def class_names(dataset: str, splits: Sequence[list[Datum] | None]) -> dict[int, str]:
    """``{label: class name}`` in label order, of everything that is in the splits.

    Raises:
        ValueError: no images, labels that are not 0..C-1, or two names for one label.
    """
    names = {}
    for label, name in sorted({(item.label, item.classname) for split in splits for item in split or ()}):
        if label in names:
            raise ValueError(f"{dataset}: label {label} has two class names, '{names[label]}' and '{name}'")
        names[label] = name
    if not names:
        raise ValueError(f"{dataset}: no images in train, val or test")
    missing = sorted(set(range(max(names) + 1)) - set(names))
    if missing:
        raise ValueError(f"{dataset}: labels must be 0..{max(names)} without gaps; {missing[0]} has no image")
    return names
