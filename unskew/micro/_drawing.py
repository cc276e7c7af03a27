"""Drawing of small images in NumPy, vectorised over images: shapes, patterns, backgrounds, and camera effects.

Coordinates x and y are in units of the shape's radius, y downwards.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

SIZE = 32  # pixels

HUES = {  # in turns
    "red": 0.0,
    "orange": 0.075,
    "yellow": 0.155,
    "green": 0.34,
    "cyan": 0.5,
    "blue": 0.63,
    "purple": 0.77,
    "pink": 0.9,
}
PATTERNS = ("solid", "striped", "dotted", "checkered", "grid", "faded")
GROUNDS = {  # RGB of each background
    "snow": (0.92, 0.94, 0.97),
    "night": (0.08, 0.09, 0.18),
    "grass": (0.3, 0.5, 0.2),
    "sand": (0.8, 0.7, 0.5),
    "water": (0.25, 0.45, 0.65),
    "brick": (0.6, 0.33, 0.25),
}
_GROUND_VALUES = np.array(list(GROUNDS.values()), np.float32)


@dataclass(frozen=True)
class Style:
    """Ranges of the uniform jitter of an image. Lengths are in pixels."""

    radius: tuple[float, float] = (8.5, 13.0)
    place: float = 3.0  # largest offset of the centre
    rotation: float = 0.25  # radians, either way
    turn: float = 0.0  # radians added to every rotation
    morph: float = 0.5  # largest weight of another shape in the outline, which makes shapes ambiguous
    hue: float = 0.06  # turns, either way (neighbouring colours are about 0.1 apart)
    tint: float = 0.0  # turns added to every hue
    saturation: tuple[float, float] = (0.4, 1.0)
    value: tuple[float, float] = (0.55, 1.0)
    contrast: tuple[float, float] = (0.45, 1.0)
    noise: tuple[float, float] = (0.02, 0.12)
    occlusion: float = 0.3  # probability of a bar across the shape
    blur: float = 0.0  # weight of the 3x3 mean


_PIXEL = (np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2)[None]


def uniform(rng: np.random.Generator, n: int, low: float, high: float) -> np.ndarray:
    """Return float32 [N] from a uniform distribution."""
    return (low + (high - low) * rng.random(n, dtype=np.float32)).astype(np.float32)


def hsv(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Return RGB colours [N, 3] of hue (in turns), saturation and value in 0..1."""
    k = (np.array([5, 3, 1], np.float32) + 6 * hue[:, None]) % 6
    return (value[:, None] * (1 - saturation[:, None] * np.clip(np.minimum(k, 4 - k), 0, 1))).astype(np.float32)


def frame(rng: np.random.Generator, n: int, radius: tuple[float, float], style: Style) -> tuple[np.ndarray, np.ndarray]:
    """Return pixel coordinates x, y [N, 32, 32] in the frame of each shape."""
    r = uniform(rng, n, *radius)[:, None]
    dx = (_PIXEL - uniform(rng, n, -style.place, style.place)[:, None]) / r  # [N,32]
    dy = (_PIXEL - uniform(rng, n, -style.place, style.place)[:, None]) / r
    angle = style.turn + uniform(rng, n, -style.rotation, style.rotation)[:, None]
    cos, sin = np.cos(angle), np.sin(angle)
    x = (cos * dx)[:, None] + (sin * dy)[:, :, None]
    y = (cos * dy)[:, :, None] - (sin * dx)[:, None]
    return x, y


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    k = np.pi / 5
    a = np.abs((np.arctan2(x, -y) + k) % (2 * k) - k)  # angle to the nearest tip
    r = np.hypot(x, y)
    px, py = r * np.cos(a) - 1, r * np.sin(a)
    vx, vy = 0.42 * np.cos(k) - 1, 0.42 * np.sin(k)  # from a tip to the next valley
    return (px * -vy + py * vx) / -np.hypot(vx, vy)


