"""OTTER: exact optimal transport of images to classes of given frequencies (Shin et al., arXiv 2404.08461).

The plan is the joint distribution of images and classes with the least expected cost ``-log P(y|x)`` whose marginals
are uniform over the images and the target frequencies over the classes. The dual prices of the class marginals turn
the plan into an offset of the logits, which makes any other offset of each class irrelevant.
"""

import importlib.util
import logging
import warnings

import numpy as np
import torch

from unskew.debias._validation import Array, as_logits, check_logits, to_kind, to_prior, uses_numpy

logger = logging.getLogger("unskew")

# Images times classes: a transport of this size takes about 13 GB.
MOST_CELLS = 2**28

MOST_PIVOTS = 10**9

# Smaller parts of an image, relative to its largest, are rounding: a target in single precision is off by 1e-5 images.
LEAST_PART = 1e-3


def check_installed() -> None:
    """Raise a ``ValueError`` unless POT is installed."""
    if importlib.util.find_spec("ot") is None:
        raise ValueError("optimal transport needs the package POT: pip install 'unskew[transport]'")


def transport_offset(logits: Array, log_target: Array | None = None) -> Array:
    """Return the offset ``[C]`` by which ``argmax(logits - offset)`` is the optimal transport of the images.

    Each class then has its share of the images, up to images that the plan splits: they go to the class with the
    largest logit among theirs. Classes whose share is less than one image have at most one image each, and together
    the sum of their shares; a single image keeps its prediction. An offset cannot separate images with equal logits.

    The prices are not unique. With the images i of class c, they must satisfy ``offset_d - offset_c >= logits_id -
    logits_ic`` for every class d. The shortest paths over these bounds between all pairs of classes are the tightest
    bounds (Cormen et al., Introduction to Algorithms, difference constraints); the offset is their centre, at which
    no bound is tight that can be loose.

    Args:
        logits: ``[N, C]``, finite; their scale does not matter.
        log_target: ``[C]``, log frequencies of the classes, uniform if omitted; a class with ``-inf`` has no images
            and the offset ``inf``.

    Raises:
        ValueError: POT is not installed; invalid logits or target; mixed kinds of arrays; more than `MOST_CELLS`
            logits; the solver stopped early.

    Examples:
        >>> import numpy as np
        >>> from unskew.debias import transport_offset
        >>> logits = np.array([[3.0, 0.0], [2.0, 0.0], [1.0, 0.0], [0.5, 0.0]])
        >>> (logits - transport_offset(logits)).argmax(1)
        array([0, 0, 1, 1])
    """
    numpy = uses_numpy(logits=logits, log_target=log_target)
    (original,) = as_logits(logits=logits)
    scores = check_logits(original, None)[0]
    samples, classes = scores.shape
    if samples * classes > MOST_CELLS:
        raise ValueError(
            f"optimal transport of {samples:,} images to {classes:,} classes exceeds {MOST_CELLS:,} cells: predict "
            "fewer images at once, or combine with map"
        )
    uniform = scores.new_zeros(classes)
    target = uniform if log_target is None else to_prior(log_target, "log_target", classes, scores)
    frequencies = target.softmax(0)
    present = frequencies.nonzero().flatten()
    offset = torch.full_like(frequencies, torch.inf)
    costs = (scores.amax(1, keepdim=True) - scores[:, present]).cpu().numpy()
    prices = _prices(costs, frequencies[present].cpu().numpy()) if len(present) > 1 else np.zeros(1)
    offset[present] = -torch.from_numpy(prices).to(offset)
    shares = samples * frequencies
    missed = (scores - offset).argmax(1).bincount(minlength=classes) - shares
    if float(missed.abs().max()) >= 2:
        logger.warning(
            f"ties: images or classes with equal logits cannot be separated, and a class has "
            f"{float(missed.abs().max()):.0f} images too many or too few"
        )
    return to_kind(offset.to(original.device, torch.promote_types(original.dtype, torch.float32)), numpy)


def _prices(costs: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """Return the central dual prices ``[C]`` of the classes: each image goes to its least ``costs - prices``."""
    from scipy.sparse.csgraph import csgraph_from_dense, floyd_warshall  # half a second that other methods save

    samples, classes = costs.shape
    plan, prices = _transport(costs, samples * frequencies / frequencies.sum())
    split = plan > LEAST_PART * plan.max(1, keepdims=True)
    assigned = np.where(split, costs, np.inf).argmin(1)  # [N]
    slack = np.full((classes, classes), np.inf)  # of the bound on prices_d - prices_c, in row c and column d
    for c in np.unique(assigned):
        rows = costs[assigned == c]
        slack[c] = (rows - rows[:, c, None]).min(0)
    slack = np.maximum(slack - (prices - prices[:, None]), 0)
    largest = slack[np.isfinite(slack)].max()
    slack[np.isinf(slack)] = largest + 1  # a class without images has no bound
    tightest = floyd_warshall(csgraph_from_dense(slack, null_value=np.inf))
    prices = prices + (tightest.mean(0) - tightest.mean(1)) / 2
    return prices - prices.mean()


def _transport(costs: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the plan ``[N, C]``, whose rows sum to one and columns to ``shares``, and dual prices of the classes.

    A share below 1 becomes 1, and a further row takes the rest from these classes.
    """
    check_installed()
    import ot

    masses, samples = np.ones(len(costs)), len(costs)
    small = shares < 1 - 1e-9
    if small.any():
        masses = np.append(masses, (1 - shares[small]).sum())
        prohibitive = (len(shares) + 1) * (1 + costs.max())
        costs = np.vstack([costs, np.where(small, 0, prohibitive)])
        shares = np.where(small, 1, shares)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # raised below
        plan, log = ot.emd(masses, shares, costs, numItermax=MOST_PIVOTS, log=True)
    if log["warning"] is not None:
        raise ValueError(f"the optimal transport of {samples:,} images is not solved ({log['warning']})")
    return plan[:samples], log["v"]
