"""The root of a falling function in few evaluations: each is a pass over all logits."""

import math
from collections.abc import Callable


def falling_root(
    function: Callable[[float], tuple[float, float]], low: float, high: float, start: float
) -> tuple[float, bool]:
    """Where a falling function is 0 in [low, high], and True; without a root, the nearer end, and False.

    Newton's method, to 1e-6 before its last step and so to about its square after. A step that leaves what is known
    to hold the root, or is more than half of the one before, becomes a bisection.

    Args:
        function: gives its value and slope.
    """
    x, step = start, math.inf
    below = above = None  # where the value was above 0, and below
    while True:
        value, slope = function(x)
        if value == 0:
            return x, True
        if x == (high if value > 0 else low):
            return x, False
        below, above = (x, above) if value > 0 else (below, x)
        new = x - value / slope if slope < 0 else math.copysign(math.inf, value)
        if abs(new - x) <= 1e-6 and low <= new <= high:
            return new, True
        new = min(max(new, low), high)
        known = below is not None and above is not None
        if known and (not below < new < above or abs(new - x) > step / 2):
            new = (below + above) / 2
        if new == x:  # as near as numbers come
            return x, True
        x, step = new, abs(new - x)
