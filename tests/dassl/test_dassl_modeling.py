"""Backbones, heads and operations under Dassl's names."""

import logging
import math
from urllib.error import URLError

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import get_model

from unskew.dassl import modeling, ops
from unskew.dassl.modeling import (
    BACKBONE_REGISTRY,
    HEAD_REGISTRY,
    NETWORK_REGISTRY,
    Backbone,
    build_backbone,
    efficientnet,
    efficientnet_parts,
    preact_resnet18,
    resnet,
    resnet_dynamic,
    wide_resnet,
)

RESNETS = {"resnet18": 512, "resnet34": 512, "resnet50": 2048, "resnet101": 2048, "resnet152": 2048}
ENDINGS = [f"_{kind}_l{stages}" for kind in ("ms", "efdmix", "dynamic_ms") for stages in ("1", "12", "123")]
DIGITS = {"cnn_digit5_m3sda": 2048, "cnn_digitsdg": 256, "cnn_digitsingle": 1024, "preact_resnet18": 512}
WIDTHS = {
    **RESNETS,
    **DIGITS,
    **{name + ending: RESNETS[name] for name in ("resnet18", "resnet50", "resnet101") for ending in ENDINGS},
    **{f"{name}_dynamic": RESNETS[name] for name in ("resnet18", "resnet50", "resnet101")},
    **{"wide_resnet_16_4": 256, "wide_resnet_28_2": 128},
    **{"alexnet": 4096, "vgg16": 4096, "mobilenetv2": 1280},
    **{"shufflenet_v2_x0_5": 1024, "shufflenet_v2_x1_0": 1024, "shufflenet_v2_x1_5": 1024, "shufflenet_v2_x2_0": 2048},
    **{"efficientnet_b0": 1280, "efficientnet_b1": 1280, "efficientnet_b2": 1408, "efficientnet_b3": 1536},
    **{"efficientnet_b4": 1792, "efficientnet_b5": 2048, "efficientnet_b6": 2304, "efficientnet_b7": 2560},
}
SMALL = "shufflenet_v2_x0_5"


# --- backbones ---------------------------------------------------------------------------------------


# Mixing layers cannot be built without numbers.
@pytest.mark.parametrize("name", [name for name in WIDTHS if "_l1" not in name])
def test_backbones_give_features_of_their_width(name):
    with torch.device("meta"):  # shapes without numbers
        backbone = build_backbone(name, verbose=False, pretrained=False)
        side = 32 if name in DIGITS else 224
        features = backbone(torch.empty(2, 3, side, side))
    assert features.shape == (2, backbone.out_features) == (2, WIDTHS[name])


def ours(registry):
    """Return the registered names without those of other tests."""
    return {name for name in registry.registered_names() if not name.startswith("toy_")}


def test_every_backbone_of_dassl_is_registered():
    assert ours(BACKBONE_REGISTRY) == set(WIDTHS)
    with pytest.raises(ValueError, match="resnet50"):
        build_backbone("resnet-50")


def test_layers_have_the_names_in_checkpoints_of_dassl():
    with torch.device("meta"):
        parts = {
            name: set(build_backbone(name, False, pretrained=False).state_dict())
            for name in ("resnet18", "alexnet", "vgg16")
        }
    assert {"conv1.weight", "layer4.1.bn2.running_var"} <= parts["resnet18"]
    assert not any(part.startswith("fc.") for part in parts["resnet18"])
    assert {part for part in parts["alexnet"] if "classifier" in part} == {
        f"classifier.{place}.{kind}" for place in (1, 4) for kind in ("weight", "bias")
    }
    assert {part for part in parts["vgg16"] if "classifier" in part} == {
        f"classifier.{place}.{kind}" for place in (0, 3) for kind in ("weight", "bias")
    }


def test_pretrained_weights_are_torchvisions(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("unskew"), "propagate", True)
    caplog.set_level("INFO", "unskew")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    whole = get_model(SMALL)
    torch.save(whole.state_dict(), tmp_path / "hub" / "checkpoints" / "shufflenetv2_x0.5-f707e7126e.pth")
    states = build_backbone(SMALL, pretrained=True).state_dict()
    assert all(torch.equal(states[name], value) for name, value in whole.state_dict().items() if name in states)
    assert set(whole.state_dict()) - set(states) == {"fc.weight", "fc.bias"}
    assert f"Backbone: {SMALL}" in caplog.messages


def test_a_failed_download_of_weights_is_an_error(tmp_path, monkeypatch):
    def offline(*arguments, **options):
        raise URLError("no connection")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", offline)
    with pytest.raises(OSError, match=rf"{SMALL}.*PRETRAINED"):
        build_backbone(SMALL)


def test_a_user_defined_backbone(monkeypatch):
    monkeypatch.setattr(BACKBONE_REGISTRY, "_table", {})

    @BACKBONE_REGISTRY.register()
    def mine(pretrained=True, **kwargs):
        return Mine()

    class Mine(Backbone):
        def __init__(self):
            super().__init__()
            self._out_features = 5

    assert build_backbone("mine", pretrained=False, depth=3).out_features == 5
    assert Backbone().out_features is None


