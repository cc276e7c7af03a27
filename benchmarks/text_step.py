"""Time and memory of a step of CoOp on the text tower, compared with the published trainers' 77 tokens per prompt.

    python benchmarks/text_step.py --classes 10 100
    python benchmarks/text_step.py --classes 100 1000 --chunk 1000 --device cuda --precisions fp32 amp bf16

A step encodes the prompts, computes cosine logits of 32 images and cross entropy, and updates the context by SGD. The
reference encodes every prompt at full length with the context repeated for each class. With more than --chunk classes
the graph of all classes may not fit in memory. The reference then computes the loss's gradient once, untimed, and the
timed step encodes chunk after chunk, forward and backward. Memory is what a step needs in addition to weights and
prompts. One floor is the time of the step's operations at the speed of this machine's matrix product. The other floor
is the time of its bytes (weights of the tower and kept activations, once forward and once backward) at the speed of
its memory.
"""

import argparse
import itertools
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from measure import copy_speed, machine, matmul_speed, median_seconds, mib, peak_bytes, seconds, table, write
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from unskew.clip import backbones
from unskew.clip.prompts import LearnableContext
from unskew.clip.text import cosine_logits, encode_prompts

BATCH, CONTEXT = 32, 16
# Greatest relative difference of the gradients in fp32; matrix products on a GPU sum in another order.
TOLERANCE = {"cpu": 1e-5, "cuda": 1e-3}
COLUMNS = {
    "classes": "classes",
    "precision": "precision",
    "seconds": "seconds",
    "reference_seconds": "reference",
    "ratio": "times faster",
    "peak_mib": "MiB",
    "reference_peak_mib": "reference MiB",
    "gradient_difference": "gradients differ",
    "gflop": "GFLOP",
    "moved_mib": "MiB moved",
    "floor_seconds": "floor, s",
    "floor_seconds_memory": "memory floor, s",
}


class Problem(NamedTuple):
    """The inputs of both methods."""

    backbone: backbones.Backbone
    names: list[str]
    learner: LearnableContext
    optimizer: torch.optim.SGD
    features: Tensor  # [BATCH, D]
    labels: Tensor  # [BATCH]
    precision: str

    @property
    def computes_in(self) -> torch.dtype:
        """The type of the matrix products, as the trainers' accelerator chooses it."""
        if self.precision == "fp32":
            return torch.float32
        return torch.float16 if self.precision == "amp" and self.labels.is_cuda else torch.bfloat16

    def autocast(self) -> torch.autocast:
        """Return the context of a forward pass."""
        half = self.computes_in
        return torch.autocast(self.labels.device.type, half, enabled=half != torch.float32)


def problem(backbone: str, classes: int, device: str, threads: int, precision: str = "fp32") -> Problem:
    import open_clip

    torch.set_num_threads(threads)
    loaded = backbones.load_backbone(backbone, precision, device)
    names = list(open_clip.IMAGENET_CLASSNAMES[:classes])
    generator = torch.Generator().manual_seed(0)
    learner = LearnableContext(loaded, names, CONTEXT, generator=generator).to(device)
    with torch.no_grad():
        width = encode_prompts(loaded, names[:1]).shape[1]
    features = torch.randn(BATCH, width, generator=generator).to(device)
    labels = torch.randint(classes, (BATCH,), generator=generator).to(device)
    optimizer = torch.optim.SGD(learner.parameters(), 0.002)
    return Problem(loaded, names, learner, optimizer, features, labels, precision)


# --- the two methods -----------------------------------------------------------------------------------


def ours(given: Problem) -> Callable[[], None]:
    """Return forward and backward with this package's text encoder."""

    def gradient() -> None:
        with given.autocast():
            text_features = encode_prompts(given.backbone, given.learner())
            logits = cosine_logits(given.backbone, given.features, text_features)
        F.cross_entropy(logits.float(), given.labels).backward()

    return gradient


def reference(given: Problem, chunk: int) -> Callable[[], None]:
    """Return forward and backward as published, in chunks if there are more than ``chunk`` classes."""
    ids, embeddings = full_length(given.backbone, given.names)
    classes = len(ids)

    def encode(part: slice) -> Tensor:
        with given.autocast():
            return encode_full_length(given.backbone, given.learner.ctx, ids[part], embeddings[part])

    def loss(text_features: Tensor) -> Tensor:
        images, texts = F.normalize(given.features, dim=-1), F.normalize(text_features.float(), dim=-1)
        return F.cross_entropy(given.backbone.logit_scale.exp().float() * images @ texts.T, given.labels)

    if chunk >= classes:
        return lambda: loss(encode(slice(None))).backward()
    parts = [slice(first, first + chunk) for first in range(0, classes, chunk)]
    with torch.no_grad():
        text_features = torch.cat([encode(part) for part in parts])
    loss(text_features.requires_grad_()).backward()  # equal at each repeat; the time does not depend on it

    def gradient() -> None:
        for part in parts:
            encode(part).backward(text_features.grad[part])

    return gradient


