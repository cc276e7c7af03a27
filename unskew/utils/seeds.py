"""Random seeds of the global generators, and seeds derived from them."""

import random

import numpy as np
import torch


def set_random_seed(seed: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch; a negative seed does nothing."""
    if seed < 0:
        return
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - third-party code draws from this generator
    # Without a device, torch.manual_seed queues a call with a stack trace for each possible device, at every epoch.
    has_device = torch.cuda.is_available() or torch.backends.mps.is_available()
    (torch if has_device else torch.default_generator).manual_seed(seed)


def derive_seed(seed: int, *keys: int) -> int:
    """Return an independent seed in [0, 2^32) for one use of a seed, such as (seed, epoch).

    A negative ``seed`` means unseeded: the result then comes from the operating system.
    """
    entropy = None if seed < 0 else [seed, *keys]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])