# --- heads and networks ------------------------------------------------------------------------------


def test_mlp():
    settings = {"in_features": 4, "hidden_layers": [8, 6], "activation": "leaky_relu", "dropout": 0.5}
    head = modeling.build_head("mlp", verbose=False, **settings).eval()
    assert head.out_features == 6
    kinds = ["Linear", "BatchNorm1d", "LeakyReLU", "Dropout"] * 2
    assert [type(layer).__name__ for layer in head.mlp] == kinds
    x = torch.randn(3, 4)
    expected = x
    for layer in (0, 4):
        expected = F.leaky_relu(F.linear(expected, *head.mlp[layer].parameters()) / math.sqrt(1 + 1e-5))
    assert torch.allclose(head(x), expected, atol=1e-6)
    single = modeling.mlp(in_features=4, hidden_layers=3, bn=False)
    assert [type(layer).__name__ for layer in single.mlp] == ["Linear", "ReLU"]


def test_bad_heads_and_networks_are_errors():
    with pytest.raises(ValueError, match="HIDDEN_LAYERS"):
        modeling.MLP()
    with pytest.raises(ValueError, match="ACTIVATION"):
        modeling.MLP(hidden_layers=3, activation="relo")
    with pytest.raises(ValueError, match=r"'mpl'.*mlp"):
        modeling.build_head("mpl")
    with pytest.raises(ValueError, match=r"'fcn'.*fcn_3x32_gctx"):
        modeling.build_network("fcn")
    assert HEAD_REGISTRY.registered_names() == ["mlp"]
    networks = [f"fcn_3x{width}_gctx{ending}" for ending in ("", "_stn") for width in (32, 64)]
    assert ours(NETWORK_REGISTRY) == set(networks)


def test_bad_backbones_are_errors():
    with pytest.raises(ValueError, match=r"32 x 32.*INPUT\.SIZE"):
        build_backbone("cnn_digitsdg", False)(torch.zeros(1, 3, 28, 28))
    with pytest.raises(ValueError, match="layer4"):
        resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], ms_class=ops.MixStyle, ms_layers=["layer4"])
    with pytest.raises(ValueError, match="ms_class"):
        resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], ms_layers=["layer1"])
    with pytest.raises(ValueError, match="6 n"):
        wide_resnet.WideResNet(27, 2)
    with pytest.raises(ValueError, match=r"'efficientnet-b9'.*efficientnet-b0"):
        efficientnet.EfficientNet.from_name("efficientnet-b9")


# --- the blocks, in float64 from their equations -------------------------------------------------------


def double(module):
    """Return the module in float64 and evaluation mode, with random statistics of batch norms."""
    module = module.double().eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
    return module


def norm(part, x):
    mean, var, weight, bias = (v.view(-1, 1, 1) for v in (part.running_mean, part.running_var, part.weight, part.bias))
    return (x - mean) / (var + part.eps).sqrt() * weight + bias


def conv(weight, x, stride=1, padding=0):
    """Return the sum over the kernel's places of shifted images."""
    height, width = weight.shape[2:]
    x = F.pad(x, [padding] * 4)
    rows, columns = (x.shape[2] - height) // stride + 1, (x.shape[3] - width) // stride + 1
    return sum(
        torch.einsum(
            "bihw,oi->bohw", x[:, :, i : i + stride * rows : stride, j : j + stride * columns : stride][:, :, :rows], k
        )
        for i in range(height)
        for j in range(width)
        for k in [weight[:, :, i, j]]
    )


def test_preactivated_blocks():
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    block = double(preact_resnet18.PreActBlock(4, 5, stride=2))
    first = norm(block.bn1, x).relu()
    out = conv(block.conv1.weight, first, 2, 1)
    out = conv(block.conv2.weight, norm(block.bn2, out).relu(), 1, 1)
    assert torch.allclose(block(x), out + conv(block.shortcut[0].weight, first, 2))
    block = double(preact_resnet18.PreActBottleneck(4, 1))
    out = conv(block.conv1.weight, norm(block.bn1, x).relu())
    out = conv(block.conv2.weight, norm(block.bn2, out).relu(), 1, 1)
    assert torch.allclose(block(x), x + conv(block.conv3.weight, norm(block.bn3, out).relu()))


def test_wide_blocks():
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    for width, stride in ((4, 1), (5, 2)):
        block = double(wide_resnet.BasicBlock(4, width, stride))
        first = F.leaky_relu(norm(block.bn1, x), 0.01)
        out = F.leaky_relu(norm(block.bn2, conv(block.conv1.weight, first, stride, 1)), 0.01)
        shortcut = x if width == 4 else conv(block.convShortcut.weight, first, stride)
        assert torch.allclose(block(x), shortcut + conv(block.conv2.weight, out, 1, 1))


def test_dynamic_blocks():
    x = torch.randn(2, 64, 4, 4, dtype=torch.float64)
    block = double(resnet_dynamic.BottleneckDynamic(64, 16))
    weights = block.conv2.attention(x)
    out = norm(block.bn1, conv(block.conv1.weight, x)).relu()
    parts = block.conv2.kernel_templates
    mixed = block.conv2.conv(out) + sum(
        weights[:, k].view(-1, 1, 1, 1) * part(out) for k, part in enumerate(parts.values())
    )
    expected = (norm(block.bn3, conv(block.conv3.weight, norm(block.bn2, mixed).relu())) + x).relu()
    assert torch.allclose(block(x), expected)


