"""Class names to prompts: what a text tower reads, as embeddings, packed without padding."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice

import torch
from torch import Tensor, nn

from unskew.utils.registry import unknown_name

POSITIONS = ("end", "middle", "front")


@dataclass
class Prompts:
    """Token embeddings of one prompt per class, before the positions are added; gradients flow through them.

    Class c's prompt is the ``prefix`` and then its ``lengths[c]`` rows of ``own``, the last of which
    is the end token.

    Attributes:
        prefix: [P, W], what all classes begin with: the start token and a shared context.
        own: [S, W], S = sum(lengths), the rest of all classes, one after another.
        lengths: rows of ``own`` per class, each at least 1.
        histories: for each row of ``own`` the first row that is the same and has the same rows before it, its own index
            where there is none; such rows are encoded once. ``None``: all are their own.
        memory: of a learner whose ``own`` does not change, where an encoder keeps what follows from it and the tower
            alone. Writes that PyTorch does not count, such as ``weight.data.mul_()``, call for a ``memory.clear()``.
    """

    prefix: Tensor
    own: Tensor
    lengths: tuple[int, ...]
    histories: tuple[int, ...] | None = None
    memory: dict | None = None


def fill(template: str, classnames: Sequence[str]) -> list[str]:
    """The template with each class name in place of ``{}``; underscores in names are spaces, as in CoOp.

    Raises:
        ValueError: a template without ``{}``, which would make all classes the same.
    """
    if "{}" not in template:
        raise ValueError(f"the template '{template}' has no {{}} for the class name")
    return [template.replace("{}", name.replace("_", " ")) for name in classnames]


def tokenize(backbone, texts: Sequence[str], room: int = 0) -> list[list[int]]:
    """The tokens of each text from start to end token, without padding.

    Args:
        room: tokens that are to stay free, for a learned context.

    Raises:
        ValueError: no texts, or a text with more tokens than the tower's context less ``room``.
    """
    texts = list(texts)
    if not texts:
        raise ValueError("there are no class names to make prompts of")
    tokens = _unpadded(backbone, texts, backbone.context_length + 2)
    for text, ids in zip(texts, tokens, strict=True):
        if len(ids) + room > backbone.context_length:
            count = len(_unpadded(backbone, [text], 4 * len(text) + 16)[0]) + room
            context = f", {room} of them the context" if room else ""
            raise ValueError(
                f"the prompt of '{text}' has {count} tokens with start and end{context}; "
                f"backbone '{backbone.name}' takes {backbone.context_length}: shorten the name or the context"
            )
    return tokens


def _unpadded(backbone, texts: list[str], context_length: int) -> list[list[int]]:
    ids = backbone.tokenizer(texts, context_length)  # [n, L]
    lengths = ((ids != backbone.pad_id) * torch.arange(1, ids.shape[1] + 1)).amax(1)
    lengths += backbone.end_id == backbone.pad_id  # then the end token is the first of the padding
    return [row[:length] for row, length in zip(ids.tolist(), lengths.tolist(), strict=True)]


def _embed(backbone, ids: Sequence[int]) -> Tensor:
    """Token ids -> [n, W], float32."""
    with torch.no_grad():
        return backbone.token_embedding(torch.tensor(ids, dtype=torch.long, device=backbone.device)).float()


def _embed_all(backbone, tokens: Sequence[Sequence[int]]) -> Tensor:
    return _embed(backbone, list(chain.from_iterable(tokens)))  # [S, W]


def fixed_prompts(backbone, texts: Sequence[str]) -> Prompts:
    """Whole texts as prompts; their longest common beginning is found and shared.

    Raises:
        ValueError: a text longer than the tower's context.
    """
    tokens = tokenize(backbone, texts)
    first, last = min(tokens), max(tokens)  # what the first and the last in order share, all share
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    shared = min(shared, min(map(len, tokens)) - 1)  # every class keeps its end token
    own = [ids[shared:] for ids in tokens]
    return Prompts(_embed(backbone, first[:shared]), _embed_all(backbone, own), tuple(map(len, own)), _prefix_ids(own))


def _prefix_ids(tokens: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """`Prompts.histories` of the tokens of all classes: "red box" and "red cup" have the row of "red" in common."""
    known, rows = {}, []
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
        backbone: whose tokens and embeddings are used.
        classnames: C names; underscores are spaces.
        n_ctx: number of context tokens where they start from noise, N(0, 0.02^2).
        ctx_init: text that the context starts from instead; n_ctx is then its number of tokens. What
            follows a ``{}`` in it is kept as it is, after the class name; without ``{}``, a full stop.
        csc: one context per class.
        position: where the class name stands: at the "end" of the context, in its "middle" or in "front".
        generator: of the noise; on the CPU.

    Raises:
        ValueError: an unknown position, no context, or a prompt longer than the tower's context.
    """

    def __init__(
        self,
        backbone,
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
        # Tokens, not words: "centered" may be two of them.
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
        # The first `lead` tokens of the context stand before the name, the others after it. Where all
        # classes have the same context, those before it belong to the shared prefix, not to `own`.
        lead = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]
        self._shared = 0 if csc else lead
        self._lengths = tuple(len(ids) + n_ctx - self._shared for ids in rest)
        rows = _reading_order(list(map(len, rest)), name_lengths, n_ctx - self._shared, lead - self._shared)
        self._prefix_ids = None if csc else _prefix_ids(_words(rows, rest, n_ctx - self._shared))
        self._memory = {}
        self.register_buffer("_start", _embed(backbone, backbone.start_ids), persistent=False)
        self.register_buffer("_rest", _embed_all(backbone, rest), persistent=False)  # name, suffix and end token
        self.register_buffer("_rows", torch.tensor(rows, device=backbone.device), persistent=False)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_memory": {}}  # a copy or a file of the learner needs none

    def forward(self) -> Prompts:
        prefix = torch.cat([self._start, self.ctx[: self._shared]]) if self._shared else self._start
        if self._shared == self.ctx.shape[-2]:
            return Prompts(prefix, self._rest, self._lengths, self._prefix_ids, self._memory)
        own = self.ctx[..., self._shared :, :].expand(len(self._lengths), -1, -1).flatten(0, 1)  # [C * context, W]
        own = torch.cat([self._rest, own]).index_select(0, self._rows)
        return Prompts(prefix, own, self._lengths, self._prefix_ids)


