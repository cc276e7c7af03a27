"""The only text encoder: prompts to features, exact, without encoding padding or a shared beginning twice.

A causal text tower reads from left to right, so what follows a prompt's end token cannot change its
feature, and a beginning that all classes share has the same keys and values for all of them. The
shared prefix is encoded once and the rest of all classes is packed; only attention, [prefix; own
tokens] by class, sees a padded layout.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unskew.prompts import Prompts, fill, fixed_prompts, tokenize

CHUNK = 1000  # classes encoded at a time where no gradient is needed


def encode_prompts(backbone, prompts: Prompts | Sequence[str]) -> Tensor:
    """Encode one prompt per class.

    Args:
        backbone: a `Backbone`; its weights may carry gradients.
        prompts: `Prompts`, or C whole texts.

    Returns:
        [C, D], not normalised, in the backbone's precision.

    Raises:
        ValueError: a text longer than the tower's context.
    """
    if not backbone.causal:
        return encode_plain(backbone, prompts)
    return _encode_packed(backbone, prompts if isinstance(prompts, Prompts) else fixed_prompts(backbone, prompts))


def encode_plain(backbone, prompts: Prompts | Sequence[str]) -> Tensor:
    """As `encode_prompts`, by open_clip's own forward pass on the whole padded context: the reference."""
    if not isinstance(prompts, Prompts):
        tokens = tokenize(backbone, prompts)
        return backbone.encode_tokens(_padded_ids(backbone, tokens))
    _check_length(backbone, prompts)
    filler = backbone.start_ids[0] if backbone.start_ids else 1 - min(backbone.end_id, 1)  # neither end nor padding
    prefix, classes = prompts.prefix, prompts.own.split(prompts.lengths)
    ids = _padded_ids(backbone, [[filler] * (len(prefix) + n - 1) + [backbone.end_id] for n in prompts.lengths])
    padding = backbone.token_embedding.weight[None, backbone.pad_id]  # [1, W]
    rows = [[prefix, own, padding.expand(ids.shape[1] - len(prefix) - len(own), -1)] for own in classes]
    embeddings = torch.stack([torch.cat(row) for row in rows])  # [C, L, W]
    # The tower sees the ids, from which it takes end and padding, and the embeddings in place of theirs.
    hook = backbone.token_embedding.register_forward_hook(lambda *_: embeddings)
    try:
        return backbone.encode_tokens(ids)
    finally:
        hook.remove()


def _check_length(backbone, prompts: Prompts) -> None:
    if (longest := len(prompts.prefix) + max(prompts.lengths)) > backbone.context_length:
        raise ValueError(f"a prompt has {longest} tokens; backbone '{backbone.name}' takes {backbone.context_length}")


def _padded_ids(backbone, tokens: list[list[int]]) -> Tensor:
    rows = [ids + [backbone.pad_id] * (backbone.context_length - len(ids)) for ids in tokens]
    return torch.tensor(rows, device=backbone.device)  # [C, L]


@torch.no_grad()
def zeroshot_classifier(backbone, classnames: Sequence[str], templates: Sequence[str]) -> Tensor:
    """CLIP's prompt ensemble: per class the mean over templates of the normalised features, normalised again.

    Args:
        classnames: C names; underscores are spaces.
        templates: each with ``{}`` for the name.

    Returns:
        [C, D], float32, rows of norm one.

    Raises:
        ValueError: no templates, one without ``{}``, or a prompt longer than the tower's context.
    """
    if not templates:
        raise ValueError("a zero-shot classifier needs at least one template")
    total = 0
    for template in templates:  # one at a time, since the texts of one template begin alike
        texts = fill(template, classnames)
        chunks = [encode_prompts(backbone, texts[i : i + CHUNK]) for i in range(0, len(texts), CHUNK)]
        total = total + F.normalize(torch.cat(chunks).float(), dim=-1)
    return F.normalize(total, dim=-1)


class _Layout(NamedTuple):
    """Where the rows of [prefix; own] stand. C classes, m tokens in the longest own part, P in the prefix."""

    places: Tensor  # [P + S], each row's place in its prompt
    padded: Tensor  # [C, m], the row at each place of a class's own part; past its end, that of the end token
    packed: Tensor  # [S], each own row's index in [C * m]
    ends: Tensor  # [C], the rows of the end tokens
    causal: Tensor  # [m, P + m], what a place may look at; it keeps real places from the padding too
    before_end: Tensor  # [C, 1, 1, P + m], what an end token may look at


