"""Small convolutional networks for digits of 32 x 32 pixels."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unskew.dassl.modeling.registries import BACKBONE_REGISTRY, Backbone
from unskew.dassl.utils import init_network_weights

__all__ = [
    "CNN",
    "ConvNet",
    "Convolution",
    "FeatureExtractor",
    "cnn_digit5_m3sda",
    "cnn_digitsdg",
    "cnn_digitsingle",
]


class _Digits(Backbone):
    def _check_input(self, x: Tensor) -> None:
        if x.shape[-2:] != (32, 32):
            raise ValueError(f"{type(self).__name__} needs images of 32 x 32, got {list(x.shape)}; set INPUT.SIZE")


class FeatureExtractor(_Digits):
    """M3SDA's network for Digit-5 (arXiv 1812.01754): images [B, 3, 32, 32] -> features [B, 2048]."""

    _out_features = 2048

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, kernel_size=5, padding=2)
        self.bn1 = nn.BatchNorm2d(64)
        self.conv2 = nn.Conv2d(64, 64, kernel_size=5, padding=2)
        self.bn2 = nn.BatchNorm2d(64)
        self.conv3 = nn.Conv2d(64, 128, kernel_size=5, padding=2)
        self.bn3 = nn.BatchNorm2d(128)
        self.fc1 = nn.Linear(8 * 8 * 128, 3072)
        self.bn1_fc = nn.BatchNorm1d(3072)
        self.fc2 = nn.Linear(3072, 2048)
        self.bn2_fc = nn.BatchNorm1d(2048)

    def forward(self, x: Tensor) -> Tensor:
        """Return features [B, 2048]."""
        self._check_input(x)
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), kernel_size=3, stride=2, padding=1)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), kernel_size=3, stride=2, padding=1)
        x = torch.flatten(F.relu(self.bn3(self.conv3(x))), 1)
        x = F.dropout(F.relu(self.bn1_fc(self.fc1(x))), training=self.training)
        return F.relu(self.bn2_fc(self.fc2(x)))


@BACKBONE_REGISTRY.register()
def cnn_digit5_m3sda(**kwargs) -> FeatureExtractor:
    """Build a `FeatureExtractor`."""
    return FeatureExtractor()


class Convolution(nn.Module):
    """A 3x3 convolution with padding, and ReLU."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel_size=3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, ``c_out``, H, W]."""
        return self.relu(self.conv(x))


class ConvNet(_Digits):
    """DDAIG's network for Digits-DG (arXiv 2003.06054): images [B, 3, 32, 32] -> features [B, 4 * ``c_hidden``]."""

    def __init__(self, c_hidden: int = 64) -> None:
        super().__init__()
        self.conv1 = Convolution(3, c_hidden)
        self.conv2 = Convolution(c_hidden, c_hidden)
        self.conv3 = Convolution(c_hidden, c_hidden)
        self.conv4 = Convolution(c_hidden, c_hidden)
        self._out_features = 4 * c_hidden

    def forward(self, x: Tensor) -> Tensor:
        """Return features [B, 4 * ``c_hidden``]."""
        self._check_input(x)
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = F.max_pool2d(layer(x), 2)
        return torch.flatten(x, 1)


@BACKBONE_REGISTRY.register()
def cnn_digitsdg(**kwargs) -> ConvNet:
    """Build a `ConvNet`."""
    model = ConvNet(c_hidden=64)
    init_network_weights(model, init_type="kaiming")
    return model


class CNN(_Digits):
    """The network of single-source digits (arXiv 1805.12018): images [B, 3, 32, 32] -> features [B, 1024]."""

    _out_features = 1024

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, kernel_size=5)
        self.conv2 = nn.Conv2d(64, 128, kernel_size=5)
        self.fc3 = nn.Linear(5 * 5 * 128, 1024)
        self.fc4 = nn.Linear(1024, 1024)

    def forward(self, x: Tensor) -> Tensor:
        """Return features [B, 1024]."""
        self._check_input(x)
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = torch.flatten(F.max_pool2d(F.relu(self.conv2(x)), 2), 1)
        return F.relu(self.fc4(F.relu(self.fc3(x))))


@BACKBONE_REGISTRY.register()
def cnn_digitsingle(**kwargs) -> CNN:
    """Build a `CNN`."""
    model = CNN()
    init_network_weights(model, init_type="kaiming")
    return model
