"""Exact and fast text encoder: it skips padding and encodes a beginning that classes share once.

A causal text tower reads from left to right. Tokens after a prompt's end token therefore cannot change its feature, and
a shared beginning has the same keys and values for all classes. The encoder encodes the prefix, which all classes
share, once and packs the rest of all classes. Attention runs in tiles that hold several classes side by side. Each
class attends to the prefix and to itself. A beginning that some classes of a tile share is encoded once, too.
"""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unskew.clip._packing import Layout, pack
from unskew.clip._weights import hash_tensors
from unskew.clip.backbones import Backbone
from unskew.clip.lora import LoRAAttention
from unskew.clip.prompts import Prompts, fill, fixed_prompts, tokenize
from unskew.utils.row_store import stored

if TYPE_CHECKING:
    from open_clip.transformer import ResidualAttentionBlock

# Part of the key of stored classifiers: increase it when texts are encoded with other results.
VERSION = 1

CHUNK = 1000  # classes encoded at a time without gradients

# Activations that the blocks may keep for the backward pass, half of a small GPU's 8 GiB. The backward pass recomputes
# the blocks beyond this limit, which costs at most one more forward pass.
ACTIVATION_BYTES = 4 << 30


def encode_prompts(backbone: Backbone, prompts: Prompts | Sequence[str]) -> Tensor:
    """Encode one prompt per class.

    Args:
        backbone: a `Backbone`; gradients may flow to its weights.
        prompts: `Prompts`, or C whole texts.

    Returns:
        Features [C, D], not normalised, in the backbone's precision.

    Raises:
        ValueError: a text longer than the tower's context.
    """
    if not backbone.causal:
        return encode_plain(backbone, prompts)
    return _encode_packed(backbone, prompts if isinstance(prompts, Prompts) else fixed_prompts(backbone, prompts))


def encode_plain(backbone: Backbone, prompts: Prompts | Sequence[str]) -> Tensor:
    """Encode as `encode_prompts` does, by open_clip's own forward pass on the whole padded context: the reference."""
    if not isinstance(prompts, Prompts):
        tokens = tokenize(backbone, prompts)
        return backbone.encode_tokens(_padded_ids(backbone, tokens))
    _check_length(backbone, prompts)
    filler = backbone.start_ids[0] if backbone.start_ids else 1 - min(backbone.end_id, 1)  # neither end nor padding
    prefix, classes = prompts.prefix, prompts.suffix.split(prompts.lengths)
    ids = _padded_ids(backbone, [[filler] * (len(prefix) + n - 1) + [backbone.end_id] for n in prompts.lengths])
    padding = backbone.token_embedding.weight[None, backbone.pad_id]  # [1, W]
    rows = [[prefix, suffix, padding.expand(ids.shape[1] - len(prefix) - len(suffix), -1)] for suffix in classes]
    embeddings = torch.stack([torch.cat(row) for row in rows])  # [C, L, W]
    # The tower finds end and padding in the ids; the hook replaces their embeddings.
    hook = backbone.token_embedding.register_forward_hook(lambda *_: embeddings)
    try:
        return backbone.encode_tokens(ids)
    finally:
        hook.remove()


def _check_length(backbone: Backbone, prompts: Prompts) -> None:
    if (longest := len(prompts.prefix) + max(prompts.lengths)) > backbone.context_length:
        raise ValueError(f"a prompt has {longest} tokens; backbone '{backbone.name}' takes {backbone.context_length}")


def _padded_ids(backbone: Backbone, tokens: list[list[int]]) -> Tensor:
    rows = [ids + [backbone.pad_id] * (backbone.context_length - len(ids)) for ids in tokens]
    return torch.tensor(rows, device=backbone.device)  # [C, L]


