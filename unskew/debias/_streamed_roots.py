"""Sums over a source for the fits of one number: a temperature, and the share rho of the remaining bias."""

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from unskew.debias._softmax import Exponentials, spread
from unskew.debias._streamed import Block, computed_blocks, over_parts
from unskew.debias._streamed_scan import Streamed

# Takes logits [n, C]; returns sums over the images.
Sum = Callable[[Tensor], tuple[float, float]]


def mean_over(function: Sum, logits: Streamed, name: str) -> tuple[float, float]:
    """Return the means over the images of two numbers, from a function that sums them over a block, in one pass."""
    kernel = functools.partial(_sum, function=function, temperature=logits.temperature)
    found = list(over_parts(kernel, [logits.source], pool=logits.pool, name=name))
    first, second = (sum(several) / len(logits) for several in zip(*found, strict=True))
    return first, second


def _sum(blocks: Iterator[Block], _: None, *, function: Sum, temperature: Tensor | None) -> tuple[float, float]:
    first = second = 0.0
    for rows, (logits,) in blocks:
        for some in computed_blocks(rows, logits.shape[1]):
            block = logits[some] if temperature is None else logits[some] / temperature.to(logits.device)
            a, b = function(block)
            first, second = first + a, second + b
    return first, second


def unit(logits: Streamed) -> float:
    """Return the `spread` of the logits, from 1000 random rows."""
    return spread(logits.some(1000)[0])


def below_maximum(logits: Tensor) -> tuple[float, float]:
    """Return the sums over the rows of the mean logit and of the second largest, minus the largest."""
    highest = logits.amax(1)
    mean = (logits.mean(1, dtype=torch.float64) - highest).sum()
    return float(mean), float((logits.topk(2).values[:, 1].double() - highest).sum())


def expected_prior(logits: Tensor, *, offset: Tensor, prior: Tensor, present: Tensor) -> tuple[float, float]:
    """Return the sums of mean and variance of a log prior ``[c]`` under softmax(logits + offset).

    Args:
        logits: ``[n, C]``.
        offset: ``[c]``.
        prior: ``[c]``.
        present: ``[c]``, the classes of the softmax.
    """
    offset, prior, present = (each.to(logits.device) for each in (offset, prior, present))
    exponentials = Exponentials(logits, None, present)
    mean = exponentials.at(offset).probabilities
    variance = mean @ prior.square() - prior @ exponentials.product(prior)
    return len(logits) * float(mean @ prior), len(logits) * float(variance)
