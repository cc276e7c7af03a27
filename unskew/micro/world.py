"""The embedded world: a renderer of small coloured shapes, real digits, captions, and their frequencies.

Everything is vectorised over images and drawn from the generator that is passed, so a seed fixes
every bit. An image has four independent factors; a caption names some of them. Factor values are
indices into ``FACTORS`` throughout.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

SIZE = 32
FACTORS: dict[str, tuple[str, ...]] = {
    "shape": tuple("circle square triangle star cross ring diamond heart moon hexagon arrow drop".split()),
    "colour": tuple("red orange yellow green cyan blue purple pink".split()),
    "pattern": tuple("solid striped dotted checkered grid faded".split()),
    "background": tuple("snow night grass sand water brick".split()),
    "digit": tuple("zero one two three four five six seven eight nine".split()),
}
VISUAL = ("shape", "colour", "pattern", "background")  # the factors that a rendered image has
IMBALANCE = {"shape": 12.0, "colour": 8.0, "pattern": 8.0, "background": 3.0, "digit": 50.0}

# The first template of each list is the zero-shot prompt. Some are long, so that late positions of
# the text tower are trained too: learned contexts put the class name there.
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


@dataclass(frozen=True)
class Style:
    """Ranges that an image's nuisances are drawn from, uniformly. Lengths are in pixels."""

    radius: tuple[float, float] = (8.5, 13.0)
    place: float = 3.0  # largest offset of the centre
    rotation: float = 0.25  # radians, either way
    turn: float = 0.0  # radians added to every rotation
    morph: float = 0.5  # largest weight of another shape in the outline: what makes shapes ambiguous
    hue: float = 0.06  # turns, either way (neighbouring colours are about 0.1 apart)
    tint: float = 0.0  # turns added to every hue
    saturation: tuple[float, float] = (0.4, 1.0)
    value: tuple[float, float] = (0.55, 1.0)
    contrast: tuple[float, float] = (0.45, 1.0)
    noise: tuple[float, float] = (0.02, 0.12)
    occlusion: float = 0.3  # chance of a bar across the shape
    blur: float = 0.0  # weight of the 3x3 mean


PRETRAINING = Style()


def frequencies(seed: int) -> dict[str, np.ndarray]:
    """The label frequencies of a pre-training set: ``{factor: [K]}``, each summing to one.

    Each factor has an exponential profile, from its most frequent value down to ``1/IMBALANCE`` of
    that, under a permutation of its own that ``seed`` fixes.
    """
    found = {}
    for i, (factor, names) in enumerate(FACTORS.items()):
        profile = IMBALANCE[factor] ** -np.linspace(0, 1, len(names))
        found[factor] = np.random.default_rng([seed, i]).permutation(profile / profile.sum())
    return found


def phrase(names: dict[str, str]) -> str:
    """The noun phrase for some factors' names: ``{"shape": "circle", "colour": "red"}`` -> "red circle"."""
    if "digit" in names:
        return names["digit"]
    words = [names[f] for f in ("colour", "pattern") if f in names] + [names.get("shape", "thing")]
    return " ".join(words) + (f" on {names['background']}" if "background" in names else "")


def phrases(subset: tuple[str, ...]) -> list[str]:
    """All distinct phrases that name the factors ``subset``, in row-major order of its values."""
    grid = np.ndindex(*(len(FACTORS[f]) for f in subset))
    return [phrase({f: FACTORS[f][v] for f, v in zip(subset, values, strict=True)}) for values in grid]


def captions(factors: dict[str, np.ndarray], subset: tuple[str, ...], rng: np.random.Generator) -> list[str]:
    """One caption per image that names the factors ``subset`` and no other, from a random template each."""
    templates = DIGIT_TEMPLATES if "digit" in subset else TEMPLATES
    bank = phrases(subset)
    label = np.ravel_multi_index([factors[f] for f in subset], [len(FACTORS[f]) for f in subset])
    which = rng.integers(len(templates), size=len(label))
    return [templates[t].format(bank[k]) for t, k in zip(which, label, strict=True)]


