"""Initial weights of backbones: random draws in Dassl's order, and the addresses of pretrained weights."""

import re

import torch
from torch import nn

_PYTORCH = "https://download.pytorch.org/models"
_DDG = "https://csip.fzu.edu.cn/files/models"

model_urls = {
    **{
        name.partition("-")[0]: f"{_PYTORCH}/{name}.pth"
        for name in (
            "alexnet-owt-4df8aa71 resnet18-5c106cde resnet34-333f7ec4 resnet50-19c8e357 resnet101-5d3b4d8f "
            "resnet152-b121ed2d vgg11-bbd30ac9 vgg13-c768596a vgg16-397923af vgg19-dcbb9e9d vgg11_bn-6002323d "
            "vgg13_bn-abd245e5 vgg16_bn-6c64b313 vgg19_bn-c79401a0"
        ).split()
    },
    **{
        name.partition("-")[0]: f"{_DDG}/{name}.pth"
        for name in "resnet18_dynamic-074db766 resnet50_dynamic-2c3b0201 resnet101_dynamic-c5f15780".split()
    },
}


def init_pretrained_weights(model: nn.Module, model_url: str) -> None:
    """Download weights once and load those whose names are in the model; a backbone has no classifier.

    Raises:
        OSError: the download failed.
    """
    try:
        weights = torch.hub.load_state_dict_from_url(model_url, map_location="cpu", weights_only=True)
    except OSError as error:
        name = re.sub("-[0-9a-f]+$", "", model_url.rsplit("/", 1)[-1].removesuffix(".pth"))
        raise OSError(
            f"the pretrained weights of '{name}' could not be downloaded ({error}); connect to the internet once, or "
            "set MODEL.BACKBONE.PRETRAINED False"
        ) from error
    model.load_state_dict(weights, strict=False)


def kaiming_convolutions(model: nn.Module, linear_std: float | None = None) -> None:
    """Draw He's normal weights (arXiv 1502.01852, eq. 14) for convolutions, in the order of the modules.

    Their biases become 0.

    Args:
        model: the module.
        linear_std: the standard deviation of the weights of linear layers. Default: linear layers stay as they are.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear) and linear_std is not None:
            nn.init.normal_(module.weight, 0, linear_std)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
