"""Hugging Face datasets: a name on the hub, or a local folder or file of Arrow or Parquet.

The package datasets reads them; no code of a dataset is executed.
"""

import contextlib
import importlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unskew.data.image_folders import EXTENSIONS
from unskew.data.importing._columns import choose_columns
from unskew.data.importing.source import (
    Label,
    Source,
    Stored,
    check_same_names,
    choose_splits,
    file_states,
    logger,
    split_in,
)
from unskew.utils.errors import DAMAGE, format_error
from unskew.utils.files import expand

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")

# The readers of the package datasets for local files, by extension. Others may decode more than images and labels.
_READERS = {".parquet": "parquet", ".arrow": "arrow"}
_FOLDER_READERS = (*_READERS.values(), "imagefolder")


class HuggingFace(Source):
    """A dataset of the package datasets.

    Args:
        source: a name on the hub, or a path.
        config: the configuration, if the dataset has several.
        image_column: the column of images; needed if there are several.
        label_column: the column of labels; needed if there are several.

    Raises:
        FileNotFoundError: the source is neither a path nor a name.
    """

    kind = "hf"
    package = "datasets"

    def __init__(self, source: str, config: str = "", image_column: str = "", label_column: str = "") -> None:
        self.path: Path | None = expand(source).resolve() if os.path.exists(expand(source)) else None
        if self.path is None and not _HUB_NAME.fullmatch(source):
            raise FileNotFoundError(f"there is no file or folder '{source}', and it is no name on the hub: check it")
        self.name, self.config = source, config
        self._columns = (image_column, label_column)
        named = {"config": config, "image_column": image_column, "label_column": label_column}
        place = {"source": source} if self.path is None else {"source": str(self.path), "files": _state(self.path)}
        super().__init__({**place, **named})
        self._rows: Mapping[str, Any] = {}
        self._files: Mapping[str, Sequence[str]] = {}  # the library takes the first one's class names for all
        self.image_column = self.label_column = ""

    def open(self) -> None:
        """Load the splits and choose the columns."""
        library = _library()
        with _one_line(self.name):
            self._rows = self._load(library)
        if not isinstance(self._rows, Mapping):
            self._rows = {str(self._rows.split or "train"): self._rows}
        self.splits, others = choose_splits(map(str, self._rows), f"'{self.name}'")
        if others:
            logger.warning(f"the splits {', '.join(others)} of '{self.name}' are left out")
        features = {split: self._features(name) for split, name in self.splits.items()}
        first = next(iter(features.values()))
        self.image_column, self.label_column = choose_columns(first, *self._columns)
        for split, found in features.items():
            if not {self.image_column, self.label_column} <= set(found):
                raise ValueError(f"split '{self.splits[split]}' of '{self.name}' has other columns: {', '.join(found)}")
            check_same_names(self._names(first), self._names(found), f"split '{self.splits[split]}' of '{self.name}'")
        for file in (file for name in self.splits.values() for file in self._files.get(name, ())):
            check_same_names(self._names(first), self._names(_features_of(file)), f"'{file}'")
        self.classnames = dict(enumerate(self._names(first)))
        used = {"image": self.image_column, "label": self.label_column}
        self.facts |= {
            "features": {name: {"column": column, "type": str(first[column])} for name, column in used.items()}
        }
        if "licence" not in self.facts and (licence := self._rows[self.splits[next(iter(self.splits))]].info.license):
            self.facts["licence"] = licence

    def labels(self, split: str) -> Iterator[Label]:
        """Yield the labels of a split."""
        with _one_line(self.name):
            for row in self._rows[self.splits[split]].select_columns([self.label_column]):
                yield self._label(row)

    def images(self, split: str) -> Iterator[tuple[Label, Stored]]:
        """Yield the labels and the stored images of a split."""
        rows = self._rows[self.splits[split]]
        with _one_line(self.name):
            if hasattr(self._features(self.splits[split])[self.image_column], "decode"):
                rows = rows.cast_column(self.image_column, _library().Image(decode=False))
            for row in rows.select_columns([self.image_column, self.label_column]):
                yield self._label(row), _stored(row[self.image_column])

    def _label(self, row: Mapping[str, Any]) -> Label:
        label = row[self.label_column]
        if isinstance(label, bool) or not isinstance(label, int | str | None):
            raise ValueError(f"column '{self.label_column}' has the label {label!r}, neither a number nor a word")
        return label

    def _features(self, name: str) -> Mapping[str, Any]:
        features = self._rows[name].features
        if not features:
            raise ValueError(f"split '{name}' of '{self.name}' has no known columns: give Arrow or Parquet files")
        return features

    def _names(self, features: Mapping[str, Any]) -> Sequence[str]:
        """Return the class names in the order of the labels, () for labels without names."""
        return getattr(features.get(self.label_column), "names", None) or ()

    # --- loading -------------------------------------------------------------------------------------

    def _load(self, library: Any) -> Any:
        if self.path is None:
            return self._load_hub(library)
        self._read_card(self.path / "README.md")
        if any((self.path / name).is_file() for name in ("dataset_dict.json", "state.json")):
            return library.load_from_disk(os.fspath(self.path))
        if self.path.is_file():
            reader = _READERS.get(self.path.suffix.lower())
            if reader is None:
                raise ValueError(f"it is no {' or '.join(_READERS)} file: give one, or a folder of them")
            return library.load_dataset(
                reader, data_files={split_in(self.path.stem) or "train": str(self.path)}, streaming=True
            )
        builder = library.load_dataset_builder(os.fspath(self.path), self.config or None)
        _check_reader(builder)
        self._files = {str(split): list(map(str, files)) for split, files in builder.config.data_files.items()}
        return builder.as_streaming_dataset()  # without a copy in the library's cache

    def _load_hub(self, library: Any) -> Any:
        hub = importlib.import_module("huggingface_hub")
        revision = None
        if not hub.constants.HF_HUB_OFFLINE:
            try:
                info = hub.dataset_info(self.name)
            except Exception as error:
                raise ValueError(
                    f"there is no such path, and the hub does not give it ({format_error(error)}): check the name and "
                    "the network; HF_HUB_OFFLINE=1 uses a downloaded copy"
                ) from error
            revision = info.sha
            self.facts["revision"] = revision
            if licence := getattr(info.card_data, "license", None):
                self.facts["licence"] = licence
        builder = library.load_dataset_builder(self.name, self.config or None, revision=revision)
        _check_reader(builder)
        builder.download_and_prepare()
        return builder.as_dataset()

    def _read_card(self, card: Path) -> None:
        """Record the licence in a dataset's README."""
        if card.is_file():
            with contextlib.suppress(*DAMAGE):
                hub = importlib.import_module("huggingface_hub")
                if licence := hub.DatasetCard.load(card).data.license:
                    self.facts["licence"] = licence


