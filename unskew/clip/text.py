"""The only text encoder: prompts to features, exact, without encoding padding or a shared beginning twice.

A causal text tower reads from left to right, so what follows a prompt's end token cannot change its
feature, and a beginning that classes share has the same keys and values for all of them. What all share,
the prefix, is encoded once and the rest of all classes is packed; attention takes it in tiles that hold
several classes side by side, each class seeing the prefix and itself. In a tile a beginning that some of
its classes share is encoded once, too.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unskew.clip._packing import Layout, pack
from unskew.clip.prompts import Prompts, fill, fixed_prompts, tokenize

CHUNK = 1000  # classes encoded at a time where no gradient is needed

# What the blocks may keep for the backward pass, half of a small GPU's 8 GiB. Blocks beyond it are computed again
# instead, which costs at most one more forward pass.
ACTIVATION_BYTES = 4 << 30


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


def _encode_packed(backbone, prompts: Prompts) -> Tensor:
    _check_length(backbone, prompts)
    count = len(prompts.prefix)
    layout = pack(count, tuple(prompts.lengths), prompts.histories, prompts.own.device, backbone.dtype)
    prefix = prompts.prefix.to(backbone.dtype) + backbone.positional_embedding[:count].to(backbone.dtype)
    own, projected = _own(backbone, prompts, layout)
    x, first = torch.cat([prefix, own]), None if projected is None else (prefix, projected)
    *blocks, last = backbone.resblocks
    kept = ACTIVATION_BYTES // _activation_bytes(x, layout)  # so many blocks
    again = len(blocks) + 1 - kept if torch.is_grad_enabled() else 0
    for i, block in enumerate(blocks):
        if i < again:  # nothing in a frozen tower is random, so there is no random state to keep
            x = checkpoint(_block, block, x, layout, first, use_reentrant=False, preserve_rng_state=False)
        else:
            x = _block(block, x, layout, first)
        first = None
    x = backbone.ln_final(_last_block(last, x, layout))
    projection = backbone.text_projection
    if projection is None:
        return x
    return projection(x) if isinstance(projection, nn.Module) else x @ projection  # [C, D]


def _own(backbone, prompts: Prompts, layout: Layout) -> tuple[Tensor, Tensor | None]:
    """The rows that are taken from ``own``, and what the first block makes of them before any of them is looked at.

    Neither changes from step to step where the tokens and the tower are fixed; then ``prompts.memory`` keeps both.

    Returns:
        The rows with their positions, [R - P, W], and their projection at the places of the tiles that follow the
        prefix's, [n * T - P, 3 W]; ``None`` where it may change.
    """
    block, count, device = backbone.resblocks[0], len(prompts.prefix), prompts.own.device.type
    norm, attention, memory = block.ln_1, block.attn, prompts.memory
    weights = (*norm.parameters(), attention.in_proj_weight, attention.in_proj_bias)
    used = (prompts.own, layout.places, backbone.positional_embedding, *weights)
    if memory is None or _may_change(norm, used):
        if memory:
            memory.clear()  # what a fused optimiser writes is not counted
        return _placed(backbone, prompts.own, layout), None
    precision = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
    state = (precision, *(tensor._version for tensor in used))
    before, aliases, rows = memory.get("own", (None, (), None))
    # An alias stays where it was when a tensor is given other memory: `weight.data = ..`, `half()`.
    pairs = zip(used, aliases, strict=False)
    if before != state or not all(tensor is old and alias.is_set_to(old) for tensor, (old, alias) in pairs):
        with torch.no_grad():
            own = _placed(backbone, prompts.own, layout)
            after = (layout.tiled[count:] - count).clamp(min=0)  # any row where there is none
            rows = own, _projected(block, own).index_select(0, after)
            memory["own"] = state, [(tensor, tensor.detach()) for tensor in used], rows
    return rows


def _may_change(norm: nn.Module, used: Sequence[Tensor]) -> bool:
    """Whether it is trained, or nothing would say that it has changed: writes in the inference mode are not counted."""
    hooked = norm._forward_hooks or norm._forward_pre_hooks
    return bool(hooked) or any(tensor.requires_grad or tensor.is_inference() for tensor in used)


def _placed(backbone, own: Tensor, layout: Layout) -> Tensor:
    rows = own if layout.taken is None else own.index_select(0, layout.taken)
    return rows.to(backbone.dtype) + backbone.positional_embedding[layout.places[-len(rows) :]].to(backbone.dtype)


def _activation_bytes(x: Tensor, layout: Layout) -> int:
    """What a frozen block of QuickGELU keeps for the backward pass; one of GELU keeps up to a third less."""
    tiles, _, size, keys = layout.seen.shape
    # By row the inputs of both norms and twice the hidden layer; by place queries, keys, values and what was seen,
    # the keys and values once more beside those of the prefix.
    return (10 * len(x) + tiles * (4 * size + 2 * keys)) * x.shape[1] * x.element_size()


def _projected(block: nn.Module, x: Tensor) -> Tensor:
    """Queries, keys and values, [r, 3 W]."""
    return F.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias)


def _block(block: nn.Module, x: Tensor, layout: Layout, first: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """All rows -> all rows, [R, W]; ``first`` is the prefix [P, W] where the projection of the others is known."""
    attention = block.attn
    if first is None:
        qkv = _projected(block, x)  # [R, 3 W]
        tiled = qkv.index_select(0, layout.tiled)
    else:
        prefix, rest = first
        qkv = _projected(block, prefix)  # [P, 3 W]
        tiled = torch.cat([qkv, rest])  # the prefix has the first places
    tiles, _, size, keys = layout.seen.shape
    shape = (3, attention.num_heads, attention.head_dim)
    query, *own = tiled.view(tiles, size, *shape).unbind(2)  # [n, T, H, d] each
    _, *shared = qkv[: keys - size].view(1, -1, *shape).unbind(2)  # [1, P, H, d] each
    seen = _attend(query, shared, own, layout.seen)
    return _feed_forward(block, x, seen.index_select(0, layout.packed))


def _last_block(block: nn.Module, x: Tensor, layout: Layout) -> Tensor:
    """All rows [R, W] -> those of the end tokens, [C, W]: no others are read after the last block."""
    attention, rows, width = block.attn, block.ln_1(x), x.shape[1]
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    query = F.linear(rows.index_select(0, layout.ends), weight[:width], bias[:width])  # [C, W]
    kv = F.linear(rows, weight[width:], bias[width:])  # [R, 2 W]
    tiles, _, size, keys = layout.seen.shape
    shape = (attention.num_heads, attention.head_dim)
    own = kv.index_select(0, layout.tiled).view(tiles, size, 2, *shape).unbind(2)
    shared = kv[: keys - size].view(1, -1, 2, *shape).unbind(2)
    query = query.index_select(0, layout.end_tiled).view(tiles, -1, *shape)
    seen = _attend(query, shared, own, layout.end_seen)
    return _feed_forward(block, x.index_select(0, layout.ends), seen.index_select(0, layout.end_packed))


def _attend(query: Tensor, shared: Sequence[Tensor], own: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Attention of places to the prefix and to their tile.

    Args:
        query: [n, Q, H, d].
        shared, own: keys and values, [1, P, H, d] each of the prefix and [n, T, H, d] each of the tiles.
        mask: [n, 1, Q, P + T], 0 where a place is looked at and minus infinity elsewhere.

    Returns:
        [n * Q, H * d], by place.
    """
    pairs, tiles = zip(shared, own, strict=True), mask.shape[0]
    key, value = (torch.cat([first.expand(tiles, -1, -1, -1), rest], 1).transpose(1, 2) for first, rest in pairs)
    seen = F.scaled_dot_product_attention(query.transpose(1, 2), key, value, attn_mask=mask)  # [n, H, Q, d]
    return seen.transpose(1, 2).flatten(2).flatten(0, 1)


def _feed_forward(block: nn.Module, x: Tensor, seen: Tensor) -> Tensor:
    """The block after its attention: rows [r, W] and what they saw -> [r, W]."""
    x = x + block.ls_1(block.attn.out_proj(seen))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def cosine_logits(backbone, image_features: Tensor, text_features: Tensor) -> Tensor:
    """CLIP's logits, exp(logit_scale) * cos, in float32: [N, D], [C, D] -> [N, C]."""
    text_features = F.normalize(text_features.float(), dim=-1)
    return backbone.logit_scale.exp().float() * F.normalize(image_features, dim=-1) @ text_features.T
