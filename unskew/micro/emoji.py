"""The world of emoji: real pictures by five teams of designers, with official names, keywords and subgroups.

A concept is one emoji, such as "red apple". Its label is its subgroup, such as "fruit". Three teams' pictures are for
pre-training, those of the other two only for downstream datasets. ``pictures/`` holds the list of concepts and the
sheets of the downstream teams; ``scripts/build_emoji.py`` makes them and the sheets for pre-training. A sheet is a PNG
file in which every concept has the same place; the tile of a concept without a picture is transparent.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from unskew.micro._drawing import Style, bilinear, expose, frame, hsv, tinted, uniform
from unskew.micro.world import TEMPLATES as TEMPLATES
from unskew.utils.files import read_json

FOLDER = Path(__file__).resolve().parent / "pictures"
CONCEPTS = FOLDER / "concepts.json"
PRETRAINING_SHEETS = Path("output/emoji")  # where the script writes the sheets that do not ship
TILE = 48  # pixels
COLUMNS = 32
PRETRAINING_TEAMS = ("noto", "blobmoji", "fluent")
DOWNSTREAM_TEAMS = ("twemoji", "openmoji")
IMBALANCE = 100.0  # images of the most frequent subgroup in pre-training : images of the rarest one

# The official subgroups and the phrases for them in captions and class names.
SUBGROUPS = {
    "face-smiling": "smiling face",
    "face-affection": "affectionate face",
    "face-tongue": "face with tongue",
    "face-hand": "face with hands",
    "face-neutral-skeptical": "neutral face",
    "face-sleepy": "sleepy face",
    "face-unwell": "sick face",
    "face-hat": "face with hat",
    "face-glasses": "face with glasses",
    "face-concerned": "worried face",
    "face-negative": "angry face",
    "face-costume": "masked face",
    "cat-face": "cartoon cat",
    "monkey-face": "cartoon monkey",
    "heart": "heart",
    "emotion": "emotion",
    "hand-fingers-open": "open hand",
    "hand-fingers-partial": "hand sign",
    "hand-single-finger": "pointing finger",
    "hand-fingers-closed": "fist",
    "hands": "pair of hands",
    "hand-prop": "hand at work",
    "body-parts": "body part",
    "person": "human being",
    "person-gesture": "gesture",
    "person-role": "profession",
    "person-fantasy": "fantasy being",
    "person-activity": "everyday activity",
    "person-sport": "athlete",
    "person-resting": "resting person",
    "animal-mammal": "mammal",
    "animal-bird": "bird",
    "animal-amphibian": "amphibian",
    "animal-reptile": "reptile",
    "animal-marine": "sea animal",
    "animal-bug": "insect",
    "plant-flower": "flower",
    "plant-other": "plant",
    "food-fruit": "fruit",
    "food-vegetable": "vegetable",
    "food-prepared": "meal",
    "food-asian": "asian food",
    "food-sweet": "dessert",
    "drink": "drink",
    "dishware": "dishes",
    "place-map": "map",
    "place-geographic": "landscape",
    "place-building": "building",
    "place-religious": "place of worship",
    "place-other": "place to visit",
    "transport-ground": "land vehicle",
    "transport-water": "water vehicle",
    "transport-air": "aircraft",
    "hotel": "hotel equipment",
    "sky-weather": "sky and weather",
    "event": "celebration",
    "award-medal": "award",
    "sport": "sports equipment",
    "game": "game",
    "arts-crafts": "art and craft",
    "clothing": "clothing",
    "sound": "sound",
    "music": "music",
    "musical-instrument": "musical instrument",
    "phone": "telephone equipment",
    "computer": "computer equipment",
    "light-video": "light and film",
    "book-paper": "printed paper",
    "money": "money",
    "mail": "mail",
    "writing": "writing tool",
    "office": "office supplies",
    "lock": "lock or key",
    "tool": "tool",
    "science": "science",
    "medical": "medicine",
    "household": "household item",
    "other-object": "curious object",
    "transport-sign": "public sign",
    "warning": "warning sign",
    "arrow": "arrow",
    "religion": "religious symbol",
    "av-symbol": "player button",
    "geometric": "geometric shape",
}

# Keywords have templates of their own: the keyword "heart" belongs to more pictures than the subgroup "heart" does.
KEYWORD_TEMPLATES = ("about: {}", "a picture about {}.", "it has to do with {}.", "the keyword is {}.")

PRETRAINING = Style(
    radius=(11.5, 19.0), place=4.0, rotation=0.35, hue=0.08, saturation=(0.6, 1.3), contrast=(0.5, 1.1), noise=(0, 0.08)
)


@dataclass(frozen=True)
class Concept:
    """An emoji.

    Attributes:
        name: the official English name.
        code: the code points in hexadecimal, joined by "-".
        subgroup: the key of its subgroup in `SUBGROUPS`.
        keywords: the keywords that at least three concepts have.
        part: "train", "val" or "test": the part of the downstream datasets to which it belongs; "unseen": kept for
            ``emoji_unseen``, no model was trained on it; "": only in pre-training.
    """

    name: str
    code: str
    subgroup: str
    keywords: tuple[str, ...]
    part: str


@cache
def concepts() -> tuple[Concept, ...]:
    """Return all concepts, in the order of their tiles on every sheet.

    Raises:
        ValueError: the list of concepts is damaged.
    """
    try:
        return tuple(Concept(**{**row, "keywords": tuple(row["keywords"])}) for row in read_json(CONCEPTS))
    except (KeyError, TypeError) as error:
        raise ValueError(f"'{CONCEPTS}' is damaged ({error}); reinstall unskew") from None


@cache
def sheet(team: str, folder: Path = FOLDER) -> np.ndarray:
    """Return the pictures of a team, uint8 RGBA [K, 48, 48, 4], in the order of `concepts`.

    Args:
        team: one of ``PRETRAINING_TEAMS`` or ``DOWNSTREAM_TEAMS``.
        folder: where the team's PNG file lies; default the files that ship.

    Raises:
        FileNotFoundError: there is no such file; the pictures for pre-training do not ship.
        ValueError: the file is damaged, has another size, or has no picture.
    """
    path, remedy = folder / f"{team}.png", "make it from npm packages: python scripts/build_emoji.py"
    if not path.is_file():
        raise FileNotFoundError(f"there is no file '{path}' with pictures; {remedy}")
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGBA"))
    except (OSError, SyntaxError, ValueError) as error:  # those that Pillow raises for damaged files
        raise ValueError(f"'{path}' cannot be read ({error}); {remedy}") from None
    shape = (-(-len(concepts()) // COLUMNS) * TILE, COLUMNS * TILE, 4)
    if pixels.shape != shape or not pixels[..., 3].any():
        raise ValueError(f"'{path}' must have {shape[1]}x{shape[0]} pixels and pictures in them; {remedy}")
    tiles = pixels.reshape(-1, TILE, COLUMNS, TILE, 4).swapaxes(1, 2).reshape(-1, TILE, TILE, 4)
    return tiles[: len(concepts())]


def drawn(pictures: np.ndarray) -> np.ndarray:
    """Return which of the pictures [K, 48, 48, 4] are not empty, bool [K]."""
    return np.asarray(pictures[..., 3].any(axis=(1, 2)))


def labels() -> np.ndarray:
    """Return the index [K] in `SUBGROUPS` of each concept."""
    index = {subgroup: i for i, subgroup in enumerate(SUBGROUPS)}
    return np.array([index[concept.subgroup] for concept in concepts()])


def frequencies(seed: int) -> np.ndarray:
    """Return the frequency [S] of each subgroup in a pre-training set, with sum 1.

    The profile is exponential with the ratio ``IMBALANCE`` of the most to the least frequent subgroup. ``seed`` fixes
    the order of the subgroups, which does not depend on how many concepts they have.
    """
    profile = IMBALANCE ** -np.linspace(0, 1, len(SUBGROUPS))
    return np.random.default_rng([seed, 11]).permutation(profile / profile.sum())


def render(pictures: np.ndarray, rng: np.random.Generator, style: Style = PRETRAINING) -> np.ndarray:
    """Photograph pictures: each at a random place, size and angle, in other colours, before a random background.

    Args:
        pictures: uint8 RGBA [N, 48, 48, 4].
        rng: the source of the jitter.
        style: the ranges of the jitter.

    Returns:
        uint8 [N, 32, 32, 3].
    """
    n = len(pictures)
    x, y = frame(rng, n, style.radius, style)
    x *= np.where(rng.random(n) < 0.5, -1, 1).astype(np.float32)[:, None, None]  # half of them mirrored
    solid = pictures.astype(np.float32) / 255
    solid[..., :3] *= solid[..., 3:]  # colours times opacity, so that edges blend with what lies behind them
    middle = (TILE - 1) / 2
    photo = bilinear(solid, (x + 1) * middle, (y + 1) * middle)  # [N,32,32,4]
    ink = tinted(photo[..., :3], uniform(rng, n, -style.hue, style.hue), uniform(rng, n, *style.saturation))
    return expose(ink + (1 - photo[..., 3:]) * _backgrounds(rng, n, x.shape[1]), rng, style)


def _backgrounds(rng: np.random.Generator, n: int, size: int) -> np.ndarray:
    """Return plain backgrounds (two fifths) and linear gradients of two colours, float32 [N, size, size, 3]."""
    first, second = (hsv(uniform(rng, n, 0, 1), uniform(rng, n, 0, 0.7), uniform(rng, n, 0.1, 1)) for _ in range(2))
    second = np.where(rng.random((n, 1)) < 0.4, first, second)
    angle = uniform(rng, n, 0, 2 * np.pi)[:, None, None]
    place = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    weight = np.clip(0.5 + np.cos(angle) * place + np.sin(angle) * place[:, None], 0, 1)[..., None]  # [N,size,size,1]
    return first[:, None, None] + weight * (second - first)[:, None, None]