def _arrow(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    head = np.maximum(0.75 * np.abs(x) - 0.66 * y - 0.66, y - 0.1)
    return np.minimum(head, np.maximum(np.abs(x) - 0.3, np.abs(y - 0.45) - 0.5))


def _drop(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    tip = np.maximum(np.abs(x) * 0.87 - (y + 1.05) * 0.5, y - 0.1)
    return np.minimum(np.hypot(x, y - 0.35) - 0.62, tip)


# Signed distances, negative inside.
SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
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


def _distances(shape: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    result = np.empty_like(x)
    for i, distance in enumerate(SHAPES.values()):
        rows = np.flatnonzero(shape == i)
        result[rows] = distance(x[rows], y[rows])
    return result


def draw_masks(shape: np.ndarray, rng: np.random.Generator, style: Style) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the coverage [N, 32, 32] of the shape in 0..1 without the occluding bar, and the frame x, y."""
    n = len(shape)
    x, y = frame(rng, n, style.radius, style)
    other = (shape + rng.integers(1, len(SHAPES), size=n)) % len(SHAPES)
    weight = uniform(rng, n, 0, style.morph)[:, None, None]
    distance = (1 - weight) * _distances(shape, x, y) + weight * _distances(other, x, y)
    mask = np.clip(0.5 - distance * (sum(style.radius) / 2), 0, 1)  # an edge about one pixel wide
    angle = uniform(rng, n, 0, np.pi)[:, None, None]
    centre = uniform(rng, n, -0.6, 0.6)[:, None, None]
    half = np.where(rng.random(n) < style.occlusion, uniform(rng, n, 0.08, 0.3), -1)[:, None, None]
    across = np.abs(x * np.cos(angle) + y * np.sin(angle) - centre)
    mask *= np.clip((across - half) * 10, 0, 1)
    return mask.astype(np.float32), x, y


def draw_patterns(pattern: np.ndarray, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the tone [N, 32, 32] of the shape's colour: 1 is the colour itself, 0 its dark or light version."""
    n = len(pattern)
    tone = np.ones_like(x)
    angle = uniform(rng, n, -0.4, 0.4)
    pitch = uniform(rng, n, 5.0, 7.0)  # radians per radius
    a, b = rng.random((2, n), dtype=np.float32) * (2 * np.pi)
    for i, name in enumerate(PATTERNS):
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


def draw_backgrounds(background: np.ndarray, grain: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return textured backgrounds, float32 [N, 32, 32, 3]."""
    n = len(background)
    level = uniform(rng, n, 0.8, 1.1)[:, None, None, None]
    phase = uniform(rng, n, 0, 8)[:, None, None]
    row, column = np.mgrid[:SIZE, :SIZE].astype(np.float32)[:, None]
    texture = np.empty_like(grain)
    for i, name in enumerate(GROUNDS):
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
        else:  # brick: eight pixels by four, every second course is shifted
            y = row + np.floor(p)
            joint = (y % 5 < 1) | ((column + 5 * (y // 5 % 2) + np.floor(2 * p)) % 10 < 1)
            texture[rows] = 0.15 * joint + 0.03 * g
    return _GROUND_VALUES[background][:, None, None] * level + texture[..., None]


def bilinear(images: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sample images [N, S, S, ...] at real coordinates in pixels, x and y [N, h, w]; outside is 0."""
    n, size = images.shape[:2]
    padded = np.pad(images, ((0, 0), (1, 2), (1, 2), *((0, 0),) * (images.ndim - 3)))
    pixels = padded.reshape(-1, *images.shape[3:])
    width = size + 3
    x, y = np.clip(x + 1, 0, size + 1), np.clip(y + 1, 0, size + 1)
    x0, y0 = x.astype(np.int32), y.astype(np.int32)
    corner = (np.arange(n, dtype=np.int32)[:, None, None] * width + y0) * width + x0
    fx, fy = (
        (v - v0).astype(images.dtype).reshape(*v.shape, *(1,) * (images.ndim - 3)) for v, v0 in ((x, x0), (y, y0))
    )

    def row(below: int) -> np.ndarray:
        left, right = (np.take(pixels, corner + below + k, axis=0) for k in (0, 1))
        left *= 1 - fx
        right *= fx
        left += right
        return left

    top, low = row(0), row(width)
    top *= 1 - fy
    low *= fy
    top += low
    return top


# Lightness and two axes of colour (the YIQ values of RGB), and back.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]], np.float32)
_RGB = np.linalg.inv(_YIQ)


def tinted(images: np.ndarray, hue: np.ndarray, saturation: np.ndarray) -> np.ndarray:
    """Turn the hues [N, h, w, 3] by ``hue`` [N] turns and multiply their saturation by ``saturation`` [N]."""
    angle = 2 * np.pi * hue
    cos, sin = saturation * np.cos(angle), saturation * np.sin(angle)
    turn = np.zeros((len(images), 3, 3), np.float32)
    turn[:, 0, 0] = 1
    turn[:, 1, 1], turn[:, 1, 2], turn[:, 2, 1], turn[:, 2, 2] = cos, -sin, sin, cos
    matrix = _RGB @ turn @ _YIQ  # [N,3,3]
    return (images.reshape(len(images), -1, 3) @ matrix.swapaxes(1, 2)).reshape(images.shape)


def expose(scene: np.ndarray, rng: np.random.Generator, style: Style) -> np.ndarray:
    """Apply blur, contrast, brightness and sensor noise to float [N, 32, 32, 3]; return uint8."""
    n = len(scene)
    if style.blur:
        p = np.pad(scene, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        p = p[:, :-2] + p[:, 1:-1] + p[:, 2:]
        scene = (1 - style.blur) * scene + style.blur / 9 * (p[:, :, :-2] + p[:, :, 1:-1] + p[:, :, 2:])
    gain, noise, level = (
        v[:, None, None, None]
        for v in (uniform(rng, n, *style.contrast), uniform(rng, n, *style.noise), uniform(rng, n, -0.1, 0.1))
    )
    scene = (scene - 0.5) * gain + (0.5 + level)
    scene += noise * rng.standard_normal(scene.shape, dtype=np.float32)
    return (np.clip(scene, 0, 1) * 255).astype(np.uint8)