@functools.lru_cache(maxsize=64)  # the same at each step, and built on the host: no step waits for the device
@torch.inference_mode(False)  # else a first call for predictions would leave tensors that training cannot use
def _layout(prefix: int, lengths: tuple[int, ...], device: torch.device) -> _Layout:
    n = torch.tensor(lengths)[:, None]  # [C, 1]
    place = torch.arange(max(lengths))
    real = place < n  # [C, m]
    end = prefix + n.cumsum(0) - 1
    causal = torch.ones(len(place), prefix + len(place), dtype=torch.bool).tril(prefix)
    layout = _Layout(
        places=torch.cat([torch.arange(prefix), prefix + place.expand_as(real)[real]]),
        padded=(end - n + 1 + place).minimum(end),
        packed=real.flatten().nonzero()[:, 0],
        ends=end[:, 0],
        causal=causal,
        before_end=causal[n - 1, None],
    )
    return _Layout(*(tensor.to(device) for tensor in layout))


def _encode_packed(backbone, prompts: Prompts) -> Tensor:
    _check_length(backbone, prompts)
    prefix = len(prompts.prefix)
    layout = _layout(prefix, tuple(prompts.lengths), prompts.own.device)
    x = torch.cat([prompts.prefix, prompts.own]).to(backbone.dtype)  # [P + S, W]
    x = x + backbone.positional_embedding[layout.places].to(backbone.dtype)
    *blocks, last = backbone.resblocks
    for block in blocks:
        qkv, keys, values = _project(block, x, layout, prefix)
        x = x + block.ls_1(block.attn.out_proj(_attend(qkv, keys, values, layout, prefix)))
        x = x + block.ls_2(block.mlp(block.ln_2(x)))
    # Of the last block only the end tokens are read: [C, W] from here on.
    qkv, keys, values = _project(last, x, layout, prefix)
    query = qkv[layout.ends, 0].unsqueeze(2)  # [C, H, 1, d]
    seen = F.scaled_dot_product_attention(query, keys, values, attn_mask=layout.before_end)
    x = x[layout.ends] + last.ls_1(last.attn.out_proj(seen.flatten(1)))
    x = backbone.ln_final(x + last.ls_2(last.mlp(last.ln_2(x))))
    projection = backbone.text_projection
    if projection is None:
        return x
    return projection(x) if isinstance(projection, nn.Module) else x @ projection  # [C, D]


def _project(block: nn.Module, x: Tensor, layout: _Layout, prefix: int) -> tuple[Tensor, Tensor, Tensor]:
    """[P + S, W] -> queries, keys and values by row, [P + S, 3, H, d], and by class: keys, values [C, H, P + m, d]."""
    attention = block.attn
    qkv = F.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
    qkv = qkv.unflatten(-1, (3, attention.num_heads, -1))
    own = qkv[layout.padded, 1:]  # [C, m, 2, H, d]
    shared = qkv[None, :prefix, 1:].expand(len(own), -1, -1, -1, -1)
    keys, values = torch.cat([shared, own], 1).permute(2, 0, 3, 1, 4)
    return qkv, keys, values


def _attend(qkv: Tensor, keys: Tensor, values: Tensor, layout: _Layout, prefix: int) -> Tensor:
    """Causal attention within the prefix and of each class's own tokens to [prefix; own], [P + S, W]."""
    q, k, v = qkv[:prefix].permute(1, 2, 0, 3)  # [H, P, d] each
    shared = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1).flatten(1)  # [P, W]
    query = qkv[layout.padded, 0].transpose(1, 2)  # [C, H, m, d]
    own = F.scaled_dot_product_attention(query, keys, values, attn_mask=layout.causal)  # [C, H, m, d]
    own = own.transpose(1, 2).flatten(2).flatten(0, 1)[layout.packed]  # [S, W]
    return torch.cat([shared, own])


def cosine_logits(backbone, image_features: Tensor, text_features: Tensor) -> Tensor:
    """CLIP's logits, exp(logit_scale) * cos, in float32: [N, D], [C, D] -> [N, C]."""
    text_features = F.normalize(text_features.float(), dim=-1)
    return backbone.logit_scale.exp().float() * F.normalize(image_features, dim=-1) @ text_features.T
