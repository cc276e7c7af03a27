"""Settings and layers of EfficientNet (arXiv 1905.11946).

Convolutions pad as in TensorFlow ("same"): the output has ceil(size / stride) pixels, and an odd pixel of padding is at
the right and at the bottom.
"""

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "BlockArgs",
    "BlockDecoder",
    "Conv2dDynamicSamePadding",
    "Conv2dStaticSamePadding",
    "GlobalParams",
    "Identity",
    "MemoryEfficientSwish",
    "Swish",
    "SwishImplementation",
    "calculate_output_image_size",
    "drop_connect",
    "efficientnet",
    "efficientnet_params",
    "get_model_params",
    "get_same_padding_conv2d",
    "get_width_and_height_from_size",
    "round_filters",
    "round_repeats",
]

# --- settings ----------------------------------------------------------------------------------------


class GlobalParams(NamedTuple):
    """Settings of the whole network."""

    batch_norm_momentum: float | None = None
    batch_norm_epsilon: float | None = None
    dropout_rate: float | None = None
    num_classes: int | None = None
    width_coefficient: float | None = None
    depth_coefficient: float | None = None
    depth_divisor: int | None = None
    min_depth: int | None = None
    drop_connect_rate: float | None = None
    image_size: int | None = None


class BlockArgs(NamedTuple):
    """Settings of a stage of blocks."""

    kernel_size: int | None = None
    num_repeat: int | None = None
    input_filters: int | None = None
    output_filters: int | None = None
    expand_ratio: int | None = None
    id_skip: bool | None = None
    stride: Any = None
    se_ratio: float | None = None


class BlockDecoder:
    """Block settings as strings: "r2_k3_s22_e6_i16_o24_se0.25" repeats twice a 3x3 convolution of stride 2."""

    @staticmethod
    def decode(string_list: Sequence[str]) -> list[BlockArgs]:
        """Return the settings of strings."""
        stages = []
        for text in string_list:
            fields: dict[str, str] = dict(re.findall(r"([a-z]+)([0-9][0-9.]*)", text))
            stages.append(
                BlockArgs(
                    kernel_size=int(fields["k"]),
                    num_repeat=int(fields["r"]),
                    input_filters=int(fields["i"]),
                    output_filters=int(fields["o"]),
                    expand_ratio=int(fields["e"]),
                    id_skip="noskip" not in text,
                    stride=[int(fields["s"][0])],
                    se_ratio=float(fields["se"]) if "se" in fields else None,
                )
            )
        return stages

    @staticmethod
    def encode(blocks_args: Sequence[BlockArgs]) -> list[str]:
        """Return the strings of settings."""
        return [
            f"r{block.num_repeat}_k{block.kernel_size}_s{block.stride[0]}{block.stride[0]}_e{block.expand_ratio}"
            f"_i{block.input_filters}_o{block.output_filters}"
            + (f"_se{block.se_ratio}" if block.se_ratio else "")
            + ("" if block.id_skip else "_noskip")
            for block in blocks_args
        ]


# Stages 2 to 8 of EfficientNet-B0 (table 1).
_STAGES = (
    "r1_k3_s11_e1_i32_o16_se0.25 r2_k3_s22_e6_i16_o24_se0.25 r2_k5_s22_e6_i24_o40_se0.25 r3_k3_s22_e6_i40_o80_se0.25 "
    "r3_k5_s11_e6_i80_o112_se0.25 r4_k5_s22_e6_i112_o192_se0.25 r1_k3_s11_e6_i192_o320_se0.25"
).split()

# Width, depth, image size and dropout.
_SCALES: dict[str, tuple[float, float, int, float]] = {
    "b0": (1.0, 1.0, 224, 0.2),
    "b1": (1.0, 1.1, 240, 0.2),
    "b2": (1.1, 1.2, 260, 0.3),
    "b3": (1.2, 1.4, 300, 0.3),
    "b4": (1.4, 1.8, 380, 0.4),
    "b5": (1.6, 2.2, 456, 0.4),
    "b6": (1.8, 2.6, 528, 0.5),
    "b7": (2.0, 3.1, 600, 0.5),
    "b8": (2.2, 3.6, 672, 0.5),
    "l2": (4.3, 5.3, 800, 0.5),
}


def efficientnet_params(model_name: str) -> tuple[float, float, int, float]:
    """Return width, depth, image size and dropout of a model such as "efficientnet-b0".

    Raises:
        ValueError: the name is unknown.
    """
    scales = {f"efficientnet-{name}": scale for name, scale in _SCALES.items()}
    if model_name not in scales:
        raise ValueError(f"unknown EfficientNet '{model_name}'; choose one of {', '.join(scales)}")
    return scales[model_name]


def efficientnet(
    width_coefficient: float | None = None,
    depth_coefficient: float | None = None,
    dropout_rate: float = 0.2,
    drop_connect_rate: float = 0.2,
    image_size: int | None = None,
    num_classes: int = 1000,
) -> tuple[list[BlockArgs], GlobalParams]:
    """Return the settings of the stages and of the network."""
    return BlockDecoder.decode(_STAGES), GlobalParams(
        batch_norm_momentum=0.99,
        batch_norm_epsilon=1e-3,
        dropout_rate=dropout_rate,
        drop_connect_rate=drop_connect_rate,
        num_classes=num_classes,
        width_coefficient=width_coefficient,
        depth_coefficient=depth_coefficient,
        depth_divisor=8,
        image_size=image_size,
    )