def render(shape, colour, pattern, background, rng: np.random.Generator, style: Style = PRETRAINING) -> np.ndarray:
    """Draw images of the given factor values.

    Args:
        shape, colour, pattern, background: integer arrays [N], indices into ``FACTORS``.
        rng: all jitter comes from it.
        style: the ranges of the jitter.

    Returns:
        uint8 [N, 32, 32, 3].
    """
    shape, colour, pattern, background = map(np.asarray, (shape, colour, pattern, background))
    n = len(shape)
    grain = rng.standard_normal((n, SIZE, SIZE), dtype=np.float32)
    scene = _backgrounds(background, grain, rng)
    mask, x, y = _masks(shape, rng, style)
    tone = _patterns(pattern, x, y, rng)  # [N,32,32]: 1 is the colour itself, 0 its dark or light version
    hue = _HUES[colour] + style.tint + _uniform(rng, n, -style.hue, style.hue)
    paint = _hsv(hue, _uniform(rng, n, *style.saturation), _uniform(rng, n, *style.value))  # [N,3]
    other = np.where(rng.random((n, 1)) < 0.5, 0.4 * paint, 0.4 * paint + 0.6).astype(np.float32)
    scene += mask[..., None] * (other[:, None, None] - scene)
    scene += (mask * tone)[..., None] * (paint - other)[:, None, None]
    return _expose(scene, rng, style)


def render_digits(images: np.ndarray, rng: np.random.Generator, style: Style = PRETRAINING) -> np.ndarray:
    """Write real digits, [N,8,8] with values in 0..1, in random ink on random paper: uint8 [N, 32, 32, 3]."""
    n = len(images)
    x, y = _frame(rng, n, (8.5, 13.0), style)
    ink = _bilinear(images, x * 4 + 3.5, y * 4 + 3.5)
    paper = _hsv(rng.random(n), _uniform(rng, n, 0, 0.5), _uniform(rng, n, 0, 1))
    pen = _hsv(rng.random(n), _uniform(rng, n, 0.2, 0.8), _uniform(rng, n, 0.3, 1))
    # pen and paper keep a distance in lightness, or the digit would not be there
    gap = (pen - paper).mean(1, keepdims=True)
    pen = pen + np.where(np.abs(gap) < 0.25, np.where(paper.mean(1, keepdims=True) < 0.5, 0.5, -0.5), 0)
    scene = paper[:, None, None] + ink[..., None] * (pen - paper)[:, None, None]
    return _expose(scene.astype(np.float32), rng, style)


@cache
def _load_digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    data = load_digits()
    first = np.zeros(len(data.target), bool)
    for digit in range(10):  # alternate within each class, so that both halves hold the same number of it
        first[np.flatnonzero(data.target == digit)[::2]] = True
    return (data.images / 16).astype(np.float32), data.target, first


def digits(pretraining: bool) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's real handwritten digits, the half for pre-training or the other one.

    Returns:
        images [N,8,8] in 0..1 and labels [N].
    """
    images, labels, first = _load_digits()
    keep = first if pretraining else ~first
    return images[keep], labels[keep]


# --- drawing; x and y are in units of the shape's radius, y downwards ---

_HUES = np.array([0.0, 0.075, 0.155, 0.34, 0.5, 0.63, 0.77, 0.9], np.float32)
_GROUNDS = np.array(  # RGB of each background
    [
        [0.92, 0.94, 0.97],
        [0.08, 0.09, 0.18],
        [0.3, 0.5, 0.2],
        [0.8, 0.7, 0.5],
        [0.25, 0.45, 0.65],
        [0.6, 0.33, 0.25],
    ],
    np.float32,
)
_PIXEL = (np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2)[None]


def _uniform(rng, n: int, low: float, high: float) -> np.ndarray:
    return (low + (high - low) * rng.random(n, dtype=np.float32)).astype(np.float32)


def _hsv(hue, saturation, value) -> np.ndarray:
    """Colours [N,3] from hue in turns, saturation and value in 0..1."""
    k = (np.array([5, 3, 1], np.float32) + 6 * hue[:, None]) % 6
    return (value[:, None] * (1 - saturation[:, None] * np.clip(np.minimum(k, 4 - k), 0, 1))).astype(np.float32)


def _frame(rng, n: int, radius: tuple[float, float], style: Style) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates x, y [N,32,32] in each shape's own frame."""
    r = _uniform(rng, n, *radius)[:, None]
    dx = (_PIXEL - _uniform(rng, n, -style.place, style.place)[:, None]) / r  # [N,32]
    dy = (_PIXEL - _uniform(rng, n, -style.place, style.place)[:, None]) / r
    angle = style.turn + _uniform(rng, n, -style.rotation, style.rotation)[:, None]
    cos, sin = np.cos(angle), np.sin(angle)
    x = (cos * dx)[:, None] + (sin * dy)[:, :, None]
    y = (cos * dy)[:, :, None] - (sin * dx)[:, None]
    return x, y


