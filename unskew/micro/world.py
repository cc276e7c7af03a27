"""The drawn world: factors and their frequencies, phrases, and images of coloured shapes and real digits.

All functions are vectorised over images. The passed generator is the only source of randomness, so that a seed fixes
every bit. An image has four independent factors; a caption names some of them. Factor values are indices into
``FACTORS``.
"""

from collections.abc import Mapping
from functools import cache

import numpy as np

from unskew.micro._drawing import (
    GROUNDS,
    HUES,
    PATTERNS,
    SHAPES,
    SIZE,
    Style,
    bilinear,
    draw_backgrounds,
    draw_masks,
    draw_patterns,
    expose,
    frame,
    hsv,
    uniform,
)

FACTORS: dict[str, tuple[str, ...]] = {
    "shape": tuple(SHAPES),
    "colour": tuple(HUES),
    "pattern": PATTERNS,
    "background": tuple(GROUNDS),
    "digit": tuple("zero one two three four five six seven eight nine".split()),
}
_HUE_VALUES = np.array(list(HUES.values()), np.float32)
VISUAL = ("shape", "colour", "pattern", "background")  # the factors that a rendered image has
IMBALANCE = {"shape": 12.0, "colour": 8.0, "pattern": 8.0, "background": 3.0, "digit": 50.0}

# The first template is the zero-shot prompt. Some are long to train late positions of the text tower, because learned
# contexts put the class name there.
TEMPLATES = (
    "a photo of a {}.",
    "{}",
    "a {}.",
    "this is a {}.",
    "a picture of one {}.",
    "a small drawing of the {}.",
    "a blurry photo of a {} in bad light.",
    "there is a {} here.",
    "an old and noisy image that shows a {} somewhere near the middle.",
    "in this tiny photo, which was taken from far away on some other day, you can see a {}.",
    "look at this: it is not easy to see, but the thing in the middle of this picture must be a {}.",
)
DIGIT_TEMPLATES = (
    "a photo of the digit {}.",
    "{}",
    "a {}.",
    "the digit {}.",
    "the number {}, written by hand.",
    "a small drawing of the number {}.",
    "a blurry photo of a {} in bad light.",
    "in this tiny photo, which was taken from far away on some other day, you can see the digit {}.",
    "look at this: it is not easy to see, but the thing in the middle of this picture must be a {}.",
)


PRETRAINING = Style()


def frequencies(seed: int) -> dict[str, np.ndarray]:
    """Return the label frequencies of a pre-training set: ``{factor: [K]}``, each with sum 1.

    The profile of each factor is exponential with the ratio ``IMBALANCE`` of the most to the least frequent value.
    ``seed`` fixes the order of the values.
    """
    result = {}
    for i, (factor, names) in enumerate(FACTORS.items()):
        profile = IMBALANCE[factor] ** -np.linspace(0, 1, len(names))
        result[factor] = np.random.default_rng([seed, i]).permutation(profile / profile.sum())
    return result


def phrase(names: dict[str, str]) -> str:
    """Return the noun phrase of factor values: ``{"shape": "circle", "colour": "red"}`` -> "red circle"."""
    if "digit" in names:
        return names["digit"]
    words = [names[f] for f in ("colour", "pattern") if f in names] + [names.get("shape", "thing")]
    return " ".join(words) + (f" on {names['background']}" if "background" in names else "")


def phrases(subset: tuple[str, ...]) -> list[str]:
    """Return all distinct phrases that name the factors ``subset``, in row-major order of the values."""
    grid = np.ndindex(*(len(FACTORS[f]) for f in subset))
    return [phrase({f: FACTORS[f][v] for f, v in zip(subset, values, strict=True)}) for values in grid]


def render(factors: Mapping[str, np.ndarray], rng: np.random.Generator, style: Style = PRETRAINING) -> np.ndarray:
    """Draw images of factor values.

    Args:
        factors: for each factor in ``VISUAL``, indices [N] into ``FACTORS``.
        rng: the source of the jitter.
        style: the ranges of the jitter.

    Returns:
        uint8 [N, 32, 32, 3].
    """
    shape, colour, pattern, background = (factors[f] for f in VISUAL)
    n = len(shape)
    grain = rng.standard_normal((n, SIZE, SIZE), dtype=np.float32)
    scene = draw_backgrounds(background, grain, rng)
    mask, x, y = draw_masks(shape, rng, style)
    tone = draw_patterns(pattern, x, y, rng)  # [N,32,32]: 1 is the colour itself, 0 its dark or light version
    hue = _HUE_VALUES[colour] + style.tint + uniform(rng, n, -style.hue, style.hue)
    paint = hsv(hue, uniform(rng, n, *style.saturation), uniform(rng, n, *style.value))  # [N,3]
    other = np.where(rng.random((n, 1)) < 0.5, 0.4 * paint, 0.4 * paint + 0.6).astype(np.float32)
    scene += mask[..., None] * (other[:, None, None] - scene)
    scene += (mask * tone)[..., None] * (paint - other)[:, None, None]
    return expose(scene, rng, style)


def render_digits(images: np.ndarray, rng: np.random.Generator, style: Style = PRETRAINING) -> np.ndarray:
    """Draw real digits [N, 8, 8] with values in 0..1 in random ink on random paper: uint8 [N, 32, 32, 3]."""
    n = len(images)
    x, y = frame(rng, n, (8.5, 13.0), style)
    ink = bilinear(images.astype(np.float64), x * 4 + 3.5, y * 4 + 3.5)
    paper = hsv(rng.random(n), uniform(rng, n, 0, 0.5), uniform(rng, n, 0, 1))
    pen = hsv(rng.random(n), uniform(rng, n, 0.2, 0.8), uniform(rng, n, 0.3, 1))
    # without a difference in lightness, the digit would be invisible
    gap = (pen - paper).mean(1, keepdims=True)
    pen = pen + np.where(np.abs(gap) < 0.25, np.where(paper.mean(1, keepdims=True) < 0.5, 0.5, -0.5), 0)
    scene = paper[:, None, None] + ink[..., None] * (pen - paper)[:, None, None]
    return expose(scene.astype(np.float32), rng, style)


@cache
def _load_digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    data = load_digits()
    first = np.zeros(len(data.target), bool)
    for digit in range(10):  # alternate within each class: both halves have the same number of images
        first[np.flatnonzero(data.target == digit)[::2]] = True
    return (data.images / 16).astype(np.float32), data.target, first


def digits(pretraining: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return one half of scikit-learn's real handwritten digits.

    Args:
        pretraining: return the half for pre-training, else the half for downstream datasets.

    Returns:
        Images [N, 8, 8] in 0..1 and labels [N].
    """
    images, labels, first = _load_digits()
    keep = first if pretraining else ~first
    return images[keep], labels[keep]
