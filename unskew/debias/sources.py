"""Sources: logits ``[N, C]`` that stay on disk and are read block by block.

The fits of `unskew.debias` take a source instead of an array. A source is picklable: it carries paths and shapes, and
a worker process opens the files again.
"""

import bisect
import glob
import itertools
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unskew.debias._source_files import SUFFIXES, RowFile, open_rows, read_block
from unskew.debias._validation import to_tensor
from unskew.debias.io import read_tensor, split_spec

logger = logging.getLogger("unskew")

# Numbers in a block of rows: 32 MB in float32.
BLOCK = 2**23

# Scale of CLIP's logits.
LOGIT_SCALE = 100.0

# Keys of logits, of features and of a classifier in files that hold several tensors or columns.
LOGITS = ("zs", "logits")
FEATURES = ("features", "image_features", "embedding", "embeddings")
CLASSIFIER = ("classifier", "weight", "text_features")
CLASSIFIER_SUFFIXES = (".npy", ".safetensors", ".pt")


class Source:
    """Rows ``[N, C]`` of floating-point numbers, of which slices are read.

    Attributes:
        shape: N and C.
        dtype: Type of the blocks.
        device: Device of the blocks.
    """

    is_source = True
    shape: tuple[int, int]
    dtype: torch.dtype
    device = torch.device("cpu")

    @property
    def block_rows(self) -> int:
        """Rows to read at once."""
        return max(1, BLOCK // self.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, *args: Any, **options: Any) -> Any:
        raise ValueError(f"this function needs an array in memory: pass source[:] (got {type(self).__name__})")

    def __getitem__(self, rows: slice) -> Tensor:
        if not isinstance(rows, slice):
            raise TypeError(f"a source is read by slices of rows (got {type(rows).__name__})")
        first, last, step = rows.indices(len(self))
        if step != 1:
            raise ValueError(f"a source is read by slices with a step of 1 (got {step})")
        return self._read(first, max(first, last))

    def place(self, row: int) -> str:
        """Return where a row comes from, for error messages; "" if there is only one place."""
        return ""

    def _read(self, first: int, last: int) -> Tensor:
        raise NotImplementedError


class ShardedLogits(Source):
    """Logits in several files, one below the other in the given order.

    Args:
        paths: ``.npy``, ``.safetensors`` or ``.parquet`` files ``[N_i, C]``. A Parquet column holds a list of C numbers
            per row. Files without rows are left out.
        key: Tensor or column of the files, if they hold several.
        preferred: Keys to try without a ``key``.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: No files, a damaged file, files of different widths, or other numbers than floats.
    """

    def __init__(self, paths: Sequence[str | Path], key: str = "", preferred: Sequence[str] = LOGITS) -> None:
        if isinstance(paths, str | Path):
            paths = [paths]
        if not len(paths):
            raise ValueError("a list of shards needs at least one file (got none)")
        opened = [open_rows(path, key, tuple(preferred)) for path in paths]
        self._files: list[RowFile] = [file for file in opened if file.shape[0]]
        if not self._files:
            raise ValueError(f"'{opened[0].path}' has no rows")
        first = self._files[0]
        for file in self._files:
            if file.shape[1] != first.shape[1]:
                raise ValueError(
                    f"the shards must have one width: '{first.path}' is {list(first.shape)} and '{file.path}' "
                    f"{list(file.shape)}"
                )
        self._ends = list(itertools.accumulate(file.shape[0] for file in self._files))
        self.shape = (self._ends[-1], first.shape[1])
        self.dtype = torch.float32
        for file in self._files:
            self.dtype = torch.promote_types(self.dtype, file.dtype)

    @property
    def paths(self) -> list[Path]:
        """The files."""
        return [file.path for file in self._files]

    def place(self, row: int) -> str:
        """Return the file of a row and its number in it."""
        number = bisect.bisect_right(self._ends, row)
        return f"row {row - (self._ends[number - 1] if number else 0)} of '{self._files[number].path}'"

    def _read(self, first: int, last: int) -> Tensor:
        parts = []
        for number in range(bisect.bisect_right(self._ends, first), len(self._files)):
            start = self._ends[number - 1] if number else 0
            if start >= last:
                break
            rows = max(first, start) - start, min(last, self._ends[number]) - start
            parts.append(read_block(self._files[number], *rows).to(self.dtype))
        if not parts:
            return torch.empty(0, self.shape[1], dtype=self.dtype)
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class MappedLogits(ShardedLogits):
    """Logits ``[N, C]`` in one ``.npy`` file, as `numpy.save` writes it.

    Examples:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from unskew.debias import MappedLogits
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "logits.npy"
        ...     np.save(path, np.eye(4, dtype=np.float16))
        ...     MappedLogits(path)[1:3]
        tensor([[0., 1., 0., 0.],
                [0., 0., 1., 0.]])
    """

    def __init__(self, path: str | Path) -> None:
        if Path(path).suffix != ".npy":
            raise ValueError(f"'{path}' must be a .npy file; ShardedLogits reads other files")
        super().__init__([path])


class FeatureLogits(Source):
    """Logits of a linear classifier, ``scale * features @ classifier.T``, computed for each block of rows.

    A million features of width 512 in float16 are 1 GB; their logits for a thousand classes would be 4 GB.

    Args:
        features: ``[N, D]``: a source, a file, a list of files, or an array in memory. CLIP's have norm 1.
        classifier: ``[C, D]``: a file, with ``FILE:KEY`` for one of several tensors, or an array. An array is pickled
            with the source.
        scale: CLIP's logit scale.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: Damaged files, widths that differ, or numbers that are not finite.

    Examples:
        >>> import numpy as np
        >>> from unskew.debias import FeatureLogits
        >>> FeatureLogits(np.eye(3, 2), np.eye(2), scale=10)[:2]
        tensor([[10.,  0.],
                [ 0., 10.]], dtype=torch.float64)
    """

    def __init__(self, features: Any, classifier: Any, scale: float = LOGIT_SCALE) -> None:
        if isinstance(features, str | Path):
            features = ShardedLogits(find_files([str(features)]), split_spec(str(features))[1], FEATURES)
        elif isinstance(features, Sequence) and all(isinstance(path, str | Path) for path in features):
            features = ShardedLogits(features, "", FEATURES)
        elif not isinstance(features, Source):
            features = to_tensor(features)
            if features.ndim != 2 or 0 in features.shape or not features.is_floating_point():
                raise ValueError(f"features must be floats [N, D] (got {features.dtype} of {list(features.shape)})")
        if not scale > 0 or scale == float("inf"):
            raise ValueError(f"the logit scale must be a positive number (got {scale})")
        self._features, self._scale = features, float(scale)
        self._classifier = str(classifier) if isinstance(classifier, str | Path) else to_tensor(classifier)
        self._weights: Tensor | None = None
        weights = self._load()
        _warn_of_norms(self._features[:64], weights / self._scale)
        self.shape, self.device = (len(features), len(weights)), features.device
        self.dtype = weights.dtype

    @property
    def block_rows(self) -> int:
        """Rows to read at once: the block of features and that of logits are 32 MB together."""
        return max(1, BLOCK // (self.shape[1] + self._features.shape[1]))

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_weights": None}

    def place(self, row: int) -> str:
        """Return the file of a row of features and its number in it."""
        return self._features.place(row) if isinstance(self._features, Source) else ""

    def _load(self) -> Tensor:
        """Return the scaled classifier ``[C, D]``."""
        if self._weights is None:
            given, name = self._classifier, "the classifier"
            if isinstance(given, str):
                given, name = read_tensor(given, CLASSIFIER), f"the classifier '{given}'"
            width = self._features.shape[1]
            if given.ndim != 2 or given.shape[1] != width:
                advice = "; save its transpose" if given.ndim == 2 and given.shape[0] == width else ""
                raise ValueError(
                    f"{name} must be [C, {width}] for features [N, {width}]; got {list(given.shape)}{advice}"
                )
            if not given.is_floating_point() or not given.isfinite().all():
                raise ValueError(f"{name} must hold finite floating-point numbers")
            precision = torch.promote_types(self._features.dtype, torch.float32)
            self._weights = given.to(self._features.device, precision) * self._scale
        return self._weights

    def _read(self, first: int, last: int) -> Tensor:
        weights = self._load()
        return self._features[first:last].to(weights.dtype) @ weights.T


def _warn_of_norms(features: Tensor, classifier: Tensor) -> None:
    """Warn if a classifier for normalised features meets others; `unskew.encode_images` does not normalise."""
    norms, ones = features.double().norm(dim=1), classifier.double().norm(dim=1)
    if bool(((ones - 1).abs() < 0.01).all()) and bool(((norms - 1).abs() > 0.05).any()):
        logger.warning(
            f"the first features have norms from {float(norms.min()):.3g} to {float(norms.max()):.3g}, and the rows of "
            "the classifier have norm 1: divide each row of the features by its norm"
        )


class SelectedRows(Source):
    """The rows of a source that a mask ``[N]`` selects; a block of the source is read and its other rows dropped."""

    def __init__(self, source: Source, mask: Tensor) -> None:
        self._source, self._every = source, max(1, source.block_rows // 16)
        padded = torch.zeros(-(-len(mask) // self._every) * self._every, dtype=torch.bool)
        padded[: len(mask)] = mask.cpu()
        self._mask = padded.view(-1, self._every)
        self._ends = self._mask.sum(1).cumsum(0)
        self.shape, self.dtype, self.device = (int(self._ends[-1]), source.shape[1]), source.dtype, source.device

    @property
    def block_rows(self) -> int:
        """Rows to read at once."""
        return self._source.block_rows

    def _read(self, first: int, last: int) -> Tensor:
        if first == last:
            return self._source[:0]
        chunks = torch.searchsorted(self._ends, torch.tensor([first, last - 1]), right=True).tolist()
        mask = self._mask[chunks[0] : chunks[1] + 1].flatten()
        start = chunks[0] * self._every
        before = int(self._ends[chunks[0] - 1]) if chunks[0] else 0
        chosen = mask.nonzero()[first - before : last - before, 0] + start
        low = int(chosen[0])
        return self._source[low : int(chosen[-1]) + 1].index_select(0, (chosen - low).to(self.device))


# --- specs -----------------------------------------------------------------------------------------------


def open_source(
    spec: str | Path | Sequence[str | Path], *, scale: float = LOGIT_SCALE, preferred: Sequence[str] = LOGITS
) -> Source:
    """Open logits on disk.

    Args:
        spec: A ``.npy``, ``.safetensors`` or ``.parquet`` file, a pattern such as ``shards/*.parquet``, or several of
            these; ``FILE:KEY`` selects a tensor or column. ``FEATURES@CLASSIFIER`` are image features and a
            classifier. Several files are read in natural order (``shard_2`` before ``shard_10``).
        scale: Logit scale of features and a classifier.
        preferred: Keys of logits to try in files that hold several.

    Raises:
        FileNotFoundError: A file is missing, or no file matches a pattern.
        ValueError: A damaged file, another format, shapes that do not fit, or a file that is listed twice.

    Examples:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from unskew.debias import open_source
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for number in range(11):
        ...         np.save(pathlib.Path(folder) / f"img_emb_{number}.npy", np.ones((5, 8), np.float16))
        ...     np.save(pathlib.Path(folder) / "text.npy", np.ones((3, 8)))
        ...     open_source(f"{folder}/img_emb_*.npy@{folder}/text.npy").shape
        (55, 3)
    """
    specs = [str(each) for each in ([spec] if isinstance(spec, str | Path) else spec)]
    pairs = [split_features(each) for each in specs]
    classifiers = {classifier for _, classifier in pairs}
    if len(classifiers) > 1:
        found = " and ".join(f"'{name}'" if name else "none" for name in sorted(classifiers))
        raise ValueError(
            f"all features need one classifier, as in 'FEATURES@CLASSIFIER' for each file or pattern (got {found})"
        )
    keys = {split_spec(rows)[1] for rows, _ in pairs}
    if len(keys) > 1:
        raise ValueError(f"all files need one key (got {sorted(keys)})")
    paths, key, classifier = find_files([rows for rows, _ in pairs]), "".join(keys), "".join(classifiers)
    if classifier:
        return FeatureLogits(ShardedLogits(paths, key, FEATURES), classifier, scale)
    if len(paths) == 1 and paths[0].suffix == ".npy" and not key:
        return MappedLogits(paths[0])
    return ShardedLogits(paths, key, preferred)


def split_features(spec: str) -> tuple[str, str]:
    """Return the features and the classifier of ``FEATURES@CLASSIFIER``; the classifier of other specs is empty."""
    words = spec.split("@")  # names of folders and files may have an @ too
    for place in range(1, len(words)):
        features, classifier = "@".join(words[:place]), "@".join(words[place:])
        suffixes = split_spec(features)[0].suffix, split_spec(classifier)[0].suffix
        if suffixes[0] in SUFFIXES and suffixes[1] in CLASSIFIER_SUFFIXES and not Path(spec).is_file():
            return features, classifier
    return spec, ""


def is_pattern(spec: str) -> bool:
    """Return whether a spec is a pattern of file names and no file itself."""
    path = split_spec(spec)[0]
    return glob.has_magic(str(path)) and not path.exists()


def find_files(specs: Sequence[str]) -> list[Path]:
    """Return the files of specs without their keys, in natural order.

    Raises:
        FileNotFoundError: No file matches a pattern.
        ValueError: A file is listed twice.
    """
    found: list[Path] = []
    for spec in specs:
        path = split_spec(spec)[0]
        names = glob.glob(str(path)) if is_pattern(spec) else [str(path)]
        if not names:
            raise FileNotFoundError(f"no file matches '{path}'")
        found += map(Path, names)
    twice = [path for path in set(found) if found.count(path) > 1]
    if twice:
        raise ValueError(f"'{twice[0]}' is listed twice")
    return sorted(found, key=_natural)


def _natural(path: Path) -> tuple[list[int | str], str]:
    """Return a key that orders numbers by their value, and equal ones (``01`` and ``1``) by their digits."""
    parts = re.split(r"(\d+)", str(path))
    return [int(part) if number % 2 else part for number, part in enumerate(parts)], str(path)