def get_model_params(
    model_name: str, override_params: dict[str, Any] | None = None
) -> tuple[list[BlockArgs], GlobalParams]:
    """Return the settings of a model such as "efficientnet-b0"."""
    width, depth, size, dropout = efficientnet_params(model_name)
    stages, settings = efficientnet(width, depth, dropout, image_size=size)
    return stages, settings._replace(**(override_params or {}))


def round_filters(filters: int, global_params: GlobalParams) -> int:
    """Return a scaled width, rounded to a multiple of ``depth_divisor`` that is at least 90 % of it."""
    divisor = global_params.depth_divisor or 1
    if not global_params.width_coefficient:
        return filters
    scaled = filters * global_params.width_coefficient
    rounded = max(global_params.min_depth or divisor, int(scaled + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * scaled else rounded


def round_repeats(repeats: int, global_params: GlobalParams) -> int:
    """Return a scaled number of blocks, rounded up."""
    scale = global_params.depth_coefficient
    return math.ceil(scale * repeats) if scale else repeats


# --- layers ------------------------------------------------------------------------------------------


class SwishImplementation(torch.autograd.Function):
    """``x * sigmoid(x)``, of which only ``x`` is kept for the gradient."""

    @staticmethod
    def forward(ctx: Any, i: Tensor) -> Tensor:
        """Return ``i * sigmoid(i)``."""
        ctx.save_for_backward(i)
        return i * torch.sigmoid(i)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        """Return the gradient: ``s (1 + x (1 - s))`` for s = sigmoid(x)."""
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return grad_output * (s * (1 + x * (1 - s)))


class MemoryEfficientSwish(nn.Module):
    """Swish (arXiv 1710.05941), of which only the input is kept for the gradient."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x * sigmoid(x)``."""
        return SwishImplementation.apply(x)


class Swish(nn.Module):
    """Swish (arXiv 1710.05941)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x * sigmoid(x)``."""
        return x * torch.sigmoid(x)


class Identity(nn.Identity):
    """The identity."""


def drop_connect(inputs: Tensor, p: float, training: bool) -> Tensor:
    """Set each item of a batch to 0 with probability ``p`` and divide by ``1 - p`` (stochastic depth, 1603.09382)."""
    if not training:
        return inputs
    kept = 1 - p
    mask = torch.floor(kept + torch.rand([len(inputs), 1, 1, 1], dtype=inputs.dtype, device=inputs.device))
    return inputs / kept * mask


def get_width_and_height_from_size(x: int | Sequence[int]) -> Sequence[int]:
    """Return (size, size) of an int; a pair stays as it is."""
    return (x, x) if isinstance(x, int) else x


def calculate_output_image_size(
    input_image_size: int | Sequence[int] | None, stride: int | Sequence[int]
) -> list[int] | None:
    """Return the size of a convolution's output, or ``None`` for an unknown input."""
    if input_image_size is None:
        return None
    step = stride if isinstance(stride, int) else stride[0]
    return [math.ceil(side / step) for side in get_width_and_height_from_size(input_image_size)]


class _SamePadding(nn.Conv2d):
    def _padding_of(self, size: Sequence[int]) -> list[int]:
        """Return the padding (left, right, top, bottom) for inputs of a height and width."""
        padding: list[int] = []
        for side, kernel, stride, dilation in zip(size, self.kernel_size, self.stride, self.dilation, strict=True):
            total = max((math.ceil(side / stride) - 1) * stride + (kernel - 1) * dilation + 1 - side, 0)
            padding = [total // 2, total - total // 2, *padding]
        return padding


class Conv2dDynamicSamePadding(_SamePadding):
    """A convolution that pads each input by its size."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int | Sequence[int] = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        step = stride if isinstance(stride, int) else stride[0]
        super().__init__(in_channels, out_channels, kernel_size, step, 0, dilation, groups, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, ``out_channels``, ceil(H / stride), ceil(W / stride)]."""
        return super().forward(F.pad(x, self._padding_of(x.shape[-2:])))


class Conv2dStaticSamePadding(_SamePadding):
    """A convolution that pads every input as one of ``image_size``."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        image_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        **kwargs,
    ) -> None:
        step = stride if isinstance(stride, int) else stride[0]
        super().__init__(in_channels, out_channels, kernel_size, stride=step, **kwargs)
        padding = self._padding_of(get_width_and_height_from_size(image_size))
        self.static_padding: nn.Module = nn.ZeroPad2d(tuple(padding)) if any(padding) else Identity()  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, ``out_channels``, H / stride, W / stride]."""
        return super().forward(self.static_padding(x))


def get_same_padding_conv2d(image_size: int | Sequence[int] | None = None) -> Callable[..., nn.Conv2d]:
    """Return the class of a convolution that pads by ``image_size``, or without one by each input."""
    if image_size is None:
        return Conv2dDynamicSamePadding
    return partial(Conv2dStaticSamePadding, image_size=image_size)
