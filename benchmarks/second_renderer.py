"""A second renderer and corruptions: pictures that the shipped backbones were not trained on.

Things are tilted plates in perspective, with a rim and a shadow, over clutter. Digits are printed or seven-segment.
"""

import itertools
import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from unskew.micro import downstream, drawn_datasets, world

CANVAS = 96  # pixels of a picture before it is reduced to the size of the world
PLATE = 64  # pixels of the plate before it is tilted

Pictures = dict[str, tuple[np.ndarray, np.ndarray]]  # uint8 [N, 32, 32, 3] and labels [N] by split


# --- one picture --------------------------------------------------------------------------------------


def _round(n: int, radius: float = 1.0) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, n, endpoint=False)
    return radius * np.stack([np.sin(angle), -np.cos(angle)], 1)


def _spikes(points: int, inner: float) -> np.ndarray:
    corners = _round(2 * points)
    corners[1::2] *= inner
    return corners


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y - 2], 1) / 16


def _moon() -> np.ndarray:
    outer = _round(40)[:21]
    inner = outer[::-1] * [0.35, 1]
    return np.concatenate([outer, inner]) * [-1, 1] + [0.4, 0]


def _drop() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    return np.stack([0.75 * np.sin(t) * np.sin(t / 2) ** 1.5, -np.cos(t)], 1)


# Corners in units of the plate's half width, y downwards. A ring is a circle with a hole.
OUTLINES: dict[str, np.ndarray] = {
    "circle": _round(40, 0.9),
    "square": _round(4)[:, :] @ np.array([[1, 1], [-1, 1]]) * 0.55 * math.sqrt(2),
    "triangle": np.array([[0, -0.9], [0.95, 0.8], [-0.95, 0.8]]),
    "star": _spikes(5, 0.5),
    "cross": np.array(
        [
            *[(-0.2, -1), (0.2, -1), (0.2, -0.2), (1, -0.2), (1, 0.2), (0.2, 0.2)],
            *[(0.2, 1), (-0.2, 1), (-0.2, 0.2), (-1, 0.2), (-1, -0.2), (-0.2, -0.2)],
        ]
    ),
    "ring": _round(40, 0.95),
    "diamond": np.array([[0, -1], [0.6, 0], [0, 1], [-0.6, 0]]),
    "heart": _heart(),
    "moon": _moon(),
    "hexagon": _round(6),
    "arrow": np.array([(0, -1), (0.75, -0.2), (0.22, -0.2), (0.22, 1), (-0.22, 1), (-0.22, -0.2), (-0.75, -0.2)]),
    "drop": _drop(),
}


def _texture(pattern: str, rng: np.random.Generator) -> np.ndarray:
    """Return the tone [PLATE, PLATE] of a plate in 0..1: 1 is its colour, 0 the darker second colour."""
    v, u = np.mgrid[:PLATE, :PLATE] / PLATE
    turn, period, shift = rng.uniform(-0.5, 0.5), rng.uniform(0.3, 0.45), rng.random(2)
    u, v = u * np.cos(turn) + v * np.sin(turn), v * np.cos(turn) - u * np.sin(turn)
    a, b = (u / period + shift[0]) % 1, (v / period + shift[1]) % 1
    if pattern == "striped":
        return (a < 0.5).astype(float)
    if pattern == "dotted":
        return (np.hypot(a - 0.5, b - 0.5) > 0.3).astype(float)
    if pattern == "checkered":
        return ((a < 0.5) ^ (b < 0.5)).astype(float)
    if pattern == "grid":
        return ((a > 0.2) & (b > 0.2)).astype(float)
    if pattern == "faded":
        return np.clip(v - v.min(), 0, 1)
    return np.ones_like(u)


def _plate(
    mask: Image.Image, tone: np.ndarray, paint: np.ndarray, rng: np.random.Generator, rim: float = 0.7
) -> Image.Image:
    """Return a coloured RGBA plate with light from one side and a rim that is darker by the part ``rim``."""
    light = 1 + rng.uniform(-0.35, 0.35) * np.linspace(-1, 1, PLATE)
    light = light[None] if rng.random() < 0.5 else light[:, None]
    colour = (tone * light)[..., None] * paint + ((1 - tone) * light)[..., None] * (0.35 * paint)
    inside = np.asarray(mask.filter(ImageFilter.MinFilter(5)), np.float32)[..., None] / 255
    colour = colour * (1 - rim + rim * inside)
    pixels = np.concatenate([np.clip(colour, 0, 1) * 255, np.asarray(mask, np.float32)[..., None]], 2)
    return Image.fromarray(pixels.astype(np.uint8), "RGBA")


