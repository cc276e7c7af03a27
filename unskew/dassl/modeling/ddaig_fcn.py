"""DDAIG's networks that perturb images (Deep Domain-Adversarial Image Generation, arXiv 2003.06054)."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unskew.dassl.modeling.registries import NETWORK_REGISTRY
from unskew.dassl.utils import init_network_weights
from unskew.utils.registry import unknown_name

__all__ = [
    "FCN",
    "LocNet",
    "ResnetBlock",
    "fcn_3x32_gctx",
    "fcn_3x32_gctx_stn",
    "fcn_3x64_gctx",
    "fcn_3x64_gctx_stn",
    "get_norm_layer",
    "init_network_weights",
]

Norm = Callable[..., nn.Module]

_PADDINGS = {"reflect": nn.ReflectionPad2d, "replicate": nn.ReplicationPad2d, "zero": None}


def get_norm_layer(norm_type: str = "instance") -> Norm | None:
    """Return the class of "batch" or "instance" normalisation, the latter without weights; ``None`` for "none".

    Raises:
        ValueError: ``norm_type`` is unknown.
    """
    kinds: dict[str, Norm | None] = {
        "batch": partial(nn.BatchNorm2d, affine=True),
        "instance": partial(nn.InstanceNorm2d, affine=False, track_running_stats=False),
        "none": None,
    }
    if norm_type not in kinds:
        raise ValueError(unknown_name("norm_type", norm_type, kinds))
    return kinds[norm_type]


def _padded_conv3x3(before: int, after: int, padding_type: str, bias: bool) -> list[nn.Module]:
    if padding_type not in _PADDINGS:
        raise ValueError(unknown_name("padding_type", padding_type, _PADDINGS))
    layer = _PADDINGS[padding_type]
    padding: list[nn.Module] = [layer(1)] if layer else []
    return [*padding, nn.Conv2d(before, after, kernel_size=3, padding=0 if layer else 1, bias=bias)]


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut.

    Args:
        dim: width of the features.
        padding_type: "reflect", "replicate" or "zero".
        norm_layer: the class of normalisation.
        use_dropout: whether dropout of 0.5 follows the first convolution.
        use_bias: whether the convolutions have biases.
    """

    def __init__(self, dim: int, padding_type: str, norm_layer: Norm, use_dropout: bool, use_bias: bool) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            *_padded_conv3x3(dim, dim, padding_type, use_bias),
            norm_layer(dim),
            nn.ReLU(inplace=True),
            *([nn.Dropout(0.5)] if use_dropout else []),
            *_padded_conv3x3(dim, dim, padding_type, use_bias),
            norm_layer(dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return features [B, ``dim``, H, W]."""
        return x + self.conv_block(x)


class LocNet(nn.Module):
    """The localisation network of a spatial transformer (arXiv 1506.02025): images -> transforms [B, 2, 3].

    Args:
        input_nc: channels of the images.
        nc: width of the features.
        n_blocks: the number of residual blocks, each followed by pooling.
        use_dropout: whether the blocks have dropout.
        padding_type: "reflect", "replicate" or "zero".
        image_size: side of the images.
    """

    def __init__(
        self,
        input_nc: int,
        nc: int = 32,
        n_blocks: int = 3,
        use_dropout: bool = False,
        padding_type: str = "zero",
        image_size: int = 32,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(input_nc, nc, kernel_size=3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(nc),
            nn.ReLU(inplace=True),
        ]
        for _ in range(n_blocks):
            layers += [ResnetBlock(nc, padding_type, nn.BatchNorm2d, use_dropout, use_bias=False), nn.MaxPool2d(2)]
        self.backbone = nn.Sequential(*layers)
        self.fc_loc = nn.Linear(nc * (image_size // 2 ** (n_blocks + 1)) ** 2, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return the transforms: a 2x2 matrix with entries in [-1, 1], and no translation."""
        matrix = torch.tanh(self.fc_loc(torch.flatten(self.backbone(x), 1))).view(-1, 2, 2)
        return F.pad(matrix, (0, 1))


class FCN(nn.Module):
    """A fully convolutional network G that perturbs images: ``x + lambda * G(x)`` (DDAIG, eq. 1).

    Args:
        input_nc: channels of the images.
        output_nc: channels of the perturbation.
        nc: width of the features.
        n_blocks: the number of residual blocks.
        norm_layer: the class of normalisation.
        use_dropout: whether the blocks have dropout.
        padding_type: "reflect", "replicate" or "zero".
        gctx: whether the mean feature of the image is joined to each pixel's.
        stn: whether a spatial transformer precedes it.
        image_size: side of the images, for the spatial transformer.
    """

    def __init__(
        self,
        input_nc: int,
        output_nc: int,
        nc: int = 32,
        n_blocks: int = 3,
        norm_layer: Norm = nn.BatchNorm2d,
        use_dropout: bool = False,
        padding_type: str = "reflect",
        gctx: bool = True,
        stn: bool = False,
        image_size: int = 32,
    ) -> None:
        super().__init__()
        layers = [*_padded_conv3x3(input_nc, nc, padding_type, False), norm_layer(nc), nn.ReLU(inplace=True)]
        layers += [ResnetBlock(nc, padding_type, norm_layer, use_dropout, use_bias=False) for _ in range(n_blocks)]
        self.backbone = nn.Sequential(*layers)
        self.gctx_fusion: nn.Module | None = None
        if gctx:
            fusion = nn.Conv2d(2 * nc, nc, kernel_size=1, bias=False)
            self.gctx_fusion = nn.Sequential(fusion, norm_layer(nc), nn.ReLU(inplace=True))
        self.regress = nn.Sequential(nn.Conv2d(nc, output_nc, kernel_size=1), nn.Tanh())
        self.locnet: LocNet | None = None
        if stn:
            self.locnet = LocNet(input_nc, nc=nc, n_blocks=n_blocks, image_size=image_size)

    def init_loc_layer(self) -> None:
        """Let the spatial transformer start at ``tanh(1)`` times the identity."""
        if self.locnet is not None:
            nn.init.zeros_(self.locnet.fc_loc.weight)
            with torch.no_grad():
                self.locnet.fc_loc.bias.copy_(torch.eye(2).flatten())

    def stn(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return transformed images [B, C, H, W] and their transforms [B, 2, 3]."""
        if self.locnet is None:
            raise ValueError("this network has no spatial transformer: build it with stn=True")
        theta = self.locnet(x)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, align_corners=False), theta

    def forward(
        self, x: Tensor, lmda: float = 1.0, return_p: bool = False, return_stn_output: bool = False
    ) -> Tensor | tuple[Tensor, ...]:
        """Return perturbed images [B, C, H, W].

        Args:
            x: images.
            lmda: multiplier of the perturbation.
            return_p: return the perturbation too.
            return_stn_output: return the perturbation and the spatial transformer's images too.
        """
        if self.locnet is not None:
            x, _ = self.stn(x)
        features = self.backbone(x)
        if self.gctx_fusion is not None:
            context = F.adaptive_avg_pool2d(features, (1, 1)).expand_as(features)
            features = self.gctx_fusion(torch.cat([features, context], 1))
        perturbation = self.regress(features)
        perturbed = x + lmda * perturbation
        if return_stn_output:
            return perturbed, perturbation, x
        return (perturbed, perturbation) if return_p else perturbed


def _build(nc: int, stn: bool = False, image_size: int = 32) -> FCN:
    norm_layer = partial(nn.InstanceNorm2d, affine=False, track_running_stats=False)
    network = FCN(3, 3, nc=nc, n_blocks=3, norm_layer=norm_layer, stn=stn, image_size=image_size)
    init_network_weights(network, init_type="normal", gain=0.02)
    network.init_loc_layer()
    return network


@NETWORK_REGISTRY.register()
def fcn_3x32_gctx(**kwargs) -> FCN:
    """Build an `FCN` of 3 blocks of width 32."""
    return _build(32)


@NETWORK_REGISTRY.register()
def fcn_3x64_gctx(**kwargs) -> FCN:
    """Build an `FCN` of 3 blocks of width 64."""
    return _build(64)


@NETWORK_REGISTRY.register()
def fcn_3x32_gctx_stn(image_size: int = 32, **kwargs) -> FCN:
    """Build an `FCN` of 3 blocks of width 32 with a spatial transformer."""
    return _build(32, stn=True, image_size=image_size)


@NETWORK_REGISTRY.register()
def fcn_3x64_gctx_stn(image_size: int = 224, **kwargs) -> FCN:
    """Build an `FCN` of 3 blocks of width 64 with a spatial transformer."""
    return _build(64, stn=True, image_size=image_size)
