"""Dynamic convolutions of Dynamic Domain Generalization (arXiv 2205.13913)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Attention", "Conv2dDynamic"]


class Attention(nn.Module):
    """Weights of templates from the mean feature of an image: [B, C, H, W] -> probabilities [B, K].

    Args:
        in_channels: width of the features.
        out_features: the number K of templates.
        squeeze: width of the hidden layer; default ``in_channels // 16``.
        bias: whether the linear layers have biases.

    Raises:
        ValueError: the hidden layer would be empty.
    """

    def __init__(self, in_channels: int, out_features: int, squeeze: int | None = None, bias: bool = True) -> None:
        super().__init__()
        self.squeeze = squeeze or in_channels // 16
        if self.squeeze < 1:
            raise ValueError(f"{in_channels} channels leave no hidden unit: set squeeze to 1 or more")
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Linear(in_channels, self.squeeze, bias=bias)
        self.fc2 = nn.Linear(self.squeeze, out_features, bias=bias)
        self.sf = nn.Softmax(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """Return probabilities [B, K]."""
        return self.sf(self.fc2(F.relu(self.fc1(torch.flatten(self.avg_pool(x), -3)))))


class Conv2dDynamic(nn.Module):
    """A convolution plus four template convolutions, weighted by `Attention`: ``conv(x) + sum_k a_k conv_k(x)``.

    The templates are: k x k within groups of channels, 1 x 1, k x 1 and 1 x k.

    Args:
        in_channels: width of the input.
        out_channels: width of the output.
        kernel_size: an odd number k.
        stride: stride of all convolutions.
        padding: ``kernel_size // 2``.
        bias: whether all layers have biases.
        squeeze: width of the attention's hidden layer.
        attention_in_channels: width of the features that decide the weights; default ``in_channels``.

    Raises:
        ValueError: the kernel is even, or the padding changes the size.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        padding: int,
        bias: bool = True,
        squeeze: int | None = None,
        attention_in_channels: int | None = None,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0 or padding != kernel_size // 2:
            raise ValueError(f"kernel_size must be odd and padding half of it, got {kernel_size} and {padding}")

        def conv(kernel: tuple[int, int], groups: int = 1) -> nn.Conv2d:
            around = (kernel[0] // 2, kernel[1] // 2)
            return nn.Conv2d(in_channels, out_channels, kernel, stride, around, groups=groups, bias=bias)

        k = kernel_size
        self.conv = conv((k, k))
        self.kernel_templates = nn.ModuleDict()
        self.kernel_templates["conv_nn"] = conv((k, k), groups=min(in_channels, out_channels))
        self.kernel_templates["conv_11"] = conv((1, 1))
        self.kernel_templates["conv_n1"] = conv((k, 1))
        self.kernel_templates["conv_1n"] = conv((1, k))
        self.attention = Attention(attention_in_channels or in_channels, 4, squeeze, bias=bias)

    def forward(self, x: Tensor, attention_x: Tensor | None = None) -> Tensor:
        """Return features [B, ``out_channels``, H / stride, W / stride].

        Args:
            x: features [B, ``in_channels``, H, W].
            attention_x: the features that decide the weights; default ``x``.
        """
        weights = self.attention(x if attention_x is None else attention_x)  # [B, 4]
        out = self.conv(x)
        for k, template in enumerate(self.kernel_templates.values()):
            out = out + template(x) * weights[:, k].view(-1, 1, 1, 1)
        return out
