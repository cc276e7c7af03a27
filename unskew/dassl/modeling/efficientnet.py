"""EfficientNet (arXiv 1905.11946) with the layer names of EfficientNet-PyTorch's pretrained weights."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unskew.dassl.modeling import weights
from unskew.dassl.modeling.efficientnet_parts import (
    MemoryEfficientSwish,
    Swish,
    calculate_output_image_size,
    drop_connect,
    efficientnet_params,
    get_model_params,
    get_same_padding_conv2d,
    round_filters,
    round_repeats,
)
from unskew.dassl.modeling.registries import BACKBONE_REGISTRY, Backbone

__version__ = "0.6.4"  # of EfficientNet-PyTorch

# --- the network -------------------------------------------------------------------------------------


class MBConvBlock(nn.Module):
    """An inverted residual block with squeeze and excitation.

    Args:
        block_args: settings of the block.
        global_params: settings of the network.
        image_size: size of the input, for static padding.
    """

    def __init__(self, block_args: Any, global_params: Any, image_size: Any = None) -> None:
        super().__init__()
        self._block_args = block_args
        self.id_skip, self.has_se = block_args.id_skip, 0 < (block_args.se_ratio or 0) <= 1
        norm = partial(
            nn.BatchNorm2d, momentum=1 - global_params.batch_norm_momentum, eps=global_params.batch_norm_epsilon
        )
        conv = get_same_padding_conv2d(image_size)
        before, after = block_args.input_filters, block_args.output_filters
        wide = before * block_args.expand_ratio
        if block_args.expand_ratio != 1:
            self._expand_conv = conv(before, wide, kernel_size=1, bias=False)
            self._bn0 = norm(wide)
        kernel, stride = block_args.kernel_size, block_args.stride
        self._depthwise_conv = conv(wide, wide, kernel_size=kernel, stride=stride, groups=wide, bias=False)
        self._bn1 = norm(wide)
        if self.has_se:
            squeeze, narrow = get_same_padding_conv2d((1, 1)), max(1, int(before * block_args.se_ratio))
            self._se_reduce = squeeze(wide, narrow, kernel_size=1)
            self._se_expand = squeeze(narrow, wide, kernel_size=1)
        conv = get_same_padding_conv2d(calculate_output_image_size(image_size, stride))
        self._project_conv = conv(wide, after, kernel_size=1, bias=False)
        self._bn2 = norm(after)
        self._swish: nn.Module = MemoryEfficientSwish()

    def forward(self, inputs: Tensor, drop_connect_rate: float | None = None) -> Tensor:
        """Return features [B, ``output_filters``, H / stride, W / stride]."""
        x, args = inputs, self._block_args
        if args.expand_ratio != 1:
            x = self._swish(self._bn0(self._expand_conv(x)))
        x = self._swish(self._bn1(self._depthwise_conv(x)))
        if self.has_se:
            x = torch.sigmoid(self._se_expand(self._swish(self._se_reduce(F.adaptive_avg_pool2d(x, 1))))) * x
        x = self._bn2(self._project_conv(x))
        stride = args.stride if isinstance(args.stride, int) else args.stride[0]
        if self.id_skip and stride == 1 and args.input_filters == args.output_filters:
            x = drop_connect(x, drop_connect_rate, self.training) if drop_connect_rate else x
            x = x + inputs
        return x

    def set_swish(self, memory_efficient: bool = True) -> None:
        """Use `MemoryEfficientSwish` or `Swish`."""
        self._swish = MemoryEfficientSwish() if memory_efficient else Swish()


class EfficientNet(Backbone):
    """Images [B, 3, H, W] -> features [B, D].

    Args:
        blocks_args: settings of the stages.
        global_params: settings of the network.
    """

    def __init__(self, blocks_args: Any = None, global_params: Any = None) -> None:
        super().__init__()
        if not blocks_args or global_params is None:
            raise ValueError("an EfficientNet needs blocks_args and global_params: use EfficientNet.from_name")
        self._global_params, self._blocks_args = global_params, blocks_args
        norm = partial(
            nn.BatchNorm2d, momentum=1 - global_params.batch_norm_momentum, eps=global_params.batch_norm_epsilon
        )
        size = global_params.image_size
        width = round_filters(32, global_params)
        self._conv_stem = get_same_padding_conv2d(size)(3, width, kernel_size=3, stride=2, bias=False)
        self._bn0 = norm(width)
        size = calculate_output_image_size(size, 2)
        self._blocks = nn.ModuleList()
        for args in blocks_args:
            block = args._replace(
                input_filters=round_filters(args.input_filters, global_params),
                output_filters=round_filters(args.output_filters, global_params),
                num_repeat=round_repeats(args.num_repeat, global_params),
            )
            for number in range(block.num_repeat):
                repeated = block._replace(input_filters=block.output_filters, stride=1) if number else block
                self._blocks.append(MBConvBlock(repeated, global_params, image_size=size))
                size = size if number else calculate_output_image_size(size, block.stride)
            width = block.output_filters
        self._out_features = round_filters(1280, global_params)
        self._conv_head = get_same_padding_conv2d(size)(width, self._out_features, kernel_size=1, bias=False)
        self._bn1 = norm(self._out_features)
        self._avg_pooling = nn.AdaptiveAvgPool2d(1)
        self._dropout = nn.Dropout(global_params.dropout_rate)
        self._swish: nn.Module = MemoryEfficientSwish()

    def set_swish(self, memory_efficient: bool = True) -> None:
        """Use `MemoryEfficientSwish` or `Swish` in all layers."""
        self._swish = MemoryEfficientSwish() if memory_efficient else Swish()
        for module in self._blocks.modules():
            if isinstance(module, MBConvBlock):
                module.set_swish(memory_efficient)

    def extract_features(self, inputs: Tensor) -> Tensor:
        """Return the features of the last convolution [B, D, H / 32, W / 32]."""
        x = self._swish(self._bn0(self._conv_stem(inputs)))
        rate = self._global_params.drop_connect_rate or 0.0
        for number, block in enumerate(self._blocks):
            x = block(x, drop_connect_rate=rate * number / len(self._blocks))
        return self._swish(self._bn1(self._conv_head(x)))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return features [B, D]."""
        return self._dropout(torch.flatten(self._avg_pooling(self.extract_features(inputs)), 1))

    @classmethod
    def from_name(cls, model_name: str, override_params: dict[str, Any] | None = None) -> "EfficientNet":
        """Build a model such as "efficientnet-b0" with random weights."""
        return cls(*get_model_params(model_name, override_params))

    @classmethod
    def from_pretrained(
        cls, model_name: str, advprop: bool = False, num_classes: int = 1000, in_channels: int = 3
    ) -> "EfficientNet":
        """Build a model such as "efficientnet-b0" with pretrained weights."""
        model = cls.from_name(model_name, {"num_classes": num_classes})
        load_pretrained_weights(model, model_name, advprop=advprop)
        if in_channels != 3:
            conv = get_same_padding_conv2d(model._global_params.image_size)
            width = round_filters(32, model._global_params)
            model._conv_stem = conv(in_channels, width, kernel_size=3, stride=2, bias=False)
        return model

    @classmethod
    def get_image_size(cls, model_name: str) -> int:
        """Return the size of images of a model such as "efficientnet-b0"."""
        return efficientnet_params(model_name)[2]


