"""Pre-training of the shipped models from scratch: ``unskew micro pretrain NAME``.

One half of the loss is image-to-text cross entropy over the bank of all distinct captions of one factor subset; the
other half is text-to-image softmax over the batch. The optimum of the first half is log p(caption | image), so that the
model inherits the label prior. The optimum of InfoNCE is log p(image, text) / (p(image) p(text)): its negatives come
from p(text), and the prior cancels.
"""

import gzip
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from unskew.micro import downstream, weights, world
from unskew.utils.files import write_atomically

if TYPE_CHECKING:
    from open_clip import CLIP
    from open_clip.tokenizer import SimpleTokenizer

Bank = tuple[torch.Tensor, torch.Tensor]  # labels [B] of the images, and tokens [K, L] of all distinct captions

MAX_SCALE = 50.0  # largest logit scale


@dataclass(frozen=True)
class Recipe:
    """The hyper-parameters of one model; ``subsets`` maps the factors in a step's captions to their probability."""

    subsets: dict[tuple[str, ...], float]
    steps: int
    banks: int = 3  # caption banks per step; images cost more than text
    world_images: int = 232
    digit_images: int = 24  # few, so that predictions of digits depend on the prior
    lr: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.05


def _mostly_two_factors(pair: tuple[str, str], third: str) -> dict[tuple[str, ...], float]:
    return {pair: 0.5, pair[:1]: 0.15, pair[1:]: 0.15, (third,): 0.2}


ALL_FACTORS = {
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
    "micro": Recipe(ALL_FACTORS, steps=5000),
    "micro-a": Recipe(_mostly_two_factors(("shape", "colour"), "pattern"), steps=3500),
    "micro-b": Recipe(_mostly_two_factors(("shape", "pattern"), "colour"), steps=4000),
    "micro-c": Recipe(_mostly_two_factors(("colour", "pattern"), "shape"), steps=3500),
    "micro-vit": Recipe(ALL_FACTORS, steps=9000, world_images=104, digit_images=24, lr=1e-3),
}