def full_length(backbone: backbones.Backbone, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return ids [C, L] of "X X .. X name." and their embeddings [C, L, W]; the context replaces the X."""
    length = backbone.context_length
    plain = backbone.tokenizer([f"{name}." for name in names]).to(backbone.device)
    ids = torch.cat([plain[:, :1], plain[:, :1].expand(-1, CONTEXT), plain[:, 1:]], 1)[:, :length]
    with torch.no_grad():
        return ids, backbone.token_embedding(ids)


def encode_full_length(backbone: backbones.Backbone, ctx: Tensor, ids: Tensor, embeddings: Tensor) -> Tensor:
    """Encode as CoOp does, the full context length of every class through the whole tower: [C, D]."""
    tower = backbone.text
    shared = ctx.unsqueeze(0).expand(len(ids), -1, -1)
    x = torch.cat([embeddings[:, :1], shared, embeddings[:, 1 + CONTEXT :]], 1).to(backbone.dtype)  # [C, L, W]
    positions, mask = (tensor.to(backbone.dtype) for tensor in (tower.positional_embedding, tower.attn_mask))
    x = tower.transformer(x + positions, attn_mask=mask)
    x = tower.ln_final(x)
    ends = (ids == backbone.end_id).int().argmax(1)
    return x[torch.arange(len(ids), device=x.device), ends] @ tower.text_projection


def step(given: Problem, gradient: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        given.optimizer.zero_grad()
        gradient()
        given.optimizer.step()

    return run


# --- measurements -----------------------------------------------------------------------------------


def prepare_ours(*arguments) -> Callable[[], None]:
    given = problem(*arguments)
    return step(given, ours(given))


def prepare_reference(chunk: int, *arguments) -> Callable[[], None]:
    given = problem(*arguments)
    return step(given, reference(given, chunk))


def context_gradient(given: Problem, gradient: Callable[[], None]) -> Tensor:
    given.optimizer.zero_grad()
    gradient()
    return given.learner.ctx.grad.clone()


def moved_bytes(given: Problem) -> int:
    """Count the bytes of the blocks' weights and of the activations kept for the backward pass, each twice."""
    weights = {w.data_ptr(): w.nbytes for w in given.backbone.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # keep a reference, so that no two share an address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        text_features = encode_prompts(given.backbone, given.learner())
    activations = sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in weights)
    del text_features
    return 2 * (sum(w.nbytes for w in given.backbone.resblocks.parameters()) + activations)


def measure(arguments: argparse.Namespace, classes: int, precision: str) -> dict:
    where = (arguments.backbone, classes, arguments.device, arguments.threads, precision)
    given = problem(*where)
    plain = reference(given, arguments.chunk)
    expected = context_gradient(given, plain)
    with FlopCounterMode(display=False) as counter:
        gradient = context_gradient(given, ours(given))
    flops, moved = counter.get_total_flops(), moved_bytes(given)
    # Alternate, so that a slow minute of the machine affects both.
    run, run_reference = step(given, ours(given)), step(given, plain)
    times = [(median_seconds(run, 3), seconds(run_reference)) for _ in range(arguments.repeats)]
    ours_seconds, reference_seconds = (statistics.median(column) for column in zip(*times, strict=True))
    rows = sum(given.learner._lengths) + CONTEXT + 1
    speed = matmul_speed(rows, given.backbone.positional_embedding.shape[1], arguments.device, given.computes_in)
    peak, held = peak_bytes(prepare_ours, *where)
    reference_peak, _ = peak_bytes(prepare_reference, arguments.chunk, *where)
    return {
        "classes": classes,
        "precision": precision,
        "seconds": ours_seconds,
        "reference_seconds": reference_seconds,
        "ratio": reference_seconds / ours_seconds,
        "all_seconds": times,
        "peak_bytes": peak,
        "reference_peak_bytes": reference_peak,
        "held_bytes": held,
        "gradient_difference": ((gradient - expected).abs().max() / expected.abs().max()).item(),
        "flops": flops,
        "matmul_flops_per_second": speed,
        "floor_seconds": flops / speed,
        "moved_bytes": moved,
        "floor_seconds_memory": moved / copy_speed(arguments.device),
        "backbone": arguments.backbone,
        "reference_chunk": min(arguments.chunk, classes),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100], help="classes of ImageNet, at most 1000")
    parser.add_argument("--backbone", default="ViT-B-16@random")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precisions", nargs="+", default=["fp32"], choices=backbones.PRECISIONS)
    parser.add_argument("--chunk", type=int, default=100, help="classes that the reference encodes at a time")
    parser.add_argument("--json", default="", help="write all numbers to this file")
    arguments = parser.parse_args()
    if max(arguments.classes) > 1000:
        parser.error(f"--classes must be at most 1000, the classes of ImageNet (got {max(arguments.classes)})")
    torch.set_num_threads(arguments.threads)

    rows: list[dict] = []
    for classes, precision in itertools.product(arguments.classes, arguments.precisions):
        rows.append(measure(arguments, classes, precision))
        write(arguments.json, rows)  # after each row: a time limit then loses only the rest
    shown = [
        {
            **row,
            "peak_mib": mib(row["peak_bytes"]),
            "reference_peak_mib": mib(row["reference_peak_bytes"]),
            "gflop": row["flops"] / 1e9,
            "moved_mib": mib(row["moved_bytes"]),
        }
        for row in rows
    ]
    print(f"\n{machine()}\n\n{table(shown, COLUMNS)}")
    most = TOLERANCE[torch.device(arguments.device).type]
    if any(row["gradient_difference"] > most for row in rows if row["precision"] == "fp32"):
        raise SystemExit(f"the gradients differ by more than {most}")


if __name__ == "__main__":
    main()
