"""Prompts: class names as token embeddings for a text tower, packed without padding."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn

from unskew.clip.backbones import Backbone
from unskew.utils.registry import unknown_name

POSITIONS = ("end", "middle", "front")


@dataclass
class Prompts:
    """Token embeddings of one prompt per class, before positions are added; gradients flow through them.

    The prompt of class c is the ``prefix`` followed by its ``lengths[c]`` rows of ``suffix``. The last of these rows
    is the end token.

    Attributes:
        prefix: [P, W], the common beginning of all classes: the start token and a shared context.
        suffix: [S, W], S = sum(lengths), the remaining rows of all classes, one class after another.
        lengths: number of suffix rows per class, each at least 1.
        prefix_ids: for each suffix row, the index of the first row with equal content and equal rows before it, which
            is encoded for both; a row without such a row has its own index. ``None``: no rows are shared.
        memory: cache in which the encoder keeps results that depend on the suffix and the tower only; ``None`` if the
            suffix changes. Call ``memory.clear()`` after writes that PyTorch does not count, such as
            ``weight.data.mul_()``.
    """

    prefix: Tensor
    suffix: Tensor
    lengths: tuple[int, ...]
    prefix_ids: tuple[int, ...] | None = None
    memory: dict[str, Any] | None = None


def fill(template: str, classnames: Sequence[str]) -> list[str]:
    """Return the template with each class name at its ``{}``; underscores become spaces, as in CoOp.

    Raises:
        ValueError: a template without ``{}``, which would make all classes equal.
    """
    if "{}" not in template:
        raise ValueError(f"the template '{template}' has no {{}} for the class name")
    return [template.replace("{}", name.replace("_", " ")) for name in classnames]


def tokenize(backbone: Backbone, texts: Sequence[str], reserved: int = 0) -> list[list[int]]:
    """Return the tokens of each text from start to end token, without padding.

    Args:
        backbone: the backbone whose tokenizer is used.
        texts: n texts.
        reserved: number of tokens to keep free for a learned context.

    Raises:
        ValueError: no texts, or a text with more tokens than the tower's context minus ``reserved``.
    """
    texts = list(texts)
    if not texts:
        raise ValueError("no class names to make prompts of")
    tokens = _unpadded(backbone, texts, backbone.context_length + 2)
    for text, ids in zip(texts, tokens, strict=True):
        if len(ids) + reserved > backbone.context_length:
            count = len(_unpadded(backbone, [text], 4 * len(text) + 16)[0]) + reserved
            context = f", {reserved} of them for the context" if reserved else ""
            raise ValueError(
                f"the prompt of '{text}' has {count} tokens including start and end{context}; "
                f"backbone '{backbone.name}' takes {backbone.context_length}: shorten the name or the context"
            )
    return tokens


def _unpadded(backbone: Backbone, texts: list[str], context_length: int) -> list[list[int]]:
    ids = backbone.tokenizer(texts, context_length)  # [n, L]
    lengths = ((ids != backbone.pad_id) * torch.arange(1, ids.shape[1] + 1)).amax(1)
    lengths += backbone.end_id == backbone.pad_id  # then the end token is the first of the padding
    return [row[:length] for row, length in zip(ids.tolist(), lengths.tolist(), strict=True)]


def _embed(backbone: Backbone, ids: Sequence[int]) -> Tensor:
    """Embed token ids: n ids -> [n, W], float32."""
    with torch.no_grad():
        return backbone.token_embedding(torch.tensor(ids, dtype=torch.long, device=backbone.device)).float()


def _embed_all(backbone: Backbone, tokens: Sequence[Sequence[int]]) -> Tensor:
    return _embed(backbone, list(chain.from_iterable(tokens)))  # [S, W]


def fixed_prompts(backbone: Backbone, texts: Sequence[str]) -> Prompts:
    """Return whole texts as prompts; their longest common beginning becomes the prefix.

    Raises:
        ValueError: a text longer than the tower's context.
    """
    tokens = tokenize(backbone, texts)
    first, last = min(tokens), max(tokens)  # all texts share what the first and the last in order share
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    shared = min(shared, min(map(len, tokens)) - 1)  # every class keeps its end token
    rest = [ids[shared:] for ids in tokens]
    lengths = tuple(map(len, rest))
    return Prompts(_embed(backbone, first[:shared]), _embed_all(backbone, rest), lengths, _prefix_ids(rest))


def _prefix_ids(tokens: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Return `Prompts.prefix_ids` of the tokens of all classes: "red box" and "red cup" share the row of "red"."""
    known: dict[tuple[int, int], int] = {}  # by the row above and the token
    rows: list[int] = []
    for ids in tokens:
        above = -1
        for token in ids:
            above = known.setdefault((above, token), len(rows))
            rows.append(above)
    return tuple(rows)


