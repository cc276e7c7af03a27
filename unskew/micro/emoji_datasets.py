"""The downstream datasets of the world of emoji: photos of the pictures of teams that pre-training did not see.

The classes are the subgroups with at least 20 concepts. Train, val and test have other concepts of each class. The
models know these concepts as other teams drew them, except in ``emoji_unseen``, whose concepts no model was trained on.
Val and test are balanced.
"""

from dataclasses import replace

import numpy as np

from unskew.data.sampling import longtail_counts
from unskew.micro import emoji

# The team and the photos of each class by split. A dataset's place seeds its images: add new ones at the end.
DATASETS: dict[str, tuple[str, dict[str, int]]] = {
    "emoji": ("twemoji", {"train": 20, "val": 16, "test": 40}),
    "emoji_lt": ("twemoji", {"train": 100, "val": 10, "test": 40}),
    "emoji_shifted": ("openmoji", {"test": 40}),
    "emoji_unseen": ("twemoji", {"test": 40}),
}
TEST_ONLY = {"emoji_shifted", "emoji_unseen"}
FEWEST = 2  # training images of the rarest class of emoji_lt
VERSION = 1  # part of the folder's name; raise it whenever an image changes
STYLE = replace(emoji.PRETRAINING, blur=0.3, noise=(0.02, 0.08))


def subgroups() -> list[str]:
    """Return the subgroups that are the classes, in label order."""
    used = {concept.subgroup for concept in emoji.concepts() if concept.part}
    return [subgroup for subgroup in emoji.SUBGROUPS if subgroup in used]


def classnames(dataset: str) -> list[str]:
    """Return the class names in label order, such as "mammal"; all datasets have the same ones."""
    return [emoji.SUBGROUPS[subgroup] for subgroup in subgroups()]


def prompt(dataset: str) -> str:
    """Return the zero-shot prompt."""
    return emoji.TEMPLATES[0]


def splits(dataset: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Take the photos of a dataset, see `unskew.micro.downstream.splits`.

    Raises:
        ValueError: the sheet of the team lacks pictures.
    """
    rng = np.random.default_rng([2023, list(DATASETS).index(dataset)])
    team, counts = DATASETS[dataset]
    pictures, classes = emoji.sheet(team), subgroups()
    result = {}
    for split, count in counts.items():
        part = "unseen" if dataset == "emoji_unseen" else split
        each = np.full(len(classes), count)
        if dataset == "emoji_lt" and split == "train":
            each = rng.permutation(longtail_counts(count, len(classes), count / FEWEST))
        rows = [np.resize(_members(subgroup, part), n) for subgroup, n in zip(classes, each, strict=True)]
        shown = pictures[np.concatenate(rows)]
        if not emoji.drawn(shown).all():
            raise ValueError(f"pictures are missing in '{emoji.FOLDER / team}.png'; reinstall unskew")
        result[split] = emoji.render(shown, rng, STYLE), np.repeat(np.arange(len(classes)), each)
    return result


def _members(subgroup: str, part: str) -> np.ndarray:
    """Return the rows of the concepts of a class in a part of the data; each gets as many photos as the others."""
    return np.array([i for i, c in enumerate(emoji.concepts()) if (c.subgroup, c.part) == (subgroup, part)])


def log_prior(seed: int, dataset: str) -> np.ndarray:
    """Return the log frequency [C] of the classes in the pre-training of the model with this seed."""
    frequency = dict(zip(emoji.SUBGROUPS, emoji.frequencies(seed), strict=True))
    return np.log([frequency[subgroup] for subgroup in subgroups()])