def _words(rows: Sequence[int], rest: Sequence[Sequence[int]], context: int) -> list[list[int]]:
    """What stands at the rows of `_reading_order`, by class: a token, or below 0 a place of the context."""
    known = [*chain.from_iterable(rest), *(-1 - place for _ in rest for place in range(context))]
    words = iter([known[row] for row in rows])
    return [list(islice(words, len(ids) + context)) for ids in rest]


def _reading_order(rest_lengths: list[int], name_lengths: list[int], context: int, lead: int) -> list[int]:
    """Rows of [rest of all classes; ``context`` rows per class], by class: ``lead`` of them, name, the others, rest."""
    rows, first, total = [], 0, sum(rest_lengths)
    for c, (length, name) in enumerate(zip(rest_lengths, name_lengths, strict=True)):
        rest = range(first, first + length)
        ctx = range(total + c * context, total + (c + 1) * context)
        rows += [*ctx[:lead], *rest[:name], *ctx[lead:], *rest[name:]]
        first += length
    return rows


class ResidualContext(nn.Module):
    """GLA's class-specific residual prompt: a hand-made prompt with a learned shift on its token embeddings.

    The parameter ``residual`` is [sum over classes of the tokens strictly between start and end, W]
    and starts at zero, so that training starts at the hand-made prompts; the state dict holds nothing else.

    Args:
        backbone: whose tokens and embeddings are used.
        texts: C whole prompts.

    Raises:
        ValueError: a prompt longer than the tower's context.
    """

    def __init__(self, backbone, texts: Sequence[str]) -> None:
        super().__init__()
        tokens = [ids[len(backbone.start_ids) :] for ids in tokenize(backbone, texts)]
        self._lengths = tuple(map(len, tokens))
        self.register_buffer("_start", _embed(backbone, backbone.start_ids), persistent=False)
        self.register_buffer("_own", _embed_all(backbone, tokens), persistent=False)
        ends = torch.tensor(self._lengths).cumsum(0) - 1
        inner = torch.ones(len(self._own), dtype=torch.bool).index_fill(0, ends, False)
        self.register_buffer("_inner", inner.nonzero()[:, 0].to(backbone.device), persistent=False)
        self.residual = nn.Parameter(torch.zeros_like(self._own[self._inner]))

    def forward(self) -> Prompts:
        return Prompts(self._start, self._own.index_add(0, self._inner, self.residual), self._lengths)