def _star(x, y):
    k = np.pi / 5
    a = np.abs((np.arctan2(x, -y) + k) % (2 * k) - k)  # angle to the nearest tip
    r = np.hypot(x, y)
    px, py = r * np.cos(a) - 1, r * np.sin(a)
    vx, vy = 0.42 * np.cos(k) - 1, 0.42 * np.sin(k)  # from a tip to the next valley
    return (px * -vy + py * vx) / -np.hypot(vx, vy)


def _arrow(x, y):
    head = np.maximum(0.75 * np.abs(x) - 0.66 * y - 0.66, y - 0.1)
    return np.minimum(head, np.maximum(np.abs(x) - 0.3, np.abs(y - 0.45) - 0.5))


def _drop(x, y):
    tip = np.maximum(np.abs(x) * 0.87 - (y + 1.05) * 0.5, y - 0.1)
    return np.minimum(np.hypot(x, y - 0.35) - 0.62, tip)


# Signed distances, negative inside.
_SHAPES = {
    "circle": lambda x, y: np.hypot(x, y) - 0.9,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 0.8,
    "triangle": lambda x, y: np.maximum(np.abs(x) * 0.87 - y * 0.5 - 0.5, y - 0.6),
    "star": _star,
    "cross": lambda x, y: np.maximum(np.maximum(np.abs(x), np.abs(y)) - 0.95, np.minimum(np.abs(x), np.abs(y)) - 0.3),
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.72) - 0.23,
    "diamond": lambda x, y: (np.abs(x) * 1.5 + np.abs(y) - 1) * 0.55,
    "heart": lambda x, y: (np.hypot(x * 1.15, -y * 1.15 + 0.1 - np.abs(x) ** 0.67) - 1) * 0.75,
    "moon": lambda x, y: np.maximum(np.hypot(x, y) - 0.95, 0.75 - np.hypot(x - 0.5, y)),
    "hexagon": lambda x, y: np.maximum(np.abs(x) * 0.87 + np.abs(y) * 0.5, np.abs(y)) - 0.82,
    "arrow": _arrow,
    "drop": _drop,
}


def _distances(shape, x, y) -> np.ndarray:
    found = np.empty_like(x)
    for i, name in enumerate(FACTORS["shape"]):
        rows = np.flatnonzero(shape == i)
        found[rows] = _SHAPES[name](x[rows], y[rows])
    return found


def _masks(shape, rng, style: Style) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coverage [N,32,32] of the shape in 0..1, less an occluding bar, and the frame x, y."""
    n = len(shape)
    x, y = _frame(rng, n, style.radius, style)
    other = (shape + rng.integers(1, len(_SHAPES), size=n)) % len(_SHAPES)
    weight = _uniform(rng, n, 0, style.morph)[:, None, None]
    distance = (1 - weight) * _distances(shape, x, y) + weight * _distances(other, x, y)
    mask = np.clip(0.5 - distance * (sum(style.radius) / 2), 0, 1)  # an edge about one pixel wide
    angle = _uniform(rng, n, 0, np.pi)[:, None, None]
    where = _uniform(rng, n, -0.6, 0.6)[:, None, None]
    half = np.where(rng.random(n) < style.occlusion, _uniform(rng, n, 0.08, 0.3), -1)[:, None, None]
    across = np.abs(x * np.cos(angle) + y * np.sin(angle) - where)
    mask *= np.clip((across - half) * 10, 0, 1)
    return mask.astype(np.float32), x, y


def _patterns(pattern, x, y, rng) -> np.ndarray:
    """Tone [N,32,32] in 0..1: 1 where the shape's own colour shows."""
    n = len(pattern)
    tone = np.ones_like(x)
    angle = _uniform(rng, n, -0.4, 0.4)
    pitch = _uniform(rng, n, 5.0, 7.0)  # radians per radius
    a, b = rng.random((2, n), dtype=np.float32) * (2 * np.pi)
    for i, name in enumerate(FACTORS["pattern"]):
        rows = np.flatnonzero(pattern == i)
        if name == "solid" or not len(rows):
            continue
        cos, sin, f, u0, v0 = (p[rows, None, None] for p in (np.cos(angle), np.sin(angle), pitch, a, b))
        u, v = x[rows] * cos + y[rows] * sin, y[rows] * cos - x[rows] * sin
        if name == "faded":
            tone[rows] = 0.5 + 0.6 * u
            continue
        su, sv = np.sin(f * u + u0), np.sin(f * v + v0)
        wave = {
            "striped": lambda su, sv: su,
            "dotted": lambda su, sv: 0.45 - np.minimum(su, sv) * 1.5,
            "checkered": lambda su, sv: 2 * su * sv,
            "grid": lambda su, sv: 0.75 - np.maximum(su, sv),
        }[name](su, sv)
        tone[rows] = 0.5 + 2 * wave
    return np.clip(tone, 0, 1)


