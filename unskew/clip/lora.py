"""LoRA in the attention of both towers of a backbone, with dropout, beside the frozen weights."""

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from unskew.clip.adapters import LowRank, is_transformer

if TYPE_CHECKING:
    from unskew.clip.backbones import Backbone


class LoRAAttention(nn.Module):
    """A block's frozen self-attention with LoRA, whose input is dropped in training; it shares the frozen weights."""

    def __init__(self, attention: nn.MultiheadAttention, low_rank: LowRank) -> None:
        super().__init__()
        self.in_proj_weight, self.in_proj_bias = attention.in_proj_weight, attention.in_proj_bias
        self.out_proj, self.low_rank = attention.out_proj, low_rank
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        self.batch_first = attention.batch_first

    def project(self, x: Tensor, parts: str = "qkv") -> Tensor:
        """Return queries, keys and values of rows, or some of them: [..., D] -> [..., len(parts) * D]."""
        width = x.shape[-1]
        rows = slice("qkv".index(parts[0]) * width, ("qkv".index(parts[-1]) + 1) * width)
        bias = self.in_proj_bias[rows]
        if not self.low_rank.drops:
            return F.linear(x, self.low_rank(self.in_proj_weight)[rows], bias)
        return F.linear(x, self.in_proj_weight[rows], bias) + self.low_rank.branch(x, parts)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Return the attention of ``query`` to itself, as `nn.MultiheadAttention` without weights does."""
        x = query if self.batch_first else query.transpose(0, 1)  # [B, L, D]
        heads = self.project(x).unflatten(-1, (3, self.num_heads, self.head_dim))
        queries, keys, values = heads.permute(2, 0, 3, 1, 4)  # [B, H, L, d] each
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=attn_mask)
        output = self.out_proj(attended.transpose(1, 2).flatten(2))
        return output if self.batch_first else output.transpose(0, 1), None


def with_low_rank(backbone: "Backbone", build: Callable[[int], LowRank]) -> "tuple[Backbone, nn.ModuleList]":
    """Return a backbone with LoRA in all attention blocks of both towers, and the LoRA modules in order.

    The returned backbone shares the frozen weights with ``backbone``, which does not change. An image tower that is no
    vision transformer stays as it is.

    Args:
        backbone: a `Backbone`.
        build: returns the LoRA module of a block from its width D.

    Raises:
        ValueError: a tower whose attention is not `nn.MultiheadAttention`.
    """
    modules = nn.ModuleList()
    tuned, model = _twin(backbone), _twin(backbone.model)
    tuned._modules["model"] = model
    tuned.id = f"{backbone.id} with LoRA"  # its features are not those in the cache
    text = model
    if backbone.text is not backbone.model:
        text = model._modules["text"] = _twin(backbone.text)
    towers = [text]
    if is_transformer(backbone.visual):
        visual = model._modules["visual"] = _twin(backbone.visual)
        towers.append(visual)
    for tower in towers:
        transformer = getattr(tower, "transformer", None)
        blocks = list(getattr(transformer, "resblocks", ()))
        if not blocks or not all(isinstance(getattr(block, "attn", None), nn.MultiheadAttention) for block in blocks):
            raise ValueError(
                f"LoRA in both towers needs the attention blocks of CLIP, and {type(tower).__name__} of backbone "
                f"'{backbone.name}' has others: choose a backbone such as ViT-B/16"
            )
        adapted = []
        for block in map(_twin, blocks):
            low_rank = build(block.attn.embed_dim).to(block.attn.in_proj_weight.device)
            block._modules["attn"] = LoRAAttention(block.attn, low_rank)
            modules.append(low_rank)
            adapted.append(block)
        transformer = tower._modules["transformer"] = _twin(transformer)
        transformer._modules["resblocks"] = nn.ModuleList(adapted)
    return tuned.eval(), modules


def _twin(module: Any) -> Any:
    """Return a copy of a module that shares its weights and children, and whose children can be replaced."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin
