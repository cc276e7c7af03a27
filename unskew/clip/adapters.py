"""Parameter-efficient tuning: small modules inside a copy of a frozen image tower, or behind it.

Adapters that change single blocks (adaptformer, lora, vpt) require open_clip's own ``VisionTransformer``. The others
work on every image tower of open_clip.
"""

import copy
import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from unskew.clip.dropout import dropout

if TYPE_CHECKING:
    from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

IN_BLOCKS = ("adaptformer", "lora", "vpt")

IN_TOWER = (*IN_BLOCKS, "bitfit", "full")

BEHIND_TOWER = ("bottleneck", "none")  # these leave the tower unchanged

PROMPTS = 10  # tokens that "vpt" adds to a block


# --- names and widths --------------------------------------------------------------------------------


def is_transformer(visual: nn.Module) -> bool:
    """Return whether an image tower is open_clip's own vision transformer, and not a ResNet or a timm model."""
    return hasattr(getattr(visual, "transformer", None), "resblocks")


def check_adapter(name: str, visual: nn.Module) -> str:
    """Return ``name``, or the tower's default if empty: adaptformer for transformers, bottleneck for others.

    Raises:
        ValueError: the tower does not support the adapter; the message lists the supported ones.
    """
    transformer = is_transformer(visual)
    supported = (*(IN_TOWER if transformer else IN_TOWER[len(IN_BLOCKS) :]), *BEHIND_TOWER)
    name = name or ("adaptformer" if transformer else "bottleneck")
    if name not in supported:
        known = ", ".join(supported)
        raise ValueError(f"the image tower {type(visual).__name__} supports the adapters {known}; got '{name}'")
    return name


def default_width(classes: int, adapters: int) -> int:
    """Return max(1, 2^floor(log2(C / (2 * adapters)))), so that all adapters together are at most as large as the head.

    An adapter of width w on D channels has about 2wD weights, the head CD.
    """
    return max(1, 2 ** math.floor(math.log2(classes / (2 * adapters))))


def initialise_linear(layer: nn.Linear, generator: torch.Generator) -> nn.Linear:
    """Draw a layer's weights within PyTorch's default bounds from ``generator``; set the bias to zero."""
    with torch.no_grad():
        bound = 1 / math.sqrt(layer.in_features)
        layer.weight.uniform_(-bound, bound, generator=generator)
        if layer.bias is not None:
            layer.bias.zero_()
    return layer


# --- the modules -------------------------------------------------------------------------------------