def _backgrounds(background, grain, rng) -> np.ndarray:
    """Textured grounds, float32 [N,32,32,3]."""
    n = len(background)
    level = _uniform(rng, n, 0.8, 1.1)[:, None, None, None]
    phase = _uniform(rng, n, 0, 8)[:, None, None]
    row, column = np.mgrid[:SIZE, :SIZE].astype(np.float32)[:, None]
    texture = np.empty_like(grain)
    for i, name in enumerate(FACTORS["background"]):
        rows = np.flatnonzero(background == i)
        g, p = grain[rows], phase[rows]
        if name == "snow":
            texture[rows] = 0.03 * g
        elif name == "night":
            texture[rows] = 0.4 * (g > 2.2)
        elif name == "grass":  # upright blades
            texture[rows] = 0.07 * (g + np.roll(g, 1, 1) + np.roll(g, 2, 1)) / 1.7
        elif name == "sand":
            texture[rows] = 0.05 * g
        elif name == "water":
            texture[rows] = 0.06 * np.sin(0.9 * row + 1.2 * np.sin(0.35 * column + p) + p)
        else:  # brick: courses of eight pixels by four, every second one shifted
            y = row + np.floor(p)
            joint = (y % 5 < 1) | ((column + 5 * (y // 5 % 2) + np.floor(2 * p)) % 10 < 1)
            texture[rows] = 0.15 * joint + 0.03 * g
    return _GROUNDS[background][:, None, None] * level + texture[..., None]


def _bilinear(images, x, y) -> np.ndarray:
    """Sample [N,8,8] at real coordinates [N,32,32]; outside is 0."""
    padded = np.pad(images, ((0, 0), (1, 2), (1, 2)))
    x, y = np.clip(x + 1, 0, 9), np.clip(y + 1, 0, 9)
    x0, y0 = x.astype(int), y.astype(int)
    fx, fy = x - x0, y - y0
    i = np.arange(len(images))[:, None, None]
    top = padded[i, y0, x0] * (1 - fx) + padded[i, y0, x0 + 1] * fx
    low = padded[i, y0 + 1, x0] * (1 - fx) + padded[i, y0 + 1, x0 + 1] * fx
    return top * (1 - fy) + low * fy


def _expose(scene, rng, style: Style) -> np.ndarray:
    """Blur, contrast, brightness and sensor noise; float [N,32,32,3] -> uint8."""
    n = len(scene)
    if style.blur:
        p = np.pad(scene, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        p = p[:, :-2] + p[:, 1:-1] + p[:, 2:]
        scene = (1 - style.blur) * scene + style.blur / 9 * (p[:, :, :-2] + p[:, :, 1:-1] + p[:, :, 2:])
    gain, noise, level = (
        v[:, None, None, None]
        for v in (_uniform(rng, n, *style.contrast), _uniform(rng, n, *style.noise), _uniform(rng, n, -0.1, 0.1))
    )
    scene = (scene - 0.5) * gain + (0.5 + level)
    scene += noise * rng.standard_normal(scene.shape, dtype=np.float32)
    return (np.clip(scene, 0, 1) * 255).astype(np.uint8)
