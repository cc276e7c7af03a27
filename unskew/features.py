"""Image features of the frozen tower: an image is encoded once per process and view, for all trainers.

The rows live in memory, keyed by all that decides them: backbone, transform, file (path, size,
time) and view. Runs of one sweep share them across trainers, shots and seeds.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from unskew.loaders import read_image

_rows: dict[tuple, Tensor] = {}


class _Views(Dataset):
    """Decoded and transformed images; a view's random draws depend on the file's name and the view alone."""

    def __init__(self, paths: Sequence[str], transform: Callable, view: int | None) -> None:
        self.paths, self.transform, self.view = paths, transform, view

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image = read_image(self.paths[index])
        if self.view is None:
            return self.transform(image)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_view_seed(self.paths[index], self.view))
            return self.transform(image)


def _view_seed(path: str, view: int) -> int:
    """The same for a data root anywhere: only the file's name and its folder's count."""
    name = "/".join(Path(path).parts[-2:])
    return int.from_bytes(hashlib.sha256(f"{name} {view}".encode()).digest()[:8], "little") >> 1


def _key(backbone, transform: Callable, path: str, view: int | None) -> tuple:
    try:
        stat = Path(path).stat()
    except OSError as error:
        raise FileNotFoundError(
            f"image '{path}' cannot be read ({error.strerror}); prepare the dataset again"
        ) from error
    return backbone.id, str(backbone.dtype), repr(transform), path, stat.st_size, stat.st_mtime_ns, view


def extract(
    backbone,
    paths: Sequence[str],
    transform: Callable,
    *,
    view: int | None = None,
    keep: bool = True,
    batch_size: int = 256,
    workers: int = 0,
) -> Tensor:
    """Encode images with the frozen tower, each at most once per process.

    Args:
        transform: image -> [3, H, W]; its ``repr`` has to name its settings, as torchvision's does.
        view: which augmented view; ``None`` for a transform without randomness.
        keep: remember the rows for the next call.

    Returns:
        [N, D] float32 on the backbone's device, not normalised.

    Raises:
        FileNotFoundError, ValueError: an image is missing or unreadable; the message names it.
    """
    keys = [_key(backbone, transform, path, view) for path in paths]
    wanted = {key: path for key, path in zip(keys, paths, strict=True) if key not in _rows}
    fresh = dict(
        zip(wanted, _encode(backbone, list(wanted.values()), transform, view, batch_size, workers), strict=True)
    )
    rows = [fresh[key] if key in fresh else _rows[key] for key in keys]
    if keep:
        _rows.update(fresh)
    if not rows:
        raise ValueError("no images to encode: the split is empty")
    return torch.stack(rows)  # [N, D]


@torch.no_grad()
def _encode(backbone, paths, transform, view, batch_size, workers) -> list[Tensor]:
    workers = workers if len(paths) >= 4 * batch_size else 0  # starting workers takes longer than a few batches
    loader = DataLoader(_Views(paths, transform, view), batch_size, num_workers=workers)
    rows: list[Tensor] = []
    with tqdm(total=len(paths), desc="encoding images", unit="image", delay=2, leave=False) as bar:
        for images in loader:
            images = images.to(backbone.device, backbone.dtype)  # [B, 3, H, W]
            rows.extend(backbone.encode_image(images).float().unbind())
            bar.update(len(images))
    return rows
