"""Image features of a frozen tower. An image is encoded once for all trainers, shots, seeds and processes.

Features are kept on disk (`cache_home`) with a key that covers everything that determines them. Backbone, precision,
transform and the number of a view name a folder; an image's path, size and times of modification and change name a row.

All batches of a tower have one shape, so that a feature's bits do not depend on the other images of its batch.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T
from tqdm import tqdm

from unskew.clip import image_counts
from unskew.clip.backbones import Backbone
from unskew.config.defaults import get_cfg_default
from unskew.data.images import file_keys, read_image, to_rgb
from unskew.data.transforms import build_transform
from unskew.utils import processes
from unskew.utils.row_store import Keys, RowStore, add_rows, locked, missing_in, open_store

# Part of the key of stored features: increase it when images are read or encoded with other results.
VERSION = 2

# Views to load at once: on a GPU a batch, so that small datasets keep several decoding processes busy.
_LOADED = {"cpu": 128, "cuda": 256}

# Views per batch: on CPUs as many as have the pixels of 16 images of 224 x 224, so that a single image costs little.
_MOST = {"cpu": 64, "cuda": 256}
_MOST_PIXELS_ON_CPU = 16 * 224 * 224

# Smaller batch sizes, by device, after a batch did not fit in memory. They may change the last bits of features.
_limits: dict[str, int] = {}

# Smaller numbers of images are read before a worker process has started.
WORKERS_FROM = 1024

# Number of images to encode before writing them; an interrupted process loses no more.
AT_ONCE = 20_000


class ImageTower(Protocol):
    """An encoder of preprocessed images, such as `Backbone`; ``id`` identifies its weights."""

    id: str
    dtype: torch.dtype

    @property
    def device(self) -> torch.device:
        """The device of the weights."""

    def encode_image(self, images: Tensor) -> Tensor:
        """Encode images: [N, 3, H, W] -> [N, D]."""


class _Views(Dataset[Tensor]):
    """Decoded and transformed images. A view's random draws depend only on its number and the file's name.

    If a transform ends in `ToTensor` and `Normalize`, `finish` applies these two to whole batches on the backbone's
    device; the numbers are equal.
    """

    def __init__(
        self,
        paths: Sequence[str],
        transform: Callable,
        views: Sequence[int] | None,
        dataset: str = "",
        upright: bool = False,
    ) -> None:
        self.paths, self.views, self.dataset, self.upright = paths, views, dataset, upright
        self.count = 1 if views is None else len(views)
        self.transform, self.normalize = transform, None
        if isinstance(transform, T.Compose) and type(transform) is T.Compose:
            steps = transform.transforms
            if [type(step) for step in steps[-2:]] == [T.ToTensor, T.Normalize]:
                self.transform, self.normalize = T.Compose(steps[:-2]), steps[-1]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        """Return [V, 3, H, W], or [V, H, W, 3] in bytes for `finish`; the image is decoded once."""
        image = read_image(self.paths[index], dataset=self.dataset, upright=self.upright)
        if self.views is None:
            return self._view(image)[None]
        name = "/".join(Path(self.paths[index]).parts[-2:])
        state = torch.get_rng_state()  # torch.manual_seed would also reseed every GPU, and is slow
        try:
            views = []
            for view in self.views:
                torch.default_generator.manual_seed(_view_seed(name, view))
                views.append(self._view(image))
            return torch.stack(views)
        finally:
            torch.set_rng_state(state)

    def _view(self, image: Image.Image) -> Tensor:
        view = self.transform(image)
        return view if self.normalize is None else torch.from_numpy(np.array(view))

    def finish(self, batch: Tensor) -> Tensor:
        """Turn the loader's views into float32 images [B, 3, H, W] on their device."""
        if self.normalize is None:
            return batch
        # With a Python number a GPU would multiply by the reciprocal, which sometimes differs in the last bit.
        return self.normalize(batch.movedim(-1, 1).float() / torch.full((), 255.0, device=batch.device))


def _view_seed(name: str, view: int) -> int:
    """Return the seed of a view. It is independent of the data root: only file and folder names count."""
    return int.from_bytes(hashlib.sha256(f"{name} {view}".encode()).digest()[:8], "little") >> 1


