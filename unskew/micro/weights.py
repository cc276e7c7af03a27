"""The shipped models of the embedded world: configs, weights, tokenizer and true priors.

Each model is an open_clip model. ``models/`` holds a config and a safetensors file per model, and one reduced BPE
vocabulary. ``open_clip.add_model_config(MODELS)`` and ``open_clip.create_model(name,
pretrained=str(model_path(name)))`` load a model.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unskew.micro import downstream, world
from unskew.utils.registry import unknown_name

if TYPE_CHECKING:
    import torch
    from open_clip.tokenizer import SimpleTokenizer

MODELS = Path(__file__).resolve().parent / "models"
VOCABULARY = MODELS / "vocabulary.txt.gz"
# A model's seed fixes its initial weights, its images and the order of its label frequencies.
SEEDS = {"micro": 1, "micro-a": 2, "micro-b": 3, "micro-c": 4, "micro-vit": 5}
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


def tokenizer(name: str = "micro") -> "SimpleTokenizer":
    """Return open_clip's ``SimpleTokenizer`` with the reduced vocabulary; the end token has the largest id."""
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(str(VOCABULARY), context_length=model_config(name)["text_cfg"]["context_length"])


def image_stats() -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the models' normalisation, mean and standard deviation per channel: OpenAI's, open_clip's default."""
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    return OPENAI_DATASET_MEAN, OPENAI_DATASET_STD


def true_log_prior(backbone: str, dataset: str) -> "torch.Tensor":
    """Return the log label prior of a model's pre-training data.

    The factors of an image are independent, so the prior of a class is the product of the pre-training frequencies of
    its factor values, normalised over the classes of the dataset.

    Args:
        backbone: name of an embedded model.
        dataset: name of a dataset of the embedded world.

    Returns:
        [C], the natural log of the prior in the dataset's class order; ``exp`` sums to one.

    Raises:
        ValueError: the prior of this backbone or dataset is unknown.

    Example:
        >>> import unskew
        >>> log_q = unskew.true_log_prior("micro", "shapes")
        >>> log_q.shape, round(float(log_q.exp().sum()), 4)
        (torch.Size([96]), 1.0)
    """
    if backbone not in SEEDS or dataset not in downstream.DATASETS:
        raise ValueError(
            f"the true prior of backbone '{backbone}' on dataset '{dataset}' is unknown; "
            f"use one of {', '.join(NAMES)} on one of {', '.join(downstream.DATASETS)}"
        )
    import torch  # the names and paths of the models do not need it

    frequency = world.frequencies(SEEDS[backbone])
    log_prior = np.zeros(1)
    for factor, values in downstream.factor_values(dataset).items():
        log_prior = (log_prior[:, None] + np.log(frequency[factor][values])).ravel()
    return torch.from_numpy(log_prior).log_softmax(0).float()