# --- pretrained weights ------------------------------------------------------------------------------

_RELEASE = "https://github.com/lukemelas/EfficientNet-PyTorch/releases/download/1.0"
_HASHES = "355c32eb f1951068 8bb594d6 5fb5a3c3 6ed6700e b6417697 c76e70fd dcc49843"
_ADV_HASHES = "b64d5a18 0f3ce85a 6e9d97e5 cdd7c0f4 44fb3a87 86493f6b ac80338e 4652b6dd 22a8fe65"

url_map = {f"efficientnet-b{n}": f"{_RELEASE}/efficientnet-b{n}-{text}.pth" for n, text in enumerate(_HASHES.split())}
url_map_advprop = {
    f"efficientnet-b{n}": f"{_RELEASE}/adv-efficientnet-b{n}-{text}.pth" for n, text in enumerate(_ADV_HASHES.split())
}


def load_pretrained_weights(model: nn.Module, model_name: str, load_fc: bool = True, advprop: bool = False) -> None:
    """Download the weights of a model such as "efficientnet-b0" once and load them; ``load_fc`` has no effect."""
    weights.init_pretrained_weights(model, (url_map_advprop if advprop else url_map)[model_name])


def build_efficientnet(name: str, pretrained: bool) -> EfficientNet:
    """Build "b0" to "b8"."""
    if pretrained:
        return EfficientNet.from_pretrained(f"efficientnet-{name}")
    return EfficientNet.from_name(f"efficientnet-{name}")


def _register(name: str) -> None:
    def build(pretrained: bool = True, **kwargs) -> EfficientNet:
        return build_efficientnet(name, pretrained)

    build.__name__ = build.__qualname__ = f"efficientnet_{name}"
    build.__doc__ = f"Build EfficientNet-{name.upper()}."
    globals()[build.__name__] = BACKBONE_REGISTRY.register(build)
    __all__.append(build.__name__)


__all__ = [
    "EfficientNet",
    "MBConvBlock",
    "__version__",
    "build_efficientnet",
    "load_pretrained_weights",
    "url_map",
    "url_map_advprop",
]
for _number in range(8):
    _register(f"b{_number}")
