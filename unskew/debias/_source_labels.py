"""Labels ``[N]`` in one file or in shards."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unskew.debias._source_files import import_parquet
from unskew.debias.io import choose_key, read_tensor, split_spec
from unskew.debias.sources import find_files
from unskew.utils.errors import DAMAGE, check_regular, format_error

KEYS = ("labels", "label")


def read_labels(spec: str | Sequence[str]) -> Tensor:
    """Read labels ``[N]``; several files, or those of a pattern, are one below the other in natural order.

    Args:
        spec: As in `open_source`; a Parquet column holds one integer per row.

    Raises:
        FileNotFoundError: A file is missing, or no file matches a pattern.
        ValueError: Another format, a damaged file, no such key, a missing label, or shards that are not ``[N]``.
    """
    specs = [spec] if isinstance(spec, str) else list(spec)
    keys = {split_spec(each)[1] for each in specs}
    if len(keys) > 1:
        raise ValueError(f"all files need one key (got {sorted(keys)})")
    (key,) = keys
    parts, files = [], find_files(specs)
    for path in files:
        if path.suffix == ".parquet":
            part = _read_column(path, key)
        else:
            part = read_tensor(f"{path}:{key}" if key else str(path), KEYS)
        if len(files) > 1 and part.ndim != 1:
            raise ValueError(f"'{path}' must hold labels [N] (got {list(part.shape)})")
        parts.append(part)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _read_column(path: Path, key: str) -> Tensor:
    if not path.exists():
        raise FileNotFoundError(f"no such file: '{path}'")
    check_regular(path)
    path.open("rb").close()  # a missing permission is not a damaged file
    parquet = import_parquet(path)
    try:
        file = parquet.ParquetFile(path)
        names = [field.name for field in file.schema_arrow]
        column = file.read([choose_key(path, names, key, KEYS)]).column(0)
        if column.null_count:
            raise ValueError("a label is missing")
        values = column.to_numpy()
        if values.dtype.kind not in "iu":
            raise ValueError(f"labels must be integers (got {column.type}); choose a column as '{path}:COLUMN'")
        return torch.from_numpy(values.astype(np.int64))
    except DAMAGE as error:
        text = format_error(error)[:300]
        raise ValueError(text if f"'{path}'" in text else f"'{path}' cannot be read: {text}") from None
