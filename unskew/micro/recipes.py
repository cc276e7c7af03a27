"""The recipes of the shipped models, and their batches: images with banks of captions."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from unskew.micro import emoji, weights, world

Bank = tuple[torch.Tensor, torch.Tensor]  # labels [B] of the images, and tokens [K, L] of all distinct captions
Batch = tuple[np.ndarray, list[Bank]]  # images, uint8 [B, 32, 32, 3], and the banks


@dataclass(frozen=True)
class Recipe:
    """The hyper-parameters of one model.

    Attributes:
        captions: maps what the captions of a bank name to the probability of such a bank: factors of the drawn world,
            or "subgroup", "name" and "keyword" of emoji.
        steps: number of steps.
        banks: caption banks per step; images cost more than text.
        images: images per step, digits apart.
        digits: digits per step; few, so that predictions of digits depend on the prior.
        teams: the teams of emoji; empty: the drawn world.
    """

    captions: dict[tuple[str, ...], float]
    steps: int
    banks: int = 3
    images: int = 232
    digits: int = 24
    lr: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    teams: tuple[str, ...] = ()


def _mostly_two_factors(pair: tuple[str, str], third: str) -> dict[tuple[str, ...], float]:
    return {pair: 0.5, pair[:1]: 0.15, pair[1:]: 0.15, (third,): 0.2}


def _of_emoji(steps: int, *teams: str, images: int = 256, lr: float = 2e-3) -> Recipe:
    captions: dict[tuple[str, ...], float] = {("subgroup",): 0.75, ("name",): 0.15, ("keyword",): 0.1}
    return Recipe(captions, steps, banks=2, images=images, digits=0, lr=lr, teams=teams)


_ALL_FACTORS = {
    ("shape", "colour"): 0.2,
    ("shape", "pattern"): 0.2,
    ("colour", "pattern"): 0.1,
    ("shape", "background"): 0.05,
    ("shape",): 0.2,
    ("colour",): 0.1,
    ("pattern",): 0.1,
    ("background",): 0.05,
}
RECIPES = {
    "micro": Recipe(_ALL_FACTORS, steps=5000),
    "micro-a": Recipe(_mostly_two_factors(("shape", "colour"), "pattern"), steps=3500),
    "micro-b": Recipe(_mostly_two_factors(("shape", "pattern"), "colour"), steps=4000),
    "micro-c": Recipe(_mostly_two_factors(("colour", "pattern"), "shape"), steps=3500),
    "micro-vit": Recipe(_ALL_FACTORS, steps=9000, images=104, lr=1e-3),
    "micro-emoji": _of_emoji(7000, *emoji.PRETRAINING_TEAMS),
    "micro-emoji-a": _of_emoji(4500, "noto"),
    "micro-emoji-b": _of_emoji(4500, "blobmoji"),
    "micro-emoji-c": _of_emoji(4500, "fluent"),
    "micro-emoji-vit": _of_emoji(5000, *emoji.PRETRAINING_TEAMS, images=128, lr=1e-3),
}


def source(name: str, sheets: Path = emoji.PRETRAINING_SHEETS) -> Callable[[np.random.Generator], Batch]:
    """Return a function that draws the batches of a model's pre-training.

    Args:
        name: one of ``weights.NAMES``.
        sheets: the folder with the teams' pictures, for the models of emoji.

    Raises:
        FileNotFoundError: a team's pictures are not in the folder.
    """
    return _emoji_source(name, sheets) if name in weights.EMOJI else _drawn_source(name)


def _drawn_source(name: str) -> Callable[[np.random.Generator], Batch]:
    recipe, frequency = RECIPES[name], world.frequencies(weights.SEEDS[name])
    images_of_digits, labels_of_digits = world.digits(pretraining=True)
    pool = [np.flatnonzero(labels_of_digits == digit) for digit in range(10)]

    def draw(rng: np.random.Generator) -> Batch:
        factors = {f: rng.choice(len(frequency[f]), size=recipe.images, p=frequency[f]) for f in world.VISUAL}
        digit = rng.choice(10, size=recipe.digits, p=frequency["digit"])
        rows = [rng.choice(pool[d]) for d in digit]
        images = np.concatenate([world.render(factors, rng=rng), world.render_digits(images_of_digits[rows], rng)])
        banks = []
        for _ in range(recipe.banks):
            subset = _choose(recipe, rng)
            sizes = [len(world.FACTORS[f]) for f in subset]
            index = np.ravel_multi_index([factors[f] for f in subset], sizes)
            labels = np.concatenate([index, math.prod(sizes) + digit])
            templates = (rng.integers(len(world.TEMPLATES)), rng.integers(len(world.DIGIT_TEMPLATES)))
            banks.append((torch.from_numpy(labels), _drawn_bank(subset, *templates)))
        return images, banks

    return draw


def _choose(recipe: Recipe, rng: np.random.Generator) -> tuple[str, ...]:
    return list(recipe.captions)[rng.choice(len(recipe.captions), p=list(recipe.captions.values()))]


@cache
def _drawn_bank(subset: tuple[str, ...], template: int, digit_template: int) -> torch.Tensor:
    captions = [world.TEMPLATES[template].format(p) for p in world.phrases(subset)]
    captions += [world.DIGIT_TEMPLATES[digit_template].format(p) for p in world.phrases(("digit",))]
    return _tokens("micro", captions)


def _tokens(name: str, captions: list[str]) -> torch.Tensor:
    """Return the tokens of captions, cut to the longest one."""
    tokens = weights.tokenizer(name)(captions)
    return tokens[:, : int(tokens.argmax(dim=1).max()) + 1]


def _emoji_source(name: str, sheets: Path) -> Callable[[np.random.Generator], Batch]:
    """Subgroups are drawn by their frequency, and the pictures of a subgroup uniformly."""
    recipe, frequency = RECIPES[name], emoji.frequencies(weights.SEEDS[name])
    pictures = np.concatenate([emoji.sheet(team, sheets) for team in recipe.teams])
    concepts = emoji.concepts()
    known = emoji.drawn(pictures) & np.tile([c.part != "unseen" for c in concepts], len(recipe.teams))
    label = np.tile(emoji.labels(), len(recipe.teams))
    members = [np.flatnonzero(known & (label == s)) for s in range(len(frequency))]
    counts, flat = np.array([len(rows) for rows in members]), np.concatenate(members)
    start = np.cumsum(counts) - counts
    frequency = np.where(counts, frequency, 0)  # a team may not have drawn a subgroup
    frequency /= frequency.sum()
    shown = sorted({int(row) % len(concepts) for row in flat})
    captions = {
        "subgroup": [[phrase] for phrase in emoji.SUBGROUPS.values()],
        "name": [[_name(concepts[k])] for k in shown],
        "keyword": [list(concepts[k].keywords) or [emoji.SUBGROUPS[concepts[k].subgroup]] for k in shown],
    }
    banks = {kind: sorted({phrase for phrases in captions[kind] for phrase in phrases}) for kind in captions}
    place = {kind: {phrase: i for i, phrase in enumerate(banks[kind])} for kind in banks}
    of_concept = {k: i for i, k in enumerate(shown)}

    @cache
    def bank(kind: str, template: int) -> torch.Tensor:
        return _tokens(name, [_templates(kind)[template].format(phrase) for phrase in banks[kind]])

    def draw(rng: np.random.Generator) -> Batch:
        subgroup = rng.choice(len(frequency), size=recipe.images, p=frequency)
        rows = flat[start[subgroup] + rng.integers(counts[subgroup])]
        images = emoji.render(pictures[rows], rng)
        result = []
        for _ in range(recipe.banks):
            (kind,) = _choose(recipe, rng)
            groups = subgroup if kind == "subgroup" else [of_concept[k] for k in rows % len(concepts)]
            options = [captions[kind][i] for i in groups]
            labels = [place[kind][phrases[rng.integers(len(phrases))]] for phrases in options]
            result.append((torch.tensor(labels), bank(kind, int(rng.integers(len(_templates(kind)))))))
        return images, result

    return draw


def _name(concept: emoji.Concept) -> str:
    """Return the name, or "bird emoji" if it is the phrase of a subgroup too, whose captions follow another prior."""
    return f"{concept.name} emoji" if concept.name in emoji.SUBGROUPS.values() else concept.name


def _templates(kind: str) -> tuple[str, ...]:
    """Return the templates of a bank: short ones for names and keywords, whose banks have a thousand captions."""
    return {"subgroup": emoji.TEMPLATES, "name": emoji.TEMPLATES[:6], "keyword": emoji.KEYWORD_TEMPLATES}[kind]
