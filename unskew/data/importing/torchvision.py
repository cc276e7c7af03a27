"""Datasets of torchvision: any class whose items are an image and a label."""

import difflib
import importlib
import inspect
import logging
import operator
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from unskew.data.importing.source import Label, Source, Stored, check_same_names
from unskew.utils.errors import format_error
from unskew.utils.files import expand

logger = logging.getLogger("unskew")

# Values of a class's argument by split; the first one that it knows is used.
_BY_TRAIN: dict[str, tuple[Any, ...]] = {"train": (True,), "test": (False,)}
_BY_SPLIT: dict[str, tuple[Any, ...]] = {
    "train": ("train", "trainval", "train-standard"),
    "val": ("val", "valid"),
    "test": ("test",),
}

# Attributes that list the files of classes without the argument ``loader``.
_PATHS = ("_samples", "_images")


class _File(NamedTuple):
    """An image that is not read: what the argument ``loader`` returns."""

    path: str


class TorchVision(Source):
    """A dataset class of torchvision, constructed once for each split that it has.

    Args:
        name: the name of the class.
        root: the folder of the downloaded files; missing ones are downloaded.

    Raises:
        ValueError: torchvision has no such class.
    """

    kind = "torchvision"
    package = "torchvision"

    def __init__(self, name: str, root: str | Path = "data") -> None:
        self._class = _find_class(name)
        self.root = os.path.abspath(expand(root))
        super().__init__({"source": name, "root": self.root})
        self._datasets: dict[str, Any] = {}

    def open(self) -> None:
        """Construct the dataset of each split."""
        name, parameters = self.identity["source"], _parameters(self._class)
        key = next((key for key in ("train", "split") if key in parameters), "")
        choices: dict[str, tuple[Any, ...]] = {"train": _BY_TRAIN, "split": _BY_SPLIT}.get(key, {"train": (None,)})
        for split, values in choices.items():
            for value in values:
                dataset = self._construct(parameters, {key: value} if key else {})
                if dataset is not None:
                    self._datasets[split] = dataset
                    self.splits[split] = f"{key}={value}" if key else "all"
                    break
        if not self._datasets:
            raise ValueError(f"torchvision's {name} has no split train, val or test: import it in another way")
        for split, dataset in self._datasets.items():
            _check_items(name, split, dataset)
        names = {split: _class_names(dataset) for split, dataset in self._datasets.items()}
        first = next(iter(names.values()))
        for split, found in names.items():
            check_same_names(first, found, f"split {split} of torchvision's {name}")
        self.classnames = dict(enumerate(first))
        self.facts = {"features": {"image": "item 0", "label": "item 1"}}

    def labels(self, split: str) -> Iterator[Label]:
        """Yield the label of each item."""
        for item in self._items(split):
            yield _label(item[1])

    def images(self, split: str) -> Iterator[tuple[Label, Stored]]:
        """Yield the label and the stored file or the pixels of each item."""
        paths = _known_paths(self._datasets[split])
        for place, (image, label) in enumerate(self._items(split)):
            yield _label(label), _stored(image, paths[place] if paths else "")

    def _items(self, split: str) -> Iterator[tuple[Any, Any]]:
        dataset = self._datasets[split]
        for place in range(len(dataset)):
            yield dataset[place]

    def _construct(self, parameters: dict[str, bool], chosen: dict[str, Any]) -> Any:
        """Return the dataset of a split, ``None`` if the class does not have this split."""
        options = dict(chosen)
        if "root" in parameters:
            options["root"] = self.root
        if "loader" in parameters:
            options["loader"] = _File
        needed = [name for name, required in parameters.items() if required and name not in options]
        if needed:
            raise ValueError(
                f"torchvision's {self.identity['source']} needs the arguments {', '.join(needed)}, which have no flag"
            )
        try:
            return self._class(**options, **({"download": False} if "download" in parameters else {}))
        except ValueError as error:
            if "Valid values are" in str(error):  # torchvision's answer to a split that it does not know
                return None
            raise
        except (RuntimeError, OSError) as error:
            if "download" not in parameters:
                raise self._unavailable(error) from error
        try:
            logger.info(f"downloading {self.identity['source']} into '{self.root}'")
            return self._class(**options, download=True)
        except (RuntimeError, OSError, ImportError) as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> ValueError:
        name = self.identity["source"]
        return ValueError(
            f"torchvision's {name} is not complete in '{self.root}' ({format_error(error)}): put its files there, or "
            "give their folder with --root"
        )


# --- classes of torchvision --------------------------------------------------------------------------


def _find_class(name: str) -> type:
    datasets = importlib.import_module("torchvision.datasets")
    found = getattr(datasets, name, None)
    if isinstance(found, type) and issubclass(found, datasets.VisionDataset) and found is not datasets.VisionDataset:
        return found
    close = difflib.get_close_matches(name.lower(), {known.lower(): known for known in datasets.__all__}, 1)
    meant = next((f"; did you mean {known}?" for known in datasets.__all__ if [known.lower()] == close), "")
    raise ValueError(f"torchvision.datasets has no dataset '{name}'{meant or ': give the name of one of its classes'}")


def _parameters(kind: type) -> dict[str, bool]:
    """Return the names of a constructor's arguments, and whether each must be given.

    A constructor with ``**kwargs`` hands them to its base class, whose arguments count then.
    """
    found: dict[str, bool] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(base).parameters.values())
        for p in parameters:
            if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
                found.setdefault(p.name, p.default is p.empty and base is kind)
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    return found


def _check_items(name: str, split: str, dataset: Any) -> None:
    """Raise ``ValueError`` unless the items are pairs of an image and a label."""
    if len(dataset) == 0:
        return
    item = dataset[0]
    if not (isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], _File | Image.Image)):
        raise ValueError(f"the items of torchvision's {name} are not an image and a label: it cannot be imported")
    try:
        _label(item[1])
    except ValueError as error:
        raise ValueError(f"torchvision's {name}, {split}: {error}; it cannot be imported") from error


def _label(value: Any) -> Label:
    """Return a label as an integer or a word; NumPy's numbers and tensors of one number are integers too."""
    if value is None or isinstance(value, str):
        return value
    try:
        return operator.index(value)
    except TypeError as error:
        raise ValueError(f"the label {str(value)[:40]} is not a class") from error


def _class_names(dataset: Any) -> list[str]:
    """Return the class names of a dataset by label, [] if it has none; of synonyms, the first."""
    names = getattr(dataset, "classes", None) or getattr(dataset, "categories", None)
    if not isinstance(names, Sequence) or isinstance(names, str):
        by_name = getattr(dataset, "class_to_idx", None) or {}
        return sorted(by_name, key=by_name.__getitem__)
    return [str(name[0] if isinstance(name, tuple) else name) for name in names]


def _known_paths(dataset: Any) -> list[str]:
    """Return the files of a class that reads them without ``loader``, [] if it does not list them."""
    for attribute in _PATHS:
        files = getattr(dataset, attribute, None)
        if isinstance(files, list) and len(files) == len(dataset) > 0:
            paths = [file[0] if isinstance(file, tuple) else file for file in files]
            if all(isinstance(path, str | Path) for path in paths):
                return [os.fspath(path) for path in paths]
    return []


def _stored(image: Any, path: str) -> Stored:
    """Return the file of an image, or its pixels if they come from an array."""
    path = path or (image.path if isinstance(image, _File) else getattr(image, "filename", ""))
    return Stored(Path(path), os.path.basename(path)) if path else Stored(image)