@torch.no_grad()
def zeroshot_classifier(backbone: Backbone, classnames: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Return the weights of CLIP's zero-shot classifier, an ensemble of prompts.

    The weights of a class are the normalised mean over templates of the normalised text features. Those of a frozen
    tower are cached on disk.

    Args:
        backbone: a `Backbone`.
        classnames: C names; underscores become spaces.
        templates: texts with ``{}`` for the class name.

    Returns:
        [C, D], float32, rows of norm one.

    Raises:
        ValueError: no names, no templates, or one text instead of a list; a template without ``{}``, or a prompt
            longer than the tower's context.

    Examples:
        >>> import unskew
        >>> backbone = unskew.load_backbone("micro")
        >>> unskew.zeroshot_classifier(backbone, ["red circle", "blue star"], ["a photo of a {}."]).shape
        torch.Size([2, 64])
    """
    for name, texts in (("classnames", classnames), ("templates", templates)):
        if isinstance(texts, str) or not len(texts) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{name} must be a list of one or more texts (got {texts!r:.80})")
    settings = _cache_settings(backbone, classnames, templates)
    if settings is None:
        return _ensemble(backbone, classnames, templates)
    rows = stored("text", settings, len(classnames), lambda: _ensemble(backbone, classnames, templates))
    return rows.to(backbone.device)


def _cache_settings(
    backbone: Backbone, classnames: Sequence[str], templates: Sequence[str]
) -> dict[str, object] | None:
    """Return all that decides the bits of an ensemble; ``None`` for a tower that is trained, hooked or patched.

    The weights in memory count, not the backbone's id alone: a caller may have changed them since they were loaded.
    """
    tower = {key: value for key, value in backbone.model.state_dict().items() if not key.startswith("visual.")}
    trained = any(weight.requires_grad for key, weight in backbone.model.named_parameters() if key in tower)
    hooked = any(
        module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module) for module in backbone.modules()
    )
    if trained or hooked or type(backbone) is not Backbone:
        return None
    device = backbone.device.type
    every_word = " ".join([*templates, *classnames])
    tokens = backbone.tokenizer(
        [every_word], len(every_word.encode(errors="surrogatepass")) + 16
    )  # one text: 5,000 take ten times longer
    return {
        "backbone": backbone.id,
        "modules": hashlib.sha256(repr(backbone.model).encode()).hexdigest(),
        "weights": hash_tensors(tower.values()),
        "tokens": hash_tensors([tokens]),
        "causal": backbone.causal,
        "dtype": str(backbone.dtype),
        "device": device,
        "autocast": str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else "",
        "classnames": list(classnames),
        "templates": list(templates),
        "chunk": CHUNK,
        "version": VERSION,
    }


def _ensemble(backbone: Backbone, classnames: Sequence[str], templates: Sequence[str]) -> Tensor:
    total = torch.zeros((), device=backbone.device)
    for template in templates:  # one at a time, because the texts of one template begin alike
        texts = fill(template, classnames)
        chunks = [encode_prompts(backbone, texts[i : i + CHUNK]) for i in range(0, len(texts), CHUNK)]
        total = total + F.normalize(torch.cat(chunks).float(), dim=-1)
    return F.normalize(total, dim=-1)


def cosine_logits(backbone: Backbone, image_features: Tensor, text_features: Tensor) -> Tensor:
    """Return CLIP's logits, exp(logit_scale) * cos, in float32: [N, D], [C, D] -> [N, C]."""
    text_features = F.normalize(text_features.float(), dim=-1)
    return backbone.logit_scale.exp().float() * F.normalize(image_features, dim=-1) @ text_features.T


def _encode_packed(backbone: Backbone, prompts: Prompts) -> Tensor:
    _check_length(backbone, prompts)
    count = len(prompts.prefix)
    layout = pack(count, tuple(prompts.lengths), prompts.prefix_ids, prompts.suffix.device, backbone.dtype)
    prefix = prompts.prefix.to(backbone.dtype) + backbone.positional_embedding[:count].to(backbone.dtype)
    suffix, projected = _suffix_rows(backbone, prompts, layout)
    x, first = torch.cat([prefix, suffix]), None if projected is None else (prefix, projected)
    *blocks, last = backbone.resblocks
    kept = ACTIVATION_BYTES // _activation_bytes(x, layout)  # number of blocks
    recomputed = len(blocks) + 1 - kept if torch.is_grad_enabled() else 0
    for i, block in enumerate(blocks):
        if i < recomputed:  # a frozen tower draws no random numbers, so there is no random state to preserve
            drops = isinstance(block.attn, LoRAAttention) and block.attn.low_rank.drops
            x = checkpoint(_block, block, x, layout, first, use_reentrant=False, preserve_rng_state=drops)
        else:
            x = _block(block, x, layout, first)
        first = None
    x = backbone.ln_final(_last_block(last, x, layout))
    projection = backbone.text_projection
    if projection is None:
        return x
    return projection(x) if isinstance(projection, nn.Module) else x @ projection  # [C, D]


def _suffix_rows(backbone: Backbone, prompts: Prompts, layout: Layout) -> tuple[Tensor, Tensor | None]:
    """Return the chosen rows of the suffix and the first block's projection of them.

    Both are constant from step to step if the tokens and the tower are fixed; then ``prompts.memory`` keeps them.

    Returns:
        The rows with their positions, [R - P, W], and their projection at the places of the tiles after the prefix,
        [n * T - P, 3 W]; ``None`` if the projection may change.
    """
    block: ResidualAttentionBlock = backbone.resblocks[0]
    suffix, count, memory = prompts.suffix, len(prompts.prefix), prompts.memory
    norm, attention = block.ln_1, block.attn
    weights = (*norm.parameters(), attention.in_proj_weight, attention.in_proj_bias)
    if isinstance(attention, LoRAAttention):
        weights += tuple(attention.low_rank.parameters())
    used = (suffix, layout.positions, backbone.positional_embedding, *weights)
    if memory is None or _may_change(norm, used):
        if memory:
            memory.clear()  # PyTorch does not count the writes of a fused optimiser
        return _positioned(backbone, suffix, layout), None
    device = suffix.device.type
    precision = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
    state = (precision, *(tensor._version for tensor in used))
    before, aliases, rows = memory.get("suffix", (None, (), None))
    # An alias keeps its storage when a tensor gets another one: `weight.data = ..`, `half()`.
    pairs = zip(used, aliases, strict=False)
    if before != state or not all(tensor is old and alias.is_set_to(old) for tensor, (old, alias) in pairs):
        with torch.no_grad():
            positioned = _positioned(backbone, suffix, layout)
            after = (layout.tile_rows[count:] - count).clamp(min=0)  # an arbitrary row at an empty place
            rows = positioned, _project(block, positioned).index_select(0, after)
            memory["suffix"] = state, [(tensor, tensor.detach()) for tensor in used], rows
    return rows


def _may_change(norm: nn.Module, used: Sequence[Tensor]) -> bool:
    """Return whether the tensors are trained, or their changes are not counted, as for tensors of inference mode."""
    hooked = norm._forward_hooks or norm._forward_pre_hooks
    return bool(hooked) or any(tensor.requires_grad or tensor.is_inference() for tensor in used)


def _positioned(backbone: Backbone, suffix: Tensor, layout: Layout) -> Tensor:
    rows = suffix if layout.chosen is None else suffix.index_select(0, layout.chosen)
    return rows.to(backbone.dtype) + backbone.positional_embedding[layout.positions[-len(rows) :]].to(backbone.dtype)


def _activation_bytes(x: Tensor, layout: Layout) -> int:
    """Estimate what a frozen block of QuickGELU keeps for the backward pass; GELU keeps up to a third less."""
    tiles, _, size, keys = layout.mask.shape
    # Per row: the inputs of both norms and twice the hidden layer. Per place: queries, keys, values and the output of
    # attention, and the keys and values again behind those of the prefix.
    return (10 * len(x) + tiles * (4 * size + 2 * keys)) * x.shape[1] * x.element_size()


def _project(block: "ResidualAttentionBlock", x: Tensor) -> Tensor:
    """Project rows to queries, keys and values: [r, W] -> [r, 3 W]."""
    return _projection(block, block.ln_1(x), "qkv")


def _projection(block: "ResidualAttentionBlock", rows: Tensor, parts: str) -> Tensor:
    """Project normalised rows to q, kv or qkv, side by side: [r, W] -> [r, len(parts) * W]."""
    attention, width = block.attn, rows.shape[1]
    if isinstance(attention, LoRAAttention):
        return attention.project(rows, parts)
    chosen = slice("qkv".index(parts[0]) * width, ("qkv".index(parts[-1]) + 1) * width)
    return F.linear(rows, attention.in_proj_weight[chosen], attention.in_proj_bias[chosen])


def _block(
    block: "ResidualAttentionBlock", x: Tensor, layout: Layout, first: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Apply a block to all rows [R, W].

    Args:
        block: a residual attention block of open_clip.
        x: the rows.
        layout: the layout of the rows.
        first: the prefix [P, W] and the projection of the other rows, if that is known.
    """
    attention = block.attn
    if first is None:
        qkv = _project(block, x)  # [R, 3 W]
        tiled = qkv.index_select(0, layout.tile_rows)
    else:
        prefix, projected = first
        qkv = _project(block, prefix)  # [P, 3 W]
        tiled = torch.cat([qkv, projected])  # the prefix has the first places
    tiles, _, size, keys = layout.mask.shape
    shape = (3, attention.num_heads, attention.head_dim)
    query, *tile_kv = tiled.view(tiles, size, *shape).unbind(2)  # [n, T, H, d] each
    _, *prefix_kv = qkv[: keys - size].view(1, -1, *shape).unbind(2)  # [1, P, H, d] each
    attended = _attend(query, prefix_kv, tile_kv, layout.mask)
    return _feed_forward(block, x, attended.index_select(0, layout.row_places))


def _last_block(block: "ResidualAttentionBlock", x: Tensor, layout: Layout) -> Tensor:
    """Apply the last block to the end tokens only: all rows [R, W] -> [C, W]."""
    attention, rows = block.attn, block.ln_1(x)
    query = _projection(block, rows.index_select(0, layout.ends), "q")  # [C, W]
    kv = _projection(block, rows, "kv")  # [R, 2 W]
    tiles, _, size, keys = layout.mask.shape
    shape = (attention.num_heads, attention.head_dim)
    tile_kv = kv.index_select(0, layout.tile_rows).view(tiles, size, 2, *shape).unbind(2)
    prefix_kv = kv[: keys - size].view(1, -1, 2, *shape).unbind(2)
    query = query.index_select(0, layout.tile_ends).view(tiles, -1, *shape)
    attended = _attend(query, prefix_kv, tile_kv, layout.end_mask)
    return _feed_forward(block, x.index_select(0, layout.ends), attended.index_select(0, layout.end_places))


def _attend(query: Tensor, prefix_kv: Sequence[Tensor], tile_kv: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Attend from places to the prefix and to their tile.

    Args:
        query: [n, Q, H, d].
        prefix_kv: keys and values of the prefix, [1, P, H, d] each.
        tile_kv: keys and values of the tiles, [n, T, H, d] each.
        mask: [n, 1, Q, P + T], 0 or minus infinity.

    Returns:
        [n * Q, H * d], by place.
    """
    pairs, tiles = zip(prefix_kv, tile_kv, strict=True), mask.shape[0]
    key, value = (torch.cat([first.expand(tiles, -1, -1, -1), rest], 1).transpose(1, 2) for first, rest in pairs)
    attended = F.scaled_dot_product_attention(query.transpose(1, 2), key, value, attn_mask=mask)  # [n, H, Q, d]
    return attended.transpose(1, 2).flatten(2).flatten(0, 1)


def _feed_forward(block: "ResidualAttentionBlock", x: Tensor, attended: Tensor) -> Tensor:
    """Apply the rest of the block after its attention: [r, W] -> [r, W]."""
    x = x + block.ls_1(block.attn.out_proj(attended))
    return x + block.ls_2(block.mlp(block.ln_2(x)))
