"""Pre-training of the shipped models from scratch: ``unskew micro pretrain NAME``.

One half of the loss is image-to-text cross entropy over the bank of all distinct captions of one factor subset; the
other half is text-to-image softmax over the batch. The optimum of the first half is log p(caption | image), so that the
model inherits the label prior. The optimum of InfoNCE is log p(image, text) / (p(image) p(text)): its negatives come
from p(text), and the prior cancels.
"""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from unskew.micro import emoji, weights
from unskew.micro.recipes import RECIPES, Bank, Recipe, source
from unskew.utils.files import write_atomically

if TYPE_CHECKING:
    from open_clip import CLIP

MAX_SCALE = 50.0  # largest logit scale


def run(
    name: str,
    steps: int | None = None,
    out: str | Path = "output/micro",
    sheets: str | Path = emoji.PRETRAINING_SHEETS,
) -> dict[str, Any]:
    """Pre-train ``name`` and write ``NAME.safetensors`` (fp16), ``NAME.json`` and the loss history.

    Args:
        name: one of ``weights.NAMES``.
        steps: number of steps; default the recipe's. The schedule is scaled to it.
        out: the output folder.
        sheets: the folder with the pictures of emoji for pre-training.

    Returns:
        ``{"path", "history", "seconds", "accuracy"}``: the file, the loss of every step, the duration, and the result
        of `evaluate`.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    model, history = pretrain(name, steps, sheets=sheets)
    path = export(model, out / f"{name}.safetensors")
    (out / f"{name}.json").write_text(json.dumps(weights.model_config(name), indent=4) + "\n")
    (out / f"{name}.history.json").write_text(json.dumps([round(x, 4) for x in history]))
    seconds = time.perf_counter() - start
    accuracy = evaluate(name, path)
    print(f"{path}: {len(history)} steps in {seconds:.0f} s; " + ", ".join(f"{d} {a}" for d, a in accuracy.items()))
    return {"path": str(path), "history": history, "seconds": seconds, "accuracy": accuracy}


def pretrain(
    name: str, steps: int | None = None, seed: int | None = None, sheets: str | Path = emoji.PRETRAINING_SHEETS
) -> tuple["CLIP", list[float]]:
    """Train one model from random weights.

    Args:
        name: one of ``weights.NAMES``.
        steps: number of steps; default the recipe's.
        seed: seed of the weights and images; default the model's.
        sheets: the folder with the pictures of emoji for pre-training.

    Returns:
        The model in ``eval()`` mode and the loss of every step.

    Raises:
        ValueError: the name is unknown, or ``steps`` is below 1.
        FileNotFoundError: the pictures of emoji are not in ``sheets``.
    """
    weights.check_name(name)
    recipe = RECIPES[name]
    steps = recipe.steps if steps is None else steps
    if steps < 1:
        raise ValueError(f"steps must be 1 or more (got {steps})")
    seed = weights.SEEDS[name] if seed is None else seed
    rng = np.random.default_rng([seed, 7])
    draw = source(name, Path(sheets))
    model = create(name, seed).train().to(memory_format=torch.channels_last)  # convolutions take two thirds of the time
    optimizer, schedule = _optimizer(model, recipe, steps)
    history: list[float] = []
    bar = tqdm(range(steps), desc=f"pretrain {name}", mininterval=2)
    for step in bar:
        images, banks = draw(rng)
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):  # the fused backward is slow on a CPU
            loss = contrast(model, normalise(images), banks)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(MAX_SCALE))
        history.append(loss.item())
        if step % 50 == 0:
            bar.set_postfix(loss=f"{np.mean(history[-50:]):.3f}", refresh=False)
    return model.eval(), history


def contrast(model: "CLIP", images: torch.Tensor, banks: Sequence[Bank]) -> torch.Tensor:
    """Return the loss of a batch, the mean over several banks of captions.

    Args:
        model: an open_clip model.
        images: [B, 3, H, W], normalised.
        banks: see `Bank`.
    """
    image_features = F.normalize(model.visual(images).float(), dim=-1)  # [B,D]
    losses = []
    for labels, tokens in banks:
        text_features = F.normalize(encode_bank(model, tokens).float(), dim=-1)  # [K,D]
        logits = model.logit_scale.exp() * image_features @ text_features.T  # [B,K]
        losses += [F.cross_entropy(logits, labels), F.nll_loss(logits.log_softmax(dim=0), labels)]
    return torch.stack(losses).mean()


def encode_bank(model: "CLIP", tokens: torch.Tensor) -> torch.Tensor:
    """Compute ``model.encode_text`` of tokens [K, L], cut to the longest caption.

    The text tower is causal, so tokens after the end token do not matter.
    """
    length = tokens.shape[1]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    return x[torch.arange(len(x)), tokens.argmax(dim=1)] @ model.text_projection


def normalise(images: np.ndarray) -> torch.Tensor:
    """Convert uint8 [N, H, W, 3] to the models' input, float [N, 3, H, W]."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in weights.image_stats())
    return (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std


def create(name: str, seed: int = 0, path: str | Path | None = None) -> "CLIP":
    """Create the open_clip model ``name`` with random weights from ``seed``, or with the weights in ``path``."""
    import open_clip

    open_clip.add_model_config(weights.MODELS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cast("CLIP", open_clip.create_model(name, pretrained=str(path) if path else None))


def _optimizer(model: "CLIP", recipe: Recipe, steps: int) -> tuple[AdamW, LambdaLR]:
    """Return AdamW without decay on vectors and scalars; linear warm-up, then cosine to zero."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98))
    warmup = max(1, round(recipe.warmup * steps))

    def factor(step: int) -> float:
        return min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / steps)))

    return optimizer, LambdaLR(optimizer, factor)


def export(model: "CLIP", path: Path) -> Path:
    """Write fp16 safetensors; the counters of batch norm stay integers."""
    from safetensors.torch import save

    state = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in model.state_dict().items()}
    write_atomically(path, save(state))
    return path


@torch.no_grad()
def evaluate(name: str, path: str | Path | None = None) -> dict[str, dict[str, float]]:
    """Measure the zero-shot accuracy in percent on the downstream test sets with fp16 weights.

    Args:
        name: one of ``weights.NAMES``.
        path: the weights; default the shipped ones.

    Returns:
        For each dataset with training images: ``zs``; ``many``, ``medium``, ``few`` (thirds of the classes by the true
        prior); ``debiased`` (after subtraction of the true log prior).
    """
    model = create(name, path=path or weights.model_path(name)).eval()
    result = {}
    ours = weights.datasets_of(name)
    for dataset in (d for d in ours.DATASETS if d not in ours.TEST_ONLY):
        images, targets = ours.splits(dataset)["test"]
        logits = zero_shot(name, model, images, [ours.prompt(dataset).format(c) for c in ours.classnames(dataset)])
        labels, prior = torch.from_numpy(targets), weights.true_log_prior(name, dataset)
        hit = (logits.argmax(1) == labels).float()
        rank = prior.argsort(descending=True).argsort()[labels] * 3 // len(prior)  # 0, 1, 2: the third of the prior
        row = {"zs": hit, **{group: hit[rank == i] for i, group in enumerate(("many", "medium", "few"))}}
        row["debiased"] = ((logits - prior).argmax(1) == labels).float()
        result[dataset] = {k: round(100 * v.mean().item(), 1) for k, v in row.items()}
    return result


@torch.no_grad()
def zero_shot(name: str, model: "CLIP", images: np.ndarray, prompts: list[str]) -> torch.Tensor:
    """Return logits [N, C] of uint8 images for one prompt per class; ``name`` is the model's."""
    text = model.encode_text(weights.tokenizer(name)(prompts), normalize=True)
    features = torch.cat(
        [model.encode_image(normalise(images[i : i + 512]), normalize=True) for i in range(0, len(images), 512)]
    )
    return model.logit_scale.exp() * features @ text.T
