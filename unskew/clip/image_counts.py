"""A count of the image features that a run encodes and of those that it finds in the cache."""

import contextlib
import contextvars
from collections.abc import Hashable, Iterator

import numpy as np
import numpy.typing as npt

from unskew.utils.row_store import Keys


class ImageCount:
    """Numbers of image features; an augmented view counts like an image, and a repeated request does not count.

    Attributes:
        encoded: features that an image tower has computed.
        cached: features that were computed before.
    """

    def __init__(self) -> None:
        self.encoded = self.cached = 0
        self._known: dict[Hashable, Keys] = {}  # sorted keys by store

    def add(self, store: Hashable, keys: Keys, missing: npt.NDArray[np.bool_]) -> None:
        """Count a request.

        Args:
            store: what identifies the store of the features; ``None`` for features that are not kept.
            keys: [n], distinct keys of images.
            missing: [n], mask of the images that the tower encodes now.
        """
        if store is not None:
            known = self._known.get(store, np.empty(0, np.int64))
            new = ~np.isin(keys, known, assume_unique=True)
            if new.any():
                self._known[store] = np.union1d(known, keys[new])
            missing = missing[new]
        self.encoded += int(missing.sum())
        self.cached += int((~missing).sum())

    @property
    def is_empty(self) -> bool:
        """True if no features were requested, as by a model with an image tower of its own."""
        return not (self.encoded or self.cached)


_current: contextvars.ContextVar[ImageCount | None] = contextvars.ContextVar("image_count", default=None)


@contextlib.contextmanager
def counting() -> Iterator[ImageCount]:
    """Count the features that are requested inside the ``with`` block, in this thread."""
    count = ImageCount()
    token = _current.set(count)
    try:
        yield count
    finally:
        _current.reset(token)


def add(store: Hashable, keys: Keys, missing: npt.NDArray[np.bool_]) -> None:
    """Count a request in the innermost `counting`, if there is one; see `ImageCount.add`."""
    count = _current.get()
    if count is not None:
        count.add(store, keys, missing)