def _library() -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise ValueError("this import needs the package datasets: run pip install 'unskew[import]'") from error


@contextlib.contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Turn errors of the library, which are of many types, into one line; an error of writing is raised elsewhere."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"'{name}' cannot be read: {format_error(error)}") from error


def _check_reader(builder: Any) -> None:
    reader = type(builder).__module__.rpartition(".")[2]
    if reader not in _FOLDER_READERS:
        advice = "use unskew data import webdataset" if reader == "webdataset" else "convert them"
        raise ValueError(f"its files are of the kind {reader}, not {', '.join(_FOLDER_READERS)}: {advice}")


def _features_of(file: str) -> Mapping[str, Any]:
    """Return the features that a local file describes itself, {} if it is of another kind."""
    suffix = os.path.splitext(file)[1].lower()
    if suffix not in _READERS or not os.path.isfile(file):
        return {}
    with _one_line(file):
        arrow = importlib.import_module("pyarrow")
        if suffix == ".parquet":
            schema = importlib.import_module("pyarrow.parquet").read_schema(file)
        else:
            with arrow.memory_map(file) as content:
                try:
                    schema = arrow.ipc.open_stream(content).schema
                except arrow.ArrowInvalid:
                    schema = arrow.ipc.open_file(content).schema
        return _library().Features.from_arrow_schema(schema)


def _state(path: Path) -> str:
    """Return a hash of the names, sizes and times of a file, or of all files below a folder."""
    if path.is_file():
        return file_states([path])
    return file_states(os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)


def _stored(value: Any) -> Stored:
    """Return the image in a cell: bytes, or the path of a local file."""
    if value is None or isinstance(value, bytes):
        return Stored(value)
    content, path = value.get("bytes"), value.get("path") or ""
    if content is not None or not path:
        return Stored(content, os.path.basename(path))
    if not path.lower().endswith(EXTENSIONS) or not os.path.isfile(path):
        raise ValueError(f"the image '{path}' is not a local image file: give a dataset that holds its images")
    return Stored(Path(path), os.path.basename(path))
