"""Batches of cached image features, for trainers that keep the image tower frozen."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from unskew.data.dataset import Datum
from unskew.data.samplers import SHARE
from unskew.utils.processes import Share
from unskew.utils.seeds import derive_seed


class FeatureLoader:
    """Batches of the training images' features. Epoch e uses the augmented view e modulo ``views``.

    The first epoch that needs a view encodes it, so that a run of few epochs encodes few views.

    The order of epoch e depends only on the seed and e, so that a resumed run sees the same batches. An incomplete
    last batch is dropped if there is a complete one, as in Dassl.

    Args:
        items: the training images.
        encode: function ``encode(paths, views, keep)`` -> features [N, V, D].
        batch_size: images per batch of all processes together.
        views: the number of views to keep; 0 draws and encodes a new view every epoch.
        seed: the seed of the order, and of new views.
        rank: the number of this process.
        world: the number of processes; each takes its part of every batch, and notes it in the batch.
    """

    def __init__(
        self,
        items: Sequence[Datum],
        encode: Callable[[Sequence[str], Sequence[int], bool], Tensor],
        batch_size: int,
        views: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.paths = [item.impath for item in items]
        self.labels = torch.tensor([item.label for item in items])
        self.encode, self.batch_size, self.views, self.seed = encode, batch_size, views, seed
        self.rank, self.world = rank, world
        self.epoch = 0
        self._kept: dict[int, Tensor] = {}  # [N, D] by the number of the view

    def __len__(self) -> int:
        return max(1, len(self.paths) // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = epoch

    def _view(self) -> Tensor:
        """Return the features [N, D] of this epoch."""
        if self.views == 0:
            return self.encode(self.paths, [derive_seed(self.seed, self.epoch)], False)[:, 0]
        view = self.epoch % self.views
        if view not in self._kept:
            self._kept[view] = self.encode(self.paths, [view], True)[:, 0]
        return self._kept[view]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        rows = {"features": self._view()}
        device = rows["features"].device
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        order = torch.randperm(len(self.paths), generator=generator).to(device)
        rows["label"] = self.labels.to(device)
        epoch = {name: values.index_select(0, order) for name, values in rows.items()} | {"index": order}
        for places, share in self.batches(len(order)):
            yield {**{name: values[places] for name, values in epoch.items()}, **share}

    def batches(self, count: int) -> Iterator[tuple[slice, dict[str, Share]]]:
        """Yield the places of this process's images in an epoch of ``count`` images, batch by batch, and its share."""
        for step in range(len(self)):
            first, last = step * self.batch_size, min((step + 1) * self.batch_size, count)
            share = Share.of(last - first, self.rank, self.world)
            rows = slice(first + share.rows.start, first + share.rows.stop, share.rows.step)
            yield rows, {} if self.world == 1 else {SHARE: share}
