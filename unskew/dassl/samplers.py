"""Dassl's samplers of domains and classes, added to the loaders' table when this module is imported.

Without a generator they draw from Python's and NumPy's global generators exactly as Dassl does, so that a script visits
the same images.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import RandomSampler, Sampler, SequentialSampler

from unskew.data.dataset import Datum
from unskew.data.samplers import SAMPLERS, build_sampler

__all__ = [
    "RandomClassSampler",
    "RandomDomainSampler",
    "RandomSampler",
    "SeqDomainSampler",
    "SequentialSampler",
    "build_sampler",
]


class _Draws:
    """A source of random draws with the methods of Python's and NumPy's generators that the samplers call."""

    def __init__(self, generator: torch.Generator | None) -> None:
        self.python: Any = random
        self.numpy: Any = np.random
        if generator is not None:
            seeds = torch.randint(2**32, (2,), generator=generator).tolist()
            self.python, self.numpy = random.Random(seeds[0]), np.random.RandomState(seeds[1])


class _BatchSampler(Sampler[int]):
    """Indices of whole batches. Passes over the data follow each other until ``len`` is reached.

    The number of batches in a pass can depend on its random draws, but the length of a loader must be exact. So the
    length is that of a first pass, drawn here.
    """

    def __init__(self, data_source: Sequence[Datum], group: str, generator: torch.Generator | None) -> None:
        self.generator = generator
        self.groups: dict[int, list[int]] = defaultdict(list)
        for index, item in enumerate(data_source):
            self.groups[getattr(item, group)].append(index)
        self.length = 0

    def _batches(self, draws: _Draws) -> Iterator[list[int]]:
        """Yield the batches of one pass."""
        raise NotImplementedError

    def _measure(self, needed: str) -> None:
        # A generator belongs to the epochs, so the length comes from another one.
        draws = _Draws(None if self.generator is None else torch.Generator().manual_seed(0))
        self.length = sum(len(batch) for batch in self._batches(draws))
        if not self.length:
            raise ValueError(f"{type(self).__name__} cannot fill a batch: it needs {needed}")

    def _endless(self) -> Iterator[int]:
        draws = _Draws(self.generator)
        while True:
            yield from chain.from_iterable(list(self._batches(draws)))  # a whole pass at once: transforms draw, too

    def __iter__(self) -> Iterator[int]:
        return islice(self._endless(), self.length)

    def __len__(self) -> int:
        return self.length


class RandomDomainSampler(_BatchSampler):
    """Batches of ``batch_size / n_domain`` images from each of ``n_domain`` random domains (0: all domains).

    A pass ends when a drawn domain has too few images left for another batch.
    """

    def __init__(
        self, data_source: Sequence[Datum], batch_size: int, n_domain: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(data_source, "domain", generator)
        self.n_domain = n_domain if n_domain and n_domain > 0 else len(self.groups)
        if self.n_domain > len(self.groups) or batch_size % self.n_domain:
            raise ValueError(
                f"a batch of {batch_size} cannot be divided among {self.n_domain} of {len(self.groups)} domains; "
                "change BATCH_SIZE or N_DOMAIN"
            )
        self.share = batch_size // self.n_domain
        self._measure(f"{self.share} images in each domain")

    def _choose(self, draws: _Draws) -> list[int]:
        return draws.python.sample(list(self.groups), self.n_domain)

    def _batches(self, draws: _Draws) -> Iterator[list[int]]:
        pools = {domain: list(indices) for domain, indices in self.groups.items()}
        if min(map(len, pools.values())) < self.share:
            return
        is_enough = True
        while is_enough:
            batch: list[int] = []
            for domain in self._choose(draws):
                drawn = draws.python.sample(pools[domain], self.share)
                batch += drawn
                taken = set(drawn)
                pools[domain] = [index for index in pools[domain] if index not in taken]
                is_enough &= len(pools[domain]) >= self.share
            yield batch


class SeqDomainSampler(RandomDomainSampler):
    """Batches with the same number of images of every domain, domains in order."""

    def __init__(self, data_source: Sequence[Datum], batch_size: int, generator: torch.Generator | None = None) -> None:
        super().__init__(data_source, batch_size, 0, generator)

    def _choose(self, draws: _Draws) -> list[int]:
        return sorted(self.groups)


class RandomClassSampler(_BatchSampler):
    """Batches of ``n_ins`` images from each of ``batch_size // n_ins`` random classes.

    A class with fewer than ``n_ins`` images is sampled with replacement.
    """

    def __init__(
        self, data_source: Sequence[Datum], batch_size: int, n_ins: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(data_source, "label", generator)
        if not 1 <= n_ins <= batch_size:
            raise ValueError(f"N_INS must be between 1 and the batch size {batch_size}, got {n_ins}")
        self.n_ins, self.n_classes = n_ins, batch_size // n_ins
        self._measure(f"{self.n_classes} classes and there are {len(self.groups)}; lower BATCH_SIZE or raise N_INS")

    def _batches(self, draws: _Draws) -> Iterator[list[int]]:
        pools: dict[int, list[list[int]]] = {}
        for label, indices in self.groups.items():
            order = list(indices)
            if len(order) < self.n_ins:
                order = draws.numpy.choice(order, size=self.n_ins, replace=True).tolist()
            draws.python.shuffle(order)
            pools[label] = [order[i : i + self.n_ins] for i in range(0, len(order) - self.n_ins + 1, self.n_ins)]
        while len(pools) >= self.n_classes:
            batch: list[int] = []
            for label in draws.python.sample(list(pools), self.n_classes):
                batch += pools[label].pop(0)
                if not pools[label]:
                    del pools[label]
            yield batch


SAMPLERS.update(
    RandomDomainSampler=lambda data, batch_size, n_domain, n_ins, g: RandomDomainSampler(data, batch_size, n_domain, g),
    SeqDomainSampler=lambda data, batch_size, n_domain, n_ins, g: SeqDomainSampler(data, batch_size, g),
    RandomClassSampler=lambda data, batch_size, n_domain, n_ins, g: RandomClassSampler(data, batch_size, n_ins, g),
)
