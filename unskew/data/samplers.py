"""Samplers by name: the order in which a loader visits its images."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import RandomSampler, Sampler, SequentialSampler
from yacs.config import CfgNode

from unskew.utils.registry import unknown_name

# (items, batch_size, n_domain, n_ins, generator) -> sampler
SamplerFactory = Callable[[Sequence[Any], int, int, int, torch.Generator | None], Sampler[int]]

# Key of a batch in which several processes note their part of it, a `Share`.
SHARE = "share"

# None: a sampler of Dassl's API, which `unskew.dassl.samplers` adds.
SAMPLERS: dict[str, SamplerFactory | None] = {
    "RandomSampler": lambda items, batch_size, n_domain, n_ins, generator: RandomSampler(items, generator=generator),
    "SequentialSampler": lambda items, batch_size, n_domain, n_ins, generator: SequentialSampler(items),
    "RandomDomainSampler": None,
    "SeqDomainSampler": None,
    "RandomClassSampler": None,
}


def build_sampler(
    sampler_type: str,
    cfg: CfgNode | None = None,
    data_source: Sequence[Any] | None = None,
    batch_size: int = 32,
    n_domain: int = 0,
    n_ins: int = 16,
    generator: torch.Generator | None = None,
) -> Sampler[int]:
    """Build the sampler named ``sampler_type``, with Dassl's arguments.

    Args:
        sampler_type: a key of `SAMPLERS`.
        cfg: not used; an argument of Dassl's function.
        data_source: the items to sample from.
        batch_size: the number of items in a batch.
        n_domain: domains per batch, for RandomDomainSampler; 0 for all.
        n_ins: images per class in a batch, for RandomClassSampler.
        generator: source of the random draws; PyTorch's global generator unless given.

    Raises:
        ValueError: ``sampler_type`` is unknown, or is Dassl's and `unskew.dassl` is not loaded.
    """
    if sampler_type not in SAMPLERS:
        raise ValueError(unknown_name("sampler", sampler_type, SAMPLERS))
    factory = SAMPLERS[sampler_type]
    if factory is None:
        raise ValueError(
            f"{sampler_type} is a sampler of Dassl's API: use `python -m unskew.dassl`, `--plugin`, or "
            "`import unskew.dassl.data`"
        )
    return factory(data_source or (), batch_size, n_domain, n_ins, generator)
