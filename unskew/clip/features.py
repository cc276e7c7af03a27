"""Image features of the frozen tower: an image is encoded once, for all trainers, shots, seeds and processes.

They are kept on disk (`cache_home`), keyed by all that decides them: backbone, precision, transform and number of views
name a folder; file (path, size, time) names a row.
"""

import collections
import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T
from tqdm import tqdm

from unskew.clip._feature_store import FeatureStore
from unskew.data.images import read_image
from unskew.utils.files import cache_home, write_json

# Images in a batch, by device; halved where its memory does not hold them.
_batch = collections.defaultdict(lambda: 128, cuda=1024)

# Fewer are read before a worker process has started.
WORKERS_FROM = 1024

# Images that are encoded before they are written: a kill loses no more.
AT_ONCE = 20_000


class _Views(Dataset):
    """Decoded and transformed images; a view's random draws depend on the file's name and the view alone.

    Where a transform ends in `ToTensor` and `Normalize`, these two are left to `finish`, which takes them on whole
    batches, on the backbone's device; the numbers are the same.
    """

    def __init__(self, paths: Sequence[str], transform: Callable, views: Sequence[int | None], dataset: str) -> None:
        self.paths, self.views, self.dataset = paths, views, dataset
        steps = list(transform.transforms) if type(transform) is T.Compose else []
        self.in_batches = [type(step) for step in steps[-2:]] == [T.ToTensor, T.Normalize]
        self.transform = T.Compose(steps[:-2]) if self.in_batches else transform
        self.normalize = steps[-1] if self.in_batches else None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        """[V, 3, H, W], or [V, H, W, 3] in bytes for `finish`; the image is decoded once."""
        image = read_image(self.paths[index], self.dataset)
        if self.views == [None]:
            return self._view(image)[None]
        name = "/".join(Path(self.paths[index]).parts[-2:])
        state = torch.get_rng_state()  # torch.manual_seed would reseed every GPU as well, and is slow
        try:
            found = []
            for view in self.views:
                torch.default_generator.manual_seed(_view_seed(name, view))
                found.append(self._view(image))
            return torch.stack(found)
        finally:
            torch.set_rng_state(state)

    def _view(self, image) -> Tensor:
        view = self.transform(image)
        return torch.from_numpy(np.array(view)) if self.in_batches else view

    def finish(self, batch: Tensor) -> Tensor:
        """Views as the loader gave them -> [B, 3, H, W], float32, where they lie."""
        if not self.in_batches:
            return batch
        # By a number a GPU would multiply with its inverse, which is another bit now and then.
        return self.normalize(batch.movedim(-1, 1).float() / torch.full((), 255.0, device=batch.device))


def _view_seed(name: str, view: int) -> int:
    """The same for a data root anywhere: only the file's name and its folder's count."""
    return int.from_bytes(hashlib.sha256(f"{name} {view}".encode()).digest()[:8], "little") >> 1


def extract(
    backbone,
    paths: Sequence[str],
    transform: Callable,
    *,
    views: Sequence[int] | None = None,
    keep: bool = True,
    workers: int = 0,
    dataset: str = "",
) -> Tensor:
    """Encode images with the frozen tower, each at most once.

    Args:
        transform: image -> [3, H, W]; its ``repr`` has to name its settings, as torchvision's does.
        views: which augmented views of each image; ``None`` for a transform without randomness.
        keep: find the rows on disk, and keep new ones there.
        dataset: the dataset's name, for errors.

    Returns:
        [N, D], with ``views`` [N, V, D]: float32 on the backbone's device, not normalised.

    Raises:
        FileNotFoundError, ValueError: an image is missing or unreadable; the message names it.
    """
    if not paths:
        raise ValueError("no images to encode: the split is empty")
    chosen = [None] if views is None else list(views)
    store = _store(backbone, repr(transform), tuple(chosen)) if keep else FeatureStore(None)
    keys = np.fromiter(map(_key, paths), np.int64, len(paths))
    if store.missing(keys).any():
        with store.exclusive_lock():
            store.refresh()
            _, first = np.unique(keys, return_index=True)
            wanted = np.sort(first[store.missing(keys[first])])
            for part in np.array_split(wanted, max(1, -(-len(wanted) // AT_ONCE))):
                images = _Views([paths[index] for index in part], transform, chosen, dataset)
                if len(images):
                    store.add(keys[part], _encode(backbone, images, workers))
    rows = store.take(keys).to(backbone.device).float()  # [N, V, D]
    return rows[:, 0] if views is None else rows


def _key(path: str) -> int:
    """A file as it is now, in 64 bits."""
    try:
        stat = os.stat(path)
        content = f"{os.path.abspath(path)}\n{stat.st_size} {stat.st_mtime_ns}"
    except OSError:  # reading it will say what is wrong
        content = path
    return int.from_bytes(hashlib.blake2b(os.fsencode(content), digest_size=8).digest(), "little", signed=True)


@functools.cache
def _open(folder: Path | None) -> FeatureStore:
    return FeatureStore(folder)


def _store(backbone, transform: str, views: tuple) -> FeatureStore:
    """The store of these settings; ``settings.json`` in its folder says which they are."""
    device = torch.device(backbone.device).type
    settings = {"backbone": backbone.id, "dtype": str(backbone.dtype), "device": device, "views": views}
    settings["transform"] = transform
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    store = _open(cache_home() / "features" / digest)
    if store.folder is not None and not (store.folder / "settings.json").exists():
        with contextlib.suppress(OSError):  # `FeatureStore.add` says it
            write_json(settings, store.folder / "settings.json")
    return store


@torch.no_grad()
def _encode(backbone, images: _Views, workers: int) -> Tensor:
    """[n, V, D] on the CPU, in the backbone's precision."""
    views, device = len(images.views), torch.device(backbone.device)
    batch = max(1, _batch[device.type] // views)
    # Starting workers takes longer than a few batches, and more of them than cores only get in their own way.
    workers = min(workers, os.cpu_count() or 1) if len(images) * views >= WORKERS_FROM else 0
    rows: list[Tensor] = []
    with tqdm(total=len(images), desc="encoding images", unit="image", delay=2, leave=False, disable=None) as bar:
        # A generator of its own: what is random elsewhere must not depend on which images had to be encoded.
        options = {"num_workers": workers, "pin_memory": device.type == "cuda", "generator": torch.Generator()}
        for pixels in DataLoader(images, batch, **options):
            rows.append(_in_parts(backbone, images, pixels.flatten(0, 1)).unflatten(0, (-1, views)))
            bar.update(len(pixels))
    return torch.cat(rows)


def _in_parts(backbone, images: _Views, views: Tensor) -> Tensor:
    """Views -> [B, D] on the CPU; in halves, and so from now on, where the device's memory is too small."""
    kind = torch.device(backbone.device).type
    found = []
    try:
        for part in views.split(_batch[kind]):
            pixels = images.finish(part.to(backbone.device, non_blocking=True))
            # Convolutions are faster on channels that lie side by side.
            found.append(backbone.encode_image(pixels.contiguous(memory_format=torch.channels_last)).cpu())
        return torch.cat(found).to(backbone.dtype)
    except torch.OutOfMemoryError:
        if _batch[kind] == 1:
            raise
    _batch[kind] = max(1, min(_batch[kind], len(views)) // 2)
    torch.cuda.empty_cache()
    return _in_parts(backbone, images, views)