def encode_images(backbone: Backbone, images: Sequence[str | Path | Image.Image] | Tensor) -> Tensor:
    """Encode images with the backbone's own preprocessing.

    The features of image files are cached on disk, so that a file is encoded once. Images are turned by their EXIF
    orientation, and transparent ones are put on white.

    Args:
        backbone: a `Backbone`.
        images: N paths of image files or PIL images, or preprocessed images [N, 3, H, W].

    Returns:
        Features [N, D], float32 on the backbone's device, not normalised.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: no images, or a file is not a readable image.

    Examples:
        >>> from PIL import Image
        >>> import unskew
        >>> images = [Image.new("RGB", (48, 40), "red"), Image.new("RGB", (32, 32), "blue")]
        >>> unskew.encode_images(unskew.load_backbone("micro"), images).shape
        torch.Size([2, 64])
    """
    if isinstance(images, str | Path | Image.Image):
        raise ValueError(f"images must be a list of images (got {images!r})")
    if not len(images):
        raise ValueError("no images to encode")
    if isinstance(images, Tensor):
        return _encode_pixels(backbone, images)
    transform: Any = build_transform(get_cfg_default(), backbone, train=False)
    files = [str(image) for image in images if isinstance(image, str | Path)]
    if len(files) == len(images):
        return extract(backbone, files, transform, upright=True)
    rows, size = [], _LOADED.get(backbone.device.type, 128)
    for first in range(0, len(images), size):
        pixels = torch.stack([transform(_as_rgb(image)) for image in images[first : first + size]])
        rows.append(_encode_pixels(backbone, pixels))
    return torch.cat(rows)


def _as_rgb(image: str | Path | Image.Image) -> Image.Image:
    if not isinstance(image, str | Path | Image.Image):
        raise ValueError(f"an image must be a path or a PIL image (got {type(image).__name__})")
    return to_rgb(image, upright=True) if isinstance(image, Image.Image) else read_image(str(image), upright=True)


@torch.no_grad()
def _encode_pixels(backbone: Backbone, pixels: Tensor) -> Tensor:
    rows = _encode_batch(backbone, pixels, lambda batch: batch)
    _check_finite(backbone, rows, [f"image {number}" for number in range(len(rows))])
    return rows.to(backbone.device).float()


def extract(
    backbone: ImageTower,
    paths: Sequence[str],
    transform: Callable,
    *,
    views: Sequence[int] | None = None,
    keep: bool = True,
    workers: int = 0,
    dataset: str = "",
    upright: bool = False,
    shared: bool = False,
) -> Tensor:
    """Encode image files with a frozen tower, each at most once.

    Several processes of one run share the images with ``shared``: each encodes a part, all return all features, and the
    main process writes them.

    Args:
        backbone: a `Backbone` or another `ImageTower`.
        paths: N image files; opened PIL images, which are never kept, may be among them.
        transform: function image -> [3, H, W]; its ``repr`` must include its settings, as torchvision's does.
        views: numbers of the augmented views of each image; ``None`` for a transform without randomness.
        keep: read rows from disk, and write new rows there.
        workers: processes that decode images.
        dataset: the dataset's name, for errors.
        upright: see `unskew.data.images.read_image`.
        shared: all processes of the run make this call together.

    Returns:
        [N, D], or [N, V, D] with ``views``: float32 on the backbone's device, not normalised.

    Raises:
        FileNotFoundError: an image is missing; the message names it.
        ValueError: no paths, an unreadable image, or features that are not finite; the message names the image.
    """
    if not paths:
        raise ValueError("no images to encode: the split is empty")
    numbers = [None] if views is None else list(views)
    settings = {
        "backbone": backbone.id,
        "dtype": str(backbone.dtype),
        "device": backbone.device.type,
        "transform": repr(transform),
        "upright": upright,
        "version": VERSION,
    }
    in_memory = not all(isinstance(path, str) for path in paths)
    keep, shared = keep and not in_memory, shared and processes.in_group()
    # One store per view: runs of more epochs need the views of shorter ones.
    stores = {
        view: open_store("features", settings | {"views": [view]}) if keep else RowStore(None) for view in numbers
    }
    with processes.together(shared):
        keys = np.arange(len(paths)) if in_memory else file_keys(paths)
    with locked(list(stores.values()), keys, shared):
        for chunk, missing in _chunks(stores, keys, keep, shared):
            chosen = None if views is None else missing
            mine = processes.share(chunk) if shared else chunk
            images = _Views([paths[index] for index in mine], transform, chosen, dataset, upright)
            encoded = None
            with processes.together(shared):
                encoded = _encode(backbone, images, workers) if len(images) else None
            features = processes.gather(encoded, len(chunk), shared)  # [n, V, D]
            parts = zip(missing, features.split(1, 1), strict=True)
            add_rows([(stores[view], part) for view, part in parts], keys[chunk], shared)
    rows = _take([stores[view] for view in numbers], keys, backbone.device)
    return rows[:, 0] if views is None else rows