def _clutter(rng: np.random.Generator) -> Image.Image:
    """Return a background: a slope of two colours with blurred ellipses and boxes."""
    ends = rng.uniform(0.1, 0.9, (2, 1)) * 255 + rng.uniform(-40, 40, (2, 3))
    slope = np.clip(np.linspace(ends[0], ends[1], CANVAS), 0, 255)
    pixels = np.broadcast_to(slope[:, None] if rng.random() < 0.5 else slope[None], (CANVAS, CANVAS, 3))
    image = Image.fromarray(pixels.astype(np.uint8), "RGB")
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(3, 8)):
        x, y, w, h = rng.uniform(-0.2, 1, 4) * CANVAS
        box = (x, y, x + abs(w) / 2 + 2, y + abs(h) / 2 + 2)
        colour = tuple(int(level) for level in rng.uniform(30, 190) + rng.uniform(-30, 60, 3))
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)(box, fill=colour)
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(2, 6)))


def _view(rng: np.random.Generator) -> list[float]:
    """Return PIL's eight coefficients of the perspective from a random viewpoint: canvas -> plate."""
    yaw, pitch, roll = rng.uniform(-0.6, 0.6), rng.uniform(-0.6, 0.6), rng.uniform(-0.35, 0.35)
    size, shift = rng.uniform(0.7, 1.0), rng.uniform(-0.12, 0.12, 2)
    cy, sy, cp, sp, cr, sr = (f(angle) for angle in (yaw, pitch, roll) for f in (np.cos, np.sin))
    rotation = (
        np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
        @ np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
        @ np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    )
    camera = np.array([[size, 0, shift[0]], [0, size, shift[1]], [0, 0, 1]])
    # A point (x, y) of the plate is at rotation @ (x, y, 0) + (0, 0, 3), seen with focal length 3.
    plane = np.column_stack([rotation[:, 0], rotation[:, 1], [0, 0, 3]])
    project = camera @ np.diag([3, 3, 1]) @ plane
    half = CANVAS / 2
    to_canvas = np.array([[half, 0, half], [0, half, half], [0, 0, 1]]) @ project
    to_plate = np.array([[PLATE / 2, 0, PLATE / 2], [0, PLATE / 2, PLATE / 2], [0, 0, 1]])
    matrix = to_plate @ np.linalg.inv(to_canvas)
    return list((matrix / matrix[2, 2]).ravel()[:8])


