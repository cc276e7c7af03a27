"""Parameter-efficient tuning: small modules inside a copy of a frozen image tower, or behind it.

`adapted_tower` takes any image tower of open_clip. What changes single blocks (adaptformer, lora, vpt) needs
open_clip's own ``VisionTransformer``; biases, the whole tower, and what follows it do not.
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

IN_BLOCKS = ("adaptformer", "lora", "vpt")

IN_TOWER = (*IN_BLOCKS, "bitfit", "full")

BEHIND_TOWER = ("bottleneck", "none")  # these leave the tower as it is

PROMPTS = 10  # tokens that "vpt" adds to a block


# --- which, and how wide -----------------------------------------------------------------------------


def is_transformer(visual: nn.Module) -> bool:
    """Whether an image tower is open_clip's own vision transformer, rather than a ResNet or one of timm's."""
    return hasattr(getattr(visual, "transformer", None), "resblocks")


def check_adapter(name: str, visual: nn.Module) -> str:
    """``name``, or the tower's default where it is empty: adaptformer in transformers, bottleneck behind others.

    Raises:
        ValueError: the tower does not take it; those that it takes are listed.
    """
    transformer = is_transformer(visual)
    taken = (*(IN_TOWER if transformer else IN_TOWER[len(IN_BLOCKS) :]), *BEHIND_TOWER)
    name = name or ("adaptformer" if transformer else "bottleneck")
    if name not in taken:
        raise ValueError(f"the image tower {type(visual).__name__} takes the adapters {', '.join(taken)}; got '{name}'")
    return name


def default_width(classes: int, adapters: int) -> int:
    """max(1, 2^floor(log2(C / (2 * adapters)))): all adapters together are at most as large as the head.

    An adapter of width w on D channels has about 2wD weights, the head CD.
    """
    return max(1, 2 ** math.floor(math.log2(classes / (2 * adapters))))


def _draw(layer: nn.Linear, generator: torch.Generator) -> nn.Linear:
    """PyTorch's own bounds for a linear layer's weights, drawn from ``generator``; no bias."""
    with torch.no_grad():
        bound = 1 / math.sqrt(layer.in_features)
        layer.weight.uniform_(-bound, bound, generator=generator)
        if layer.bias is not None:
            layer.bias.zero_()
    return layer


# --- the modules -------------------------------------------------------------------------------------


class Adapter(nn.Module):
    """scale * up(ReLU(down(LayerNorm(x)))): [..., D] -> [..., D], zero at initialisation.

    AdaptFormer's branch (Chen et al., NeurIPS 2022, arXiv 2205.13535, Eq. 3 and 4), its scale learned from 1.
    """

    def __init__(self, channels: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(channels)
        self.down = _draw(nn.Linear(channels, width), generator)
        self.up = nn.Linear(width, channels)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.up(F.relu(self.down(self.ln(x))))


class Bottleneck(nn.Module):
    """x + Adapter(x), on the feature behind the tower: [B, D] -> [B, D]."""

    def __init__(self, channels: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.adapter = Adapter(channels, width, generator)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.adapter(x)


class _ParallelMLP(nn.Module):
    """A block's MLP with an adapter beside it; both read the residual stream, the MLP through its own LayerNorm."""

    def __init__(self, block: nn.Module, adapter: Adapter) -> None:
        super().__init__()
        self.ln, self.mlp, self.ls, self.adapter = block.ln_2, block.mlp, block.ls_2, adapter

    def forward(self, x: Tensor) -> Tensor:
        return self.ls(self.mlp(self.ln(x))) + self.adapter(x)


class _LowRank(nn.Module):
    """W + BA for the queries and the values in attention's packed weight [3D, D] (Hu et al., arXiv 2106.09685)."""

    def __init__(self, channels: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.down = nn.ModuleList(_draw(nn.Linear(channels, rank, bias=False), generator) for _ in "qv")
        self.up = nn.ParameterList(torch.zeros(channels, rank) for _ in "qv")

    def forward(self, weight: Tensor) -> Tensor:
        query, value = (up @ down.weight for up, down in zip(self.up, self.down, strict=True))
        return weight + torch.cat([query, torch.zeros_like(query), value])


class _Prompted(nn.Module):
    """Blocks that see learned tokens [P, D] after the class token; nothing behind them does (arXiv 2203.12119).

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
    """A copy of an image tower in float32, without gradients, in ``eval()`` and without its projection matrix.

    It gives the feature before the projection where that is a matrix (open_clip's vision transformers), else the
    same feature as ``visual``.
    """
    tower = copy.deepcopy(visual).float().requires_grad_(False).eval()
    if isinstance(getattr(tower, "proj", None), nn.Parameter):
        tower.proj = None
    if hasattr(tower, "output_tokens"):  # CoCa's gives its tokens too
        tower.output_tokens = False
    return tower


def adapt(tower: nn.Module, name: str, width: int, generator: torch.Generator, deep: bool = True) -> nn.Module:
    """Put the adapter ``name`` of `IN_TOWER` into a `frozen_copy`; only its parameters require gradients.

    But for vpt, whose tokens take attention from the first step on, the output stays what it is.

    Args:
        width: of adaptformer; the rank of lora; the number of vpt's tokens. The other two have none.
        deep: vpt's tokens are new in each block; else they enter the first and stay up to the last.

    Returns:
        ``tower`` itself.

    Raises:
        ValueError: the tower does not take the adapter.
    """
    check_adapter(name, tower)
    if name in ("bitfit", "full"):
        for key, parameter in tower.named_parameters():
            parameter.requires_grad_(name == "full" or key.split(".")[-1].endswith("bias"))
        return tower
    blocks = tower.transformer.resblocks
    channels = tower.class_embedding.shape[-1]
    if name == "adaptformer":
        for block in blocks:
            block.mlp = _ParallelMLP(block, Adapter(channels, width, generator))
            block.ln_2, block.ls_2 = nn.Identity(), nn.Identity()
    elif name == "lora":
        for block in blocks:
            low_rank = _LowRank(channels, width, generator).to(block.attn.in_proj_weight.device)
            parametrize.register_parametrization(block.attn, "in_proj_weight", low_rank)  # tries it at once
    else:
        # Xavier's bound for a patch's embedding, as published.
        bound = math.sqrt(6 / (tower.conv1.weight[0].numel() + channels))
        drawn = (torch.empty(width, channels).uniform_(-bound, bound, generator=generator) for _ in blocks)
        if deep:
            prompted = [_Prompted(*pair) for pair in zip(blocks, drawn, strict=True)]
        else:
            prompted = [_Prompted(_InTurn(*blocks), next(drawn))]
        tower.transformer.resblocks = nn.ModuleList(prompted)
    return tower.to(tower.class_embedding.device)


class _InTurn(nn.Sequential):
    """Blocks one after another, each with the mask that open_clip hands them."""

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        for block in self:
            x = block(x, *args, **kwargs)
        return x
