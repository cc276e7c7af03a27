"""Times of the epochs of trainers, also of a trainer that another one trains."""

import time
from typing import NamedTuple

from measure import synchronize


class Epoch(NamedTuple):
    """The number of an epoch from 0, when it started, and the seconds of its batches, validation excluded."""

    number: int
    start: float
    seconds: float


EPOCHS: list[Epoch] = []  # of all timed trainers since the list was cleared


class Timed:
    """A mixin of trainers that appends each epoch to `EPOCHS`."""

    def run_epoch(self) -> None:
        synchronize()
        start = time.perf_counter()
        super().run_epoch()
        synchronize()
        EPOCHS.append(Epoch(self.epoch, start, time.perf_counter() - start))


def timed(cls: type) -> type:
    """Return a subclass whose epochs are timed."""
    return type(f"Timed{cls.__name__}", (Timed, cls), {})