def _photograph(plate: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """Tilt a plate over clutter, with its shadow, and expose it: uint8 [32, 32, 3]."""
    scene = _clutter(rng)
    plate = plate.transform((CANVAS, CANVAS), Image.Transform.PERSPECTIVE, _view(rng), Image.Resampling.BILINEAR)
    alpha = plate.getchannel("A")
    shade = alpha.filter(ImageFilter.GaussianBlur(3)).point(lambda level: level * 0.6)
    offset = tuple(int(x) for x in rng.integers(2, 8, 2))
    scene.paste((10, 10, 20), offset, shade)
    scene.paste(plate.convert("RGB"), (0, 0), alpha)
    small = np.asarray(scene.resize((world.SIZE, world.SIZE), Image.Resampling.BOX), np.float32) / 255
    small = (small * rng.uniform(0.6, 1) + rng.uniform(0, 0.2)) * rng.uniform(0.9, 1.1, 3)  # exposure, white balance
    small += rng.uniform(0.01, 0.05) * rng.standard_normal(small.shape)
    return (np.clip(small, 0, 1) * 255).astype(np.uint8)


def _outline_mask(shape: str) -> Image.Image:
    mask = Image.new("L", (PLATE * 4, PLATE * 4))
    draw = ImageDraw.Draw(mask)
    draw.polygon([tuple(point) for point in (OUTLINES[shape] * 0.95 + 1) * PLATE * 2], fill=255)
    if shape == "ring":
        draw.polygon([tuple(point) for point in (_round(40, 0.6) + 1) * PLATE * 2], fill=0)
    return mask.resize((PLATE, PLATE), Image.Resampling.BOX)


def _draw_thing(shape: int, colour: int, pattern: int, rng: np.random.Generator) -> np.ndarray:
    """Draw one picture of factor values (indices into ``world.FACTORS``): uint8 [32, 32, 3]."""
    hue = list(world.HUES.values())[colour] + rng.uniform(-0.03, 0.03)
    level = np.array([hue, rng.uniform(0.5, 0.95), rng.uniform(0.55, 0.95)], np.float32)[:, None]
    paint = world.hsv(*level)[0]
    tone = _texture(world.FACTORS["pattern"][pattern], rng)
    return _photograph(_plate(_outline_mask(world.FACTORS["shape"][shape]), tone, paint, rng), rng)


# The lit segments of a seven-segment display: top, upper left and right, middle, lower left and right, bottom.
_SEGMENTS = "1110111 0010010 1011101 1011011 0111010 1101011 1101111 1010010 1111111 1111011"


def _numeral(digit: int, rng: np.random.Generator) -> Image.Image:
    mask = Image.new("L", (PLATE, PLATE))
    draw = ImageDraw.Draw(mask)
    if rng.random() < 0.5:
        font, stroke = ImageFont.load_default(int(rng.integers(50, 66))), int(rng.integers(0, 4))
        draw.text((PLATE / 2, PLATE / 2), str(digit), 255, font, anchor="mm", stroke_width=stroke)
        return mask
    left, right, top, middle, bottom = 18, 46, 6, 32, 58
    ends = [
        (left, top, right, top),
        (left, top, left, middle),
        (right, top, right, middle),
        (left, middle, right, middle),
    ]
    ends += [(left, middle, left, bottom), (right, middle, right, bottom), (left, bottom, right, bottom)]
    width = int(rng.integers(6, 12))
    for lit, line in zip(_SEGMENTS.split()[digit], ends, strict=True):
        if lit == "1":
            draw.line(line, fill=255, width=width)
    return mask


def _draw_sign(digit: int, rng: np.random.Generator) -> np.ndarray:
    """Draw one printed or seven-segment digit: uint8 [32, 32, 3]."""
    paint = world.hsv(*np.array([rng.random(), rng.uniform(0, 0.8), rng.uniform(0.7, 1)], np.float32)[:, None])[0]
    return _photograph(_plate(_numeral(digit, rng), np.ones((PLATE, PLATE)), paint, rng, rim=0), rng)


# --- all pictures of a dataset -----------------------------------------------------------------------


def draw_unseen(dataset: str) -> Pictures:
    """Draw a dataset's classes with the second renderer, with its numbers of pictures per class."""
    rng = np.random.default_rng([31, list(drawn_datasets.DATASETS).index(dataset)])
    values = drawn_datasets.factor_values(dataset)
    classes = list(itertools.product(*values.values()))
    pictures = {}
    for split, counts in drawn_datasets.image_counts(dataset, len(classes), rng).items():
        if split == "test" and len(classes) == 10:
            counts = 4 * counts  # ten classes alone would be few images
        labels = np.repeat(np.arange(len(classes)), counts)
        images = []
        for label in labels:
            named = dict(zip(values, classes[label], strict=True))
            if "digit" in named:
                images.append(_draw_sign(named["digit"], rng))
                continue
            factors = {f: rng.integers(len(world.FACTORS[f])) for f in ("shape", "colour", "pattern")} | named
            images.append(_draw_thing(**factors, rng=rng))
        pictures[split] = np.stack(images), labels
    return pictures


def noise(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add noise to pictures [N, 32, 32, 3] in 0..255."""
    return images + 25 * rng.standard_normal(images.shape, dtype=np.float32)


def pixelate(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Reduce pictures to 8 by 8 pixels."""
    coarse = images.reshape(len(images), 8, 4, 8, 4, 3).mean((2, 4))
    return coarse.repeat(4, 1).repeat(4, 2)


def fog(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cover a part of each picture with fog."""
    coarse = rng.uniform(0, 0.6, (len(images), 4, 4)).astype(np.float32)
    smooth = [np.asarray(Image.fromarray(c).resize((world.SIZE,) * 2, Image.Resampling.BICUBIC)) for c in coarse]
    weight = np.clip(np.stack(smooth), 0, 0.9)[..., None]
    return images * (1 - weight) + 215 * weight


def draw_corrupted(dataset: str, corrupt: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> Pictures:
    """Corrupt the pictures of a shipped dataset."""
    rng = np.random.default_rng([32, list(drawn_datasets.DATASETS).index(dataset)])
    return {
        split: (np.clip(corrupt(images.astype(np.float32), rng), 0, 255).astype(np.uint8), labels)
        for split, (images, labels) in downstream.splits(dataset).items()
    }
