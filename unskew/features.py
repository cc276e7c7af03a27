"""Image features of the frozen tower: an image is encoded once per process and view, for all trainers.

The rows live in memory, keyed by all that decides them: backbone, transform, file (path, size,
time) and view. Runs of one sweep share them across trainers, shots and seeds.
"""

import hashlib
import os
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

    def __init__(self, paths: Sequence[str], transform: Callable, view: int | None, dataset: str) -> None:
        self.paths, self.transform, self.view, self.dataset = paths, transform, view, dataset

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image = read_image(self.paths[index], self.dataset)
        if self.view is None:
            return self.transform(image)
        state = torch.get_rng_state()  # torch.manual_seed would reseed every GPU as well, and is slow
        try:
            torch.default_generator.manual_seed(_view_seed(self.paths[index], self.view))
            return self.transform(image)
        finally:
            torch.set_rng_state(state)


def _view_seed(path: str, view: int) -> int:
    """The same for a data root anywhere: only the file's name and its folder's count."""
    name = "/".join(Path(path).parts[-2:])
    return int.from_bytes(hashlib.sha256(f"{name} {view}".encode()).digest()[:8], "little") >> 1


def _key(backbone, transform: str, path: str, view: int | None) -> tuple:
    try:
        stat = os.stat(path)
        return backbone.id, backbone.dtype, backbone.device, transform, path, stat.st_size, stat.st_mtime_ns, view
    except OSError:
        return (path,)  # reading it will say what is wrong


def extract(
    backbone,
    paths: Sequence[str],
    transform: Callable,
    *,
    view: int | None = None,
    keep: bool = True,
    batch_size: int = 256,
    workers: int = 0,
    dataset: str = "",
) -> Tensor:
    """Encode images with the frozen tower, each at most once per process.

    Args:
        transform: image -> [3, H, W]; its ``repr`` has to name its settings, as torchvision's does.
        view: which augmented view; ``None`` for a transform without randomness.
        keep: remember the rows for the next call.
        dataset: the dataset's name, for errors.

    Returns:
        [N, D] float32 on the backbone's device, not normalised.

    Raises:
        FileNotFoundError, ValueError: an image is missing or unreadable; the message names it.
    """
    settings = repr(transform)
    keys = [_key(backbone, settings, path, view) for path in paths]
    wanted = {key: path for key, path in zip(keys, paths, strict=True) if key not in _rows}
    images = _Views(list(wanted.values()), transform, view, dataset)
    fresh = dict(zip(wanted, _encode(backbone, images, batch_size, workers), strict=True))
    rows = [fresh[key] if key in fresh else _rows[key] for key in keys]
    if keep:
        _rows.update(fresh)
    if not rows:
        raise ValueError("no images to encode: the split is empty")
    return torch.stack(rows)  # [N, D]


@torch.no_grad()
def _encode(backbone, images: _Views, batch_size: int, workers: int) -> list[Tensor]:
    # Starting workers takes longer than a few batches, and more of them than cores only get in their own way.
    workers = min(workers, os.cpu_count() or 1) if len(images) >= 4 * batch_size else 0
    rows: list[Tensor] = []
    with tqdm(total=len(images), desc="encoding images", unit="image", delay=2, leave=False, disable=None) as bar:
        for batch in DataLoader(images, batch_size, num_workers=workers):
            batch = batch.to(backbone.device)  # [B, 3, H, W]
            rows.extend(backbone.encode_image(batch).float().unbind())
            bar.update(len(batch))
    return rows
