"""The shipped models of the embedded worlds: configs, weights, tokenizer and true priors.

Each model is an open_clip model. ``models/`` holds a config and a safetensors file per model, and a reduced BPE
vocabulary per world. ``open_clip.add_model_config(MODELS)`` and ``open_clip.create_model(name,
pretrained=str(model_path(name)))`` load a model.
"""

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from unskew.micro import drawn_datasets, emoji_datasets
from unskew.utils.registry import unknown_name

if TYPE_CHECKING:
    import torch
    from open_clip.tokenizer import SimpleTokenizer

MODELS = Path(__file__).resolve().parent / "models"
# A model's seed fixes its initial weights, its images and the order of its label frequencies. Those of the models of
# emoji were chosen so that the downstream classes have an imbalance of 60 or more, independent of their sizes.
DRAWN = {"micro": 1, "micro-a": 2, "micro-b": 3, "micro-c": 4, "micro-vit": 5}
EMOJI = {"micro-emoji": 18, "micro-emoji-a": 13, "micro-emoji-b": 11, "micro-emoji-c": 9, "micro-emoji-vit": 8}
SEEDS = {**DRAWN, **EMOJI}
LARGEST = ("micro", "micro-emoji")  # of each world, those that have seen all of it
NAMES = tuple(SEEDS)


def check_name(name: str) -> str:
    """Return the name of a shipped model; raise ``ValueError`` for any other name."""
    if name not in SEEDS:
        raise ValueError(unknown_name("embedded backbone", name, NAMES))
    return name


def model_config(name: str) -> dict:
    """Return the open_clip config of a shipped model."""
    return json.loads((MODELS / f"{check_name(name)}.json").read_text())


def model_path(name: str) -> Path:
    """Return the path of a shipped model's weights (fp16 safetensors)."""
    return MODELS / f"{check_name(name)}.safetensors"


def datasets_of(name: str) -> ModuleType:
    """Return the module of the datasets of a shipped model's world."""
    return emoji_datasets if check_name(name) in EMOJI else drawn_datasets


def vocabulary(name: str) -> Path:
    """Return the path of the vocabulary of a shipped model's world."""
    return MODELS / ("vocabulary-emoji.txt.gz" if check_name(name) in EMOJI else "vocabulary.txt.gz")


@cache
def tokenizer(name: str = "micro") -> "SimpleTokenizer":
    """Return open_clip's ``SimpleTokenizer`` with the reduced vocabulary; the end token has the largest id."""
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(str(vocabulary(name)), context_length=model_config(name)["text_cfg"]["context_length"])


@cache
def _full_tokenizer() -> "SimpleTokenizer":
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def unknown_names(name: str, classnames: Iterable[str]) -> list[str]:
    """Return the class names with a word that the vocabulary of a shipped model lacks: the model has never seen it."""
    reduced, full = tokenizer(name), _full_tokenizer()

    def pieces(vocabulary: "SimpleTokenizer", text: str) -> list[str]:
        return [vocabulary.decoder[token] for token in vocabulary.encode(text)]

    return [text for text in classnames if pieces(reduced, text) != pieces(full, text)]


def image_stats() -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the models' normalisation, mean and standard deviation per channel: OpenAI's, open_clip's default."""
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    return OPENAI_DATASET_MEAN, OPENAI_DATASET_STD


def true_log_prior(backbone: str, dataset: str) -> "torch.Tensor":
    """Return the log label prior of a model's pre-training data.

    Args:
        backbone: name of an embedded model.
        dataset: name of a dataset of the same world.

    Returns:
        [C], the natural log of the prior in the dataset's class order; ``exp`` sums to one.

    Raises:
        ValueError: the prior of this backbone or dataset is unknown.

    Examples:
        >>> import unskew
        >>> log_q = unskew.true_log_prior("micro", "shapes")
        >>> log_q.shape, round(float(log_q.exp().sum()), 4)
        (torch.Size([96]), 1.0)
    """
    if backbone not in SEEDS or dataset not in (datasets := datasets_of(backbone)).DATASETS:
        pairs = (
            f"{', '.join(models)} on one of {', '.join(datasets.DATASETS)}"
            for models, datasets in ((DRAWN, drawn_datasets), (EMOJI, emoji_datasets))
        )
        message = f"the true prior of backbone '{backbone}' on dataset '{dataset}' is unknown"
        raise ValueError(f"{message}; use one of {', or one of '.join(pairs)}")
    import torch  # the names and paths of the models do not need it

    return torch.from_numpy(datasets.log_prior(SEEDS[backbone], dataset)).log_softmax(0).float()