class Adapter(nn.Module):
    """AdaptFormer's branch scale * up(ReLU(down(LayerNorm(x)))): [..., D] -> [..., D], zero at initialisation.

    Chen et al., NeurIPS 2022, arXiv 2205.13535, Eq. 3 and 4; the scale is learned and starts at 1.
    """

    def __init__(self, channels: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(channels)
        self.down = initialise_linear(nn.Linear(channels, width), generator)
        self.up = nn.Linear(width, channels)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the branch of ``x``."""
        return self.scale * self.up(F.relu(self.down(self.ln(x))))


class Bottleneck(nn.Module):
    """A residual adapter x + Adapter(x) on the tower's features: [B, D] -> [B, D]."""

    def __init__(self, channels: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.adapter = Adapter(channels, width, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Return the adapted features."""
        return x + self.adapter(x)


class _ParallelMLP(nn.Module):
    """A block's MLP with an adapter in parallel; both read the residual stream, the MLP through its LayerNorm."""

    def __init__(self, block: "ResidualAttentionBlock", adapter: Adapter) -> None:
        super().__init__()
        self.ln, self.mlp, self.ls, self.adapter = block.ln_2, block.mlp, block.ls_2, adapter

    def forward(self, x: Tensor) -> Tensor:
        return self.ls(self.mlp(self.ln(x))) + self.adapter(x)


class LowRank(nn.Module):
    """LoRA: W + scale * BA for parts of attention's packed weight [3D, D] (Hu et al., arXiv 2106.09685, Section 4.1).

    Args:
        channels: D.
        rank: rank of BA.
        generator: generator of the initial A; B is zero.
        parts: the parts of the weight that change: q, k and v.
        scale: factor of BA.
        dropout: rate of the dropout of the branch's input in training, for `branch`.
    """

    def __init__(
        self,
        channels: int,
        rank: int,
        generator: torch.Generator,
        parts: str = "qv",
        scale: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.parts, self.scale, self.dropout = parts, scale, dropout
        self.down = nn.ModuleList(initialise_linear(nn.Linear(channels, rank, bias=False), generator) for _ in parts)
        self.up = nn.ParameterList(torch.zeros(channels, rank) for _ in parts)

    @property
    def drops(self) -> bool:
        """True if `branch` draws random numbers."""
        return self.training and self.dropout > 0

    def forward(self, weight: Tensor) -> Tensor:
        """Return the changed weight [3D, D]."""
        changes = {
            part: self.scale * (up @ down.get_parameter("weight"))
            for part, up, down in zip(self.parts, self.up, self.down, strict=True)
        }
        unchanged = torch.zeros_like(weight[: weight.shape[1]])
        return weight + torch.cat([changes.get(part, unchanged) for part in "qkv"]).to(weight)

    def branch(self, x: Tensor, parts: str = "qkv") -> Tensor:
        """Return scale * BA dropout(x) of some parts, side by side: [..., D] -> [..., len(parts) * D]."""
        outputs = []
        for part in parts:
            place = self.parts.find(part)
            if place < 0:
                outputs.append(torch.zeros_like(x))
                continue
            rows = dropout(x, self.dropout) if self.drops else x
            down, up = self.down[place].get_parameter("weight").to(x.dtype), self.up[place].to(x.dtype)
            outputs.append(self.scale * F.linear(F.linear(rows, down), up))
        return torch.cat(outputs, -1)


class _Prompted(nn.Module):
    """Blocks with learned tokens [P, D] after the class token (visual prompt tuning, arXiv 2203.12119).

    Around each block it is visual prompt tuning's deep variant, around all of them the shallow one.
    """

    def __init__(self, blocks: nn.Module, prompts: Tensor) -> None:
        super().__init__()
        self.blocks, self.prompts = blocks, nn.Parameter(prompts)

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        prompts = self.prompts.to(x.dtype).expand(len(x), -1, -1)
        x = self.blocks(torch.cat([x[:, :1], prompts, x[:, 1:]], dim=1), *args, **kwargs)
        return torch.cat([x[:, :1], x[:, 1 + len(self.prompts) :]], dim=1)


# --- towers ------------------------------------------------------------------------------------------


def frozen_copy(visual: nn.Module) -> nn.Module:
    """Return a copy of an image tower in float32, frozen, in ``eval()`` and without its projection matrix.

    If the projection is a matrix (open_clip's vision transformers), the copy returns the feature before it. Otherwise
    it returns the same feature as ``visual``.
    """
    tower = copy.deepcopy(visual).float().requires_grad_(False).eval()
    if isinstance(getattr(tower, "proj", None), nn.Parameter):
        tower.register_parameter("proj", None)
    if hasattr(tower, "output_tokens"):  # CoCa's tower also returns its tokens
        setattr(tower, "output_tokens", False)  # noqa: B010 - not an attribute of every module
    return tower


def adapt(tower: nn.Module, name: str, width: int, generator: torch.Generator, deep: bool = True) -> nn.Module:
    """Insert an adapter into a `frozen_copy`; only the adapter's parameters require gradients.

    The output does not change at initialisation, except with vpt, whose tokens take part in attention from the start.

    Args:
        tower: the `frozen_copy`, which is changed in place.
        name: an adapter of `IN_TOWER`.
        width: width of adaptformer, rank of lora, or number of vpt's tokens; unused by bitfit and full.
        generator: generator of the initial weights.
        deep: vpt inserts new tokens in each block; otherwise tokens enter at the first block and stay to the last.

    Returns:
        ``tower`` itself.

    Raises:
        ValueError: the tower does not support the adapter.
    """
    check_adapter(name, tower)
    if name not in IN_BLOCKS:
        for key, parameter in tower.named_parameters():
            parameter.requires_grad_(name == "full" or key.split(".")[-1].endswith("bias"))
        return tower
    _adapt_blocks(tower, name, width, generator, deep)
    return tower


def _adapt_blocks(tower: "VisionTransformer", name: str, width: int, generator: torch.Generator, deep: bool) -> None:
    blocks = tower.transformer.resblocks
    channels = tower.class_embedding.shape[-1]
    if name == "adaptformer":
        for block in blocks:
            block.mlp = _ParallelMLP(block, Adapter(channels, width, generator))
            block.ln_2, block.ls_2 = nn.Identity(), nn.Identity()
    elif name == "lora":
        for block in blocks:
            low_rank = LowRank(channels, width, generator).to(block.attn.in_proj_weight.device)
            parametrize.register_parametrization(block.attn, "in_proj_weight", low_rank)  # calls it once
    else:
        # Xavier's bound for a patch's embedding, as published.
        bound = math.sqrt(6 / (tower.conv1.weight[0].numel() + channels))
        tokens = (torch.empty(width, channels).uniform_(-bound, bound, generator=generator) for _ in blocks)
        if deep:
            prompted = [_Prompted(*pair) for pair in zip(blocks, tokens, strict=True)]
        else:
            prompted = [_Prompted(_Chain(blocks), next(tokens))]
        tower.transformer.resblocks = nn.ModuleList(prompted)
    tower.to(tower.class_embedding.device)


class _Chain(nn.ModuleList):
    """Blocks applied one after another, each with open_clip's attention mask."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        for block in self:
            x = block(x, *args, **kwargs)
        return x
