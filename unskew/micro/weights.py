"""The shipped models of the embedded world: their configs, files, tokenizer, and what is known of their pre-training.

Each model is an open_clip model. ``models/`` holds an open_clip config and a safetensors file per
model and one reduced BPE vocabulary, so ``open_clip.add_model_config(MODELS)`` and
``open_clip.create_model(name, pretrained=str(model_path(name)))`` are all that it takes.
"""

import json
from pathlib import Path

import numpy as np
import torch

from unskew.micro import downstream, world
from unskew.utils.registry import unknown_name

MODELS = Path(__file__).resolve().parent / "models"
VOCABULARY = MODELS / "vocabulary.txt.gz"
# A model's seed fixes its initial weights, its images and the permutation of its label frequencies.
SEEDS = {"micro": 1, "micro-a": 2, "micro-b": 3, "micro-c": 4, "micro-vit": 5}
NAMES = tuple(SEEDS)


def check_name(name: str) -> str:
    """``name`` if it is a shipped model's; else a ``ValueError`` that lists the near ones."""
    if name not in SEEDS:
        raise ValueError(unknown_name("embedded backbone", name, NAMES))
    return name


def model_config(name: str) -> dict:
    """The open_clip config of a shipped model."""
    return json.loads((MODELS / f"{check_name(name)}.json").read_text())


def model_path(name: str) -> Path:
    """The safetensors file (fp16) of a shipped model."""
    return MODELS / f"{check_name(name)}.safetensors"


def tokenizer(name: str = "micro"):
    """open_clip's ``SimpleTokenizer`` on the reduced vocabulary; the end token is the largest id."""
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(str(VOCABULARY), context_length=model_config(name)["text_cfg"]["context_length"])


def image_stats() -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel that the models expect: open_clip's default, OpenAI's."""
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    return OPENAI_DATASET_MEAN, OPENAI_DATASET_STD


def true_log_prior(backbone: str, dataset: str) -> torch.Tensor:
    """The label prior that ``backbone`` was pre-trained under, known because the world is ours.

    It is the product of the pre-training frequencies of the factors that the classes name, which are
    drawn independently, normalised over the classes that the dataset has.

    Args:
        backbone: an embedded model's name.
        dataset: a dataset on the embedded world.

    Returns:
        [C], natural log, ``exp`` sums to one, in the dataset's class order.

    Raises:
        ValueError: a backbone or dataset whose prior nobody knows.
    """
    if backbone not in SEEDS or dataset not in downstream.DATASETS:
        raise ValueError(
            f"no true prior is known for backbone '{backbone}' on dataset '{dataset}'; "
            f"it is for {', '.join(NAMES)} on {', '.join(downstream.DATASETS)}"
        )
    frequency = world.frequencies(SEEDS[backbone])
    log_prior = np.zeros(1)
    for factor, values in downstream.factor_values(dataset).items():
        log_prior = (log_prior[:, None] + np.log(frequency[factor][values])).ravel()
    return torch.from_numpy(log_prior).log_softmax(0).float()