class LearnableContext(nn.Module):
    """CoOp's prompts, "V1 V2 ... Vn classname.", with a learned context V (Zhou et al. 2022, eq. 2 and 3).

    The parameter ``ctx`` is [n_ctx, W], or [C, n_ctx, W] with ``csc``; the state dict holds nothing else.

    Args:
        backbone: the backbone whose tokens and embeddings are used.
        classnames: C names; underscores become spaces.
        n_ctx: number of context tokens; they are initialised from N(0, 0.02^2).
        ctx_init: text to initialise the context from; its number of tokens replaces n_ctx. Text after a ``{}`` in
            it follows the class name unchanged; without ``{}`` a full stop follows.
        csc: one context per class.
        position: position of the class name: at the "end" of the context, in its "middle" or in "front".
        generator: generator of the noise, on the CPU.

    Raises:
        ValueError: an unknown position, no context, or a prompt longer than the tower's context.
    """

    _start: Tensor
    _rest: Tensor
    _rows: Tensor

    def __init__(
        self,
        backbone: Backbone,
        classnames: Sequence[str],
        n_ctx: int = 16,
        ctx_init: str = "",
        csc: bool = False,
        position: str = "end",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if position not in POSITIONS:
            raise ValueError(unknown_name("class token position", position, POSITIONS))
        words, hole, suffix = ctx_init.replace("_", " ").partition("{}")
        start = len(backbone.start_ids)
        # Count tokens, not words: "centered" may be two tokens.
        initial = tokenize(backbone, [words])[0][start:-1] if ctx_init else [backbone.pad_id] * n_ctx
        if not initial:
            got = f"ctx_init '{ctx_init}' has none before the class name" if ctx_init else f"n_ctx is {n_ctx}"
            raise ValueError(f"a learned context needs at least one token; {got}")
        n_ctx = len(initial)
        ctx = _embed(backbone, initial)  # [n_ctx, W]
        ctx = ctx.repeat(len(classnames), 1, 1) if csc else ctx
        if not ctx_init:
            ctx = torch.empty(ctx.shape).normal_(std=0.02, generator=generator).to(backbone.device)
        self.ctx = nn.Parameter(ctx)

        names = fill("{}", classnames)
        rest = [ids[start:] for ids in tokenize(backbone, fill(f"{{}}{suffix if hole else '.'}", names), n_ctx)]
        name_lengths = [len(ids) - start - 1 for ids in tokenize(backbone, names)]
        # The first `lead` context tokens come before the name, the others after it. If all classes have the same
        # context, the tokens before the name belong to the shared prefix, not to the suffix.
        lead = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]
        self._shared = 0 if csc else lead
        self._lengths = tuple(len(ids) + n_ctx - self._shared for ids in rest)
        rows = _reading_order(list(map(len, rest)), name_lengths, n_ctx - self._shared, lead - self._shared)
        self._prefix_ids = None if csc else _prefix_ids(_slots(rows, rest, n_ctx - self._shared))
        self._memory: dict[str, Any] = {}
        self.register_buffer("_start", _embed(backbone, backbone.start_ids), persistent=False)
        self.register_buffer("_rest", _embed_all(backbone, rest), persistent=False)  # name, suffix and end token
        self.register_buffer("_rows", torch.tensor(rows, device=backbone.device), persistent=False)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_memory": {}}  # a copy must not share it

    def forward(self) -> Prompts:
        """Return the prompts with the current context."""
        prefix = torch.cat([self._start, self.ctx[: self._shared]]) if self._shared else self._start
        if self._shared == self.ctx.shape[-2]:
            return Prompts(prefix, self._rest, self._lengths, self._prefix_ids, self._memory)
        ctx = self.ctx[..., self._shared :, :].expand(len(self._lengths), -1, -1).flatten(0, 1)  # [C * context, W]
        suffix = torch.cat([self._rest, ctx]).index_select(0, self._rows)
        return Prompts(prefix, suffix, self._lengths, self._prefix_ids)


def _slots(rows: Sequence[int], rest: Sequence[Sequence[int]], context: int) -> list[list[int]]:
    """Return the content of the rows of `_reading_order`, by class: a token, or below 0 a place of the context."""
    content = [*chain.from_iterable(rest), *(-1 - place for _ in rest for place in range(context))]
    slots = iter([content[row] for row in rows])
    return [list(islice(slots, len(ids) + context)) for ids in rest]


def _reading_order(rest_lengths: list[int], name_lengths: list[int], context: int, lead: int) -> list[int]:
    """Order the rows of [rest of all classes; ``context`` rows per class] as each class's prompt reads.

    A class reads ``lead`` rows of its context, its name, the other rows of its context, and its suffix.
    """
    rows, first, total = [], 0, sum(rest_lengths)
    for c, (length, name) in enumerate(zip(rest_lengths, name_lengths, strict=True)):
        rest = range(first, first + length)
        ctx = range(total + c * context, total + (c + 1) * context)
        rows += [*ctx[:lead], *rest[:name], *ctx[lead:], *rest[name:]]
        first += length
    return rows


class ResidualContext(nn.Module):
    """GLA's class-specific residual prompt: a hand-made prompt with a learned shift of its token embeddings.

    The parameter ``residual`` is [number of tokens strictly between start and end, over all classes, W]. It starts at
    zero, so that training starts at the hand-made prompts; the state dict holds nothing else.

    Args:
        backbone: the backbone whose tokens and embeddings are used.
        texts: C whole prompts.

    Raises:
        ValueError: a prompt longer than the tower's context.
    """

    _start: Tensor
    _suffix: Tensor
    _inner: Tensor

    def __init__(self, backbone: Backbone, texts: Sequence[str]) -> None:
        super().__init__()
        tokens = [ids[len(backbone.start_ids) :] for ids in tokenize(backbone, texts)]
        self._lengths = tuple(map(len, tokens))
        self.register_buffer("_start", _embed(backbone, backbone.start_ids), persistent=False)
        self.register_buffer("_suffix", _embed_all(backbone, tokens), persistent=False)
        ends = torch.tensor(self._lengths).cumsum(0) - 1
        inner = torch.ones(len(self._suffix), dtype=torch.bool).index_fill(0, ends, False)
        self.register_buffer("_inner", inner.nonzero()[:, 0].to(backbone.device), persistent=False)
        self.residual = nn.Parameter(torch.zeros_like(self._suffix[self._inner]))

    def forward(self) -> Prompts:
        """Return the prompts with the current shift."""
        return Prompts(self._start, self._suffix.index_add(0, self._inner, self.residual), self._lengths)