def _chunks(stores: Mapping[Any, RowStore], keys: Keys, keep: bool, shared: bool) -> Iterator[tuple[Keys, list[Any]]]:
    """Yield indices of images together with the views that they lack, so that each image is decoded once."""
    _, first = np.unique(keys, return_index=True)
    first.sort()
    lacks = missing_in(list(stores.values()), keys[first], shared)  # [n, V]
    for store, column in zip(stores.values(), lacks.T, strict=True):
        image_counts.add(store if keep else None, keys[first], column)
    for pattern in np.unique(lacks[lacks.any(1)], axis=0):  # one, unless other runs had some of the images
        images = first[(lacks == pattern).all(1)]
        for chunk in np.array_split(images, -(-len(images) // AT_ONCE)):
            yield chunk, list(itertools.compress(stores, pattern))


def _take(stores: Sequence[RowStore], keys: Keys, device: torch.device) -> Tensor:
    """Return the rows [N, V, D] of images in float32; V is the number of stores."""
    first = stores[0].take(keys).to(device).float()
    if len(stores) == 1:
        return first
    rows = first.new_empty(len(keys), len(stores), first.shape[-1])
    rows[:, :1] = first
    for number, store in enumerate(stores[1:], 1):
        rows[:, number : number + 1] = store.take(keys)
    return rows


@torch.no_grad()
def _encode(backbone: ImageTower, images: _Views, workers: int) -> Tensor:
    """Encode images: [n, V, D] on the CPU, in the backbone's precision."""
    kind = backbone.device.type
    batch = max(1, _LOADED.get(kind, 128) // images.count)
    # Starting workers takes longer than a few batches, and more workers than cores slow each other down.
    workers = min(workers, processes.cores()) if len(images) * images.count >= WORKERS_FROM else 0
    # A separate generator: other random numbers must not depend on which images had to be encoded.
    loader = DataLoader(images, batch, num_workers=workers, pin_memory=kind == "cuda", generator=torch.Generator())
    rows: list[Tensor] = []
    with tqdm(total=len(images), desc="encoding images", unit="image", delay=2, leave=False, disable=None) as bar:
        for number, pixels in enumerate(loader):
            features = _encode_batch(backbone, pixels.flatten(0, 1), images.finish).unflatten(0, (-1, images.count))
            _check_finite(backbone, features, images.paths[number * batch :])
            rows.append(features)
            bar.update(len(pixels))
    return torch.cat(rows)


def _encode_batch(backbone: ImageTower, views: Tensor, finish: Callable[[Tensor], Tensor]) -> Tensor:
    """Encode views to [B, D] on the CPU, in batches of one shape: kernels round differently for other shapes.

    If the device runs out of memory, the batch size is halved from now on.
    """
    kind = backbone.device.type
    size = _batch_size(kind, views[0].numel() // 3)
    rows = []
    try:
        for chunk in views.split(size):
            padding = chunk.new_zeros(size - len(chunk), *chunk.shape[1:])
            pixels = finish(torch.cat([chunk, padding]).to(backbone.device, non_blocking=True))
            # Convolutions are faster on this layout.
            encoded = backbone.encode_image(pixels.contiguous(memory_format=torch.channels_last))
            rows.append(encoded[: len(chunk)].cpu())
        return torch.cat(rows).to(backbone.dtype)
    except torch.OutOfMemoryError:
        if size == 1:
            raise
    _limits[kind] = size // 2
    torch.cuda.empty_cache()
    return _encode_batch(backbone, views, finish)


def _batch_size(kind: str, pixels: int) -> int:
    """Return the number of views in a batch, which depends only on the device and on the pixels of a view."""
    size = _MOST.get(kind, 64)
    if kind == "cpu":
        size = min(size, _MOST_PIXELS_ON_CPU // pixels)
    return max(1, min(size, _limits.get(kind, size)))


def _check_finite(backbone: ImageTower, rows: Tensor, images: Sequence[str]) -> None:
    """Raise ``ValueError`` for features [n, ..., D] that are not finite; the message names the first image."""
    finite = rows.isfinite().flatten(1).all(1)
    if not finite.all():
        raise ValueError(
            f"backbone '{backbone.id}' gives features that are not finite for '{images[int(finite.int().argmin())]}': "
            "its weights are damaged or do not suit the precision; fetch them again, or set TRAINER.PREC to fp32"
        )