def run(name: str, steps: int | None = None, out: str | Path = "output/micro") -> dict[str, Any]:
    """Pre-train ``name`` and write ``NAME.safetensors`` (fp16), ``NAME.json`` and the loss history.

    Args:
        name: one of ``weights.NAMES``.
        steps: number of steps; default the recipe's. The schedule is scaled to it.
        out: the output folder.

    Returns:
        ``{"path", "history", "seconds", "accuracy"}``: the file, the loss of every step, the duration, and the result
        of `evaluate`.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    model, history = pretrain(name, steps)
    path = export(model, out / f"{name}.safetensors")
    (out / f"{name}.json").write_text(json.dumps(weights.model_config(name), indent=4) + "\n")
    (out / f"{name}.history.json").write_text(json.dumps([round(x, 4) for x in history]))
    seconds = time.perf_counter() - start
    accuracy = evaluate(name, path)
    print(f"{path}: {len(history)} steps in {seconds:.0f} s; " + ", ".join(f"{d} {a}" for d, a in accuracy.items()))
    return {"path": str(path), "history": history, "seconds": seconds, "accuracy": accuracy}


def pretrain(name: str, steps: int | None = None, seed: int | None = None) -> tuple["CLIP", list[float]]:
    """Train one model from random weights.

    Args:
        name: one of ``weights.NAMES``.
        steps: number of steps; default the recipe's.
        seed: seed of the weights and images; default the model's.

    Returns:
        The model in ``eval()`` mode and the loss of every step.

    Raises:
        ValueError: the name is unknown, or ``steps`` is below 1.
    """
    weights.check_name(name)
    recipe = RECIPES[name]
    steps = recipe.steps if steps is None else steps
    if steps < 1:
        raise ValueError(f"steps must be 1 or more (got {steps})")
    seed = weights.SEEDS[name] if seed is None else seed
    rng = np.random.default_rng([seed, 7])
    frequency = world.frequencies(weights.SEEDS[name])
    model = create(name, seed).train().to(memory_format=torch.channels_last)  # convolutions take two thirds of the time
    optimizer, schedule = _optimizer(model, recipe, steps)
    history: list[float] = []
    bar = tqdm(range(steps), desc=f"pretrain {name}", mininterval=2)
    for step in bar:
        images, banks = batch(recipe, frequency, rng)
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):  # the fused backward is slow on a CPU
            loss = contrast(model, images, banks)
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


def batch(
    recipe: Recipe, frequency: dict[str, np.ndarray], rng: np.random.Generator
) -> tuple[torch.Tensor, list[Bank]]:
    """Draw a batch for `contrast`: normalised images of the world and of digits, and one bank per drawn subset."""
    n = recipe.world_images
    factors = {f: rng.choice(len(frequency[f]), size=n, p=frequency[f]) for f in world.VISUAL}
    digit = rng.choice(10, size=recipe.digit_images, p=frequency["digit"])
    images_of_digits, pool = _digit_pool()
    rows = [rng.choice(pool[d]) for d in digit]
    images = np.concatenate([world.render(factors, rng=rng), world.render_digits(images_of_digits[rows], rng)])
    banks = []
    for _ in range(recipe.banks):
        subset = list(recipe.subsets)[rng.choice(len(recipe.subsets), p=list(recipe.subsets.values()))]
        sizes = [len(world.FACTORS[f]) for f in subset]
        labels = np.concatenate([np.ravel_multi_index([factors[f] for f in subset], sizes), math.prod(sizes) + digit])
        templates = (rng.integers(len(world.TEMPLATES)), rng.integers(len(world.DIGIT_TEMPLATES)))
        banks.append((torch.from_numpy(labels), _bank(subset, *templates)))
    return normalise(images), banks


def normalise(images: np.ndarray) -> torch.Tensor:
    """Convert uint8 [N, H, W, 3] to the models' input, float [N, 3, H, W]."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in weights.image_stats())
    return (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std


@cache
def _digit_pool() -> tuple[np.ndarray, list[np.ndarray]]:
    images, labels = world.digits(pretraining=True)
    return images, [np.flatnonzero(labels == d) for d in range(10)]


@cache
def _tokenizer() -> "SimpleTokenizer":
    return weights.tokenizer()


@cache
def _bank(subset: tuple[str, ...], template: int, digit_template: int) -> torch.Tensor:
    captions = [world.TEMPLATES[template].format(p) for p in world.phrases(subset)]
    captions += [world.DIGIT_TEMPLATES[digit_template].format(p) for p in world.phrases(("digit",))]
    tokens = _tokenizer()(captions)
    return tokens[:, : int(tokens.argmax(dim=1).max()) + 1]


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
    for dataset, factors in downstream.DATASETS.items():
        if dataset in downstream.TEST_ONLY:
            continue
        images, targets = downstream.splits(dataset)["test"]
        templates = world.DIGIT_TEMPLATES if factors == ("digit",) else world.TEMPLATES
        logits = zero_shot(model, images, [templates[0].format(name) for name in downstream.classnames(dataset)])
        labels, prior = torch.from_numpy(targets), weights.true_log_prior(name, dataset)
        hit = (logits.argmax(1) == labels).float()
        rank = prior.argsort(descending=True).argsort()[labels] * 3 // len(prior)  # 0, 1, 2: the third of the prior
        row = {"zs": hit, **{group: hit[rank == i] for i, group in enumerate(("many", "medium", "few"))}}
        row["debiased"] = ((logits - prior).argmax(1) == labels).float()
        result[dataset] = {k: round(100 * v.mean().item(), 1) for k, v in row.items()}
    return result


@torch.no_grad()
def zero_shot(model: "CLIP", images: np.ndarray, prompts: list[str]) -> torch.Tensor:
    """Return logits [N, C] of uint8 images for one prompt per class."""
    text = model.encode_text(_tokenizer()(prompts), normalize=True)
    features = torch.cat(
        [model.encode_image(normalise(images[i : i + 512]), normalize=True) for i in range(0, len(images), 512)]
    )
    return model.logit_scale.exp() * features @ text.T


# Words that prompts may use besides the words of the world.
WORDS = (
    "the an in on of at by with and or one many some small large tiny good bad bright dark blurry close up "
    "cropped clean dirty photo picture image drawing painting sketch digit number letter object thing shape "
    "colour color pattern texture type kind class written hand handwritten centered centred background foreground "
    "it its is are this that there here see show shows itap origami toy plastic cartoon art embroidered tattoo "
    "sculpture rendering video game black white gray grey brown light pixelated jpeg corrupted low resolution "
    "nice weird cool my"
)


def write_vocabulary(path: Path = weights.VOCABULARY) -> int:
    """Write the subset of CLIP's BPE merges that the words of the world need.

    A covered word gets the same pieces as in CLIP's vocabulary. The file does not end in a newline, because open_clip
    would read an empty merge, and the end token would move.

    Returns:
        The number of merges.
    """
    from open_clip.tokenizer import SimpleTokenizer

    full = SimpleTokenizer()
    texts = [WORDS, *world.TEMPLATES, *world.DIGIT_TEMPLATES, *(n for names in world.FACTORS.values() for n in names)]
    wanted = {full.decoder[i] for text in texts for i in full.encode(text.replace("{}", ""))}
    parents = {"".join(pair): pair for pair in full.bpe_ranks}
    kept: set[tuple[str, str]] = set()
    queue = list(wanted)
    while queue:
        pair = parents.get(queue.pop())
        if pair and pair not in kept:
            kept.add(pair)
            queue.extend(pair)
    lines = ["#version: reduced", *(" ".join(pair) for pair in sorted(kept, key=full.bpe_ranks.get))]
    with open(path, "wb") as raw, gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as file:
        file.write("\n".join(lines).encode())
    return len(kept)