def test_efficient_blocks():
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    args = efficientnet_parts.BlockArgs(3, 1, 8, 8, 6, True, 1, 0.25)
    block = double(efficientnet.MBConvBlock(args, efficientnet_parts.efficientnet()[1]))

    def swish(v):
        return v / (1 + torch.exp(-v))

    out = swish(norm(block._bn0, conv(block._expand_conv.weight, x)))
    depth = torch.cat([conv(w[None], out[:, i : i + 1], 1, 1) for i, w in enumerate(block._depthwise_conv.weight)], 1)
    out = swish(norm(block._bn1, depth))
    squeezed = out.mean((2, 3)) @ block._se_reduce.weight[:, :, 0, 0].T + block._se_reduce.bias
    gate = swish(squeezed) @ block._se_expand.weight[:, :, 0, 0].T + block._se_expand.bias
    out = out / (1 + torch.exp(-gate))[:, :, None, None]
    assert torch.allclose(block(x), x + norm(block._bn2, conv(block._project_conv.weight, out)))


def test_same_padding_is_tensorflows():
    """An odd pixel of padding is at the right and at the bottom."""
    for size, kernel, stride in ((7, 3, 2), (8, 3, 2), (9, 5, 2), (6, 3, 1)):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        x = torch.randn(1, 2, size, size, dtype=torch.float64)
        padded = torch.zeros(1, 2, size + total, size + total, dtype=torch.float64)
        padded[:, :, total // 2 : total // 2 + size, total // 2 : total // 2 + size] = x
        for make in (efficientnet_parts.get_same_padding_conv2d(), efficientnet_parts.get_same_padding_conv2d(size)):
            layer = make(2, 3, kernel_size=kernel, stride=stride, bias=False).double()
            assert torch.allclose(layer(x), conv(layer.weight, padded, stride))


def test_swish_gradient_and_drop_connect():
    x = torch.randn(50, dtype=torch.float64, requires_grad=True)
    gradients = [
        torch.autograd.grad(swish(x).pow(2).sum(), x)[0]
        for swish in (efficientnet_parts.MemoryEfficientSwish(), F.silu)
    ]
    assert torch.allclose(*gradients)
    torch.manual_seed(0)
    kept = efficientnet_parts.drop_connect(torch.ones(2000, 1, 1, 1), 0.2, training=True).flatten()
    assert set(kept.tolist()) == {0.0, 1.25}
    assert kept.mean().item() == pytest.approx(1, abs=5 * 0.5 / math.sqrt(2000))
    assert torch.equal(efficientnet_parts.drop_connect(x, 0.2, training=False), x)


def test_efficientnets_strings_of_blocks():
    blocks, settings = efficientnet_parts.get_model_params("efficientnet-b3", {"num_classes": 10})
    assert (settings.width_coefficient, settings.image_size, settings.num_classes) == (1.2, 300, 10)
    assert blocks[1] == efficientnet_parts.BlockArgs(3, 2, 16, 24, 6, True, [2], 0.25)
    assert efficientnet_parts.BlockDecoder.decode(efficientnet_parts.BlockDecoder.encode(blocks)) == blocks
    assert [efficientnet_parts.round_filters(width, settings) for width in (32, 16, 24)] == [40, 24, 32]
    assert efficientnet_parts.round_repeats(2, settings) == 3


def test_perturbing_network():
    torch.manual_seed(0)
    network = modeling.build_network("fcn_3x32_gctx", verbose=False)
    x = torch.rand(2, 3, 16, 16)
    perturbed, perturbation = network(x, lmda=0.3, return_p=True)
    assert torch.allclose(perturbed, x + 0.3 * perturbation)
    assert perturbation.abs().max() <= 1 and perturbation.std() > 0
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 1000:
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_spatial_transformer_starts_at_tanh_of_the_identity():
    network = modeling.build_network("fcn_3x32_gctx_stn", verbose=False).eval()
    x = torch.rand(1, 3, 32, 32)
    perturbed, perturbation, transformed = network(x, return_stn_output=True)
    assert torch.allclose(perturbed, transformed + perturbation)
    scale = math.tanh(1)
    places = (torch.arange(32) + 0.5) / 16 - 1  # centres of pixels in [-1, 1]
    pixels = (places * scale + 1) * 16 - 0.5
    low = pixels.floor().long()
    share = pixels - low
    rows = x[0][:, low] * (1 - share)[:, None] + x[0][:, (low + 1).clamp(max=31)] * share[:, None]
    expected = rows[:, :, low] * (1 - share) + rows[:, :, (low + 1).clamp(max=31)] * share
    assert torch.allclose(transformed[0], expected, atol=1e-5)
    with pytest.raises(ValueError, match="stn=True"):
        modeling.build_network("fcn_3x32_gctx", verbose=False).stn(x)
