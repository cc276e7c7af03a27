"""Dassl's samplers of domains and classes, added to the loaders' table when this module is imported."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TypeVar

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


Item = TypeVar("Item")


def _shuffled(items: Sequence[Item], generator: torch.Generator) -> list[Item]:
    return [items[i] for i in torch.randperm(len(items), generator=generator).tolist()]


class _BatchSampler(Sampler[int]):
    """Indices of whole batches. Passes over the data follow each other until ``len`` is reached.

    The number of batches in a pass can depend on its random draws, but the length of a loader must be exact. So the
    length is that of one pass with a separate generator.
    """

    def __init__(self, data_source: Sequence[Datum], group: str, generator: torch.Generator | None) -> None:
        self.generator = torch.default_generator if generator is None else generator
        self.groups: dict[int, list[int]] = defaultdict(list)
        for index, item in enumerate(data_source):
            self.groups[getattr(item, group)].append(index)
        self.length = 0

    def _batches(self, generator: torch.Generator) -> Iterator[list[int]]:
        """Yield the batches of one pass."""
        raise NotImplementedError

    def _measure(self, needed: str) -> None:
        self.length = sum(len(batch) for batch in self._batches(torch.Generator().manual_seed(0)))
        if not self.length:
            raise ValueError(f"{type(self).__name__} cannot fill a batch: it needs {needed}")

    def _endless(self) -> Iterator[int]:
        while True:
            for batch in self._batches(self.generator):
                yield from batch

    def __iter__(self) -> Iterator[int]:
        return islice(self._endless(), self.length)

    def __len__(self) -> int:
        return self.length


class RandomDomainSampler(_BatchSampler):
    """Batches of ``batch_size / n_domain`` images from each of ``n_domain`` random domains (0: all domains).

    A pass ends when a drawn domain has too few images left.
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

    def _choose(self, generator: torch.Generator) -> list[int]:
        return _shuffled(list(self.groups), generator)[: self.n_domain]

    def _batches(self, generator: torch.Generator) -> Iterator[list[int]]:
        pools = {domain: _shuffled(indices, generator) for domain, indices in self.groups.items()}
        while True:
            chosen = self._choose(generator)
            if any(len(pools[domain]) < self.share for domain in chosen):
                return
            yield [pools[domain].pop() for domain in chosen for _ in range(self.share)]


class SeqDomainSampler(RandomDomainSampler):
    """Batches with the same number of images of every domain, domains in order."""

    def __init__(self, data_source: Sequence[Datum], batch_size: int, generator: torch.Generator | None = None) -> None:
        super().__init__(data_source, batch_size, 0, generator)

    def _choose(self, generator: torch.Generator) -> list[int]:
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

    def _batches(self, generator: torch.Generator) -> Iterator[list[int]]:
        pools = {}
        for label, indices in self.groups.items():
            order = _shuffled(indices, generator)
            if len(order) < self.n_ins:
                order = [order[i] for i in torch.randint(len(order), (self.n_ins,), generator=generator).tolist()]
            pools[label] = [order[i : i + self.n_ins] for i in range(0, len(order) - self.n_ins + 1, self.n_ins)]
        while len(pools) >= self.n_classes:
            batch: list[int] = []
            for label in _shuffled(list(pools), generator)[: self.n_classes]:
                batch += pools[label].pop()
                if not pools[label]:
                    del pools[label]
            yield batch


SAMPLERS.update(
    RandomDomainSampler=lambda data, batch_size, n_domain, n_ins, g: RandomDomainSampler(data, batch_size, n_domain, g),
    SeqDomainSampler=lambda data, batch_size, n_domain, n_ins, g: SeqDomainSampler(data, batch_size, g),
    RandomClassSampler=lambda data, batch_size, n_domain, n_ins, g: RandomClassSampler(data, batch_size, n_ins, g),
)
