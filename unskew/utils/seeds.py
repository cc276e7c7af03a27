"""Random seeds: derived ones, and the global generators."""

import random

import numpy as np
import torch


def set_random_seed(seed: int) -> None:
    """Seed Python's, numpy's and PyTorch's global generators; 0 is a seed, a negative number does nothing."""
    if seed < 0:
        return
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - third-party code draws from it
    # Without a device torch.manual_seed only queues calls for one, with a stack trace each, at every epoch.
    has_device = torch.cuda.is_available() or torch.backends.mps.is_available()
    (torch if has_device else torch.default_generator).manual_seed(seed)


def derive_seed(seed: int, *keys: int) -> int:
    """A seed in [0, 2^32) for one use of ``seed``, such as (seed, epoch); unrelated for other keys.

    A negative ``seed`` means unseeded: the result is drawn from the system.
    """
    entropy = None if seed < 0 else [seed, *keys]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])
