"""Backbones, heads and operations under Dassl's names."""

import copy
import logging
import math
from urllib.error import URLError

import pytest
import torch
from torch.nn import functional as F
from torchvision.models import get_model

from unskew.dassl import modeling, ops
from unskew.dassl.modeling import BACKBONE_REGISTRY, HEAD_REGISTRY, NETWORK_REGISTRY, Backbone, build_backbone

WIDTHS = {
    **{"resnet18": 512, "resnet34": 512, "resnet50": 2048, "resnet101": 2048, "resnet152": 2048},
    **{"alexnet": 4096, "vgg16": 4096, "mobilenetv2": 1280},
    **{"shufflenet_v2_x0_5": 1024, "shufflenet_v2_x1_0": 1024, "shufflenet_v2_x1_5": 1024, "shufflenet_v2_x2_0": 2048},
    **{"efficientnet_b0": 1280, "efficientnet_b1": 1280, "efficientnet_b2": 1408, "efficientnet_b3": 1536},
    **{"efficientnet_b4": 1792, "efficientnet_b5": 2048, "efficientnet_b6": 2304, "efficientnet_b7": 2560},
}
SMALL = "shufflenet_v2_x0_5"


# --- backbones ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WIDTHS)
def test_backbones_give_features_of_their_width(name):
    with torch.device("meta"):  # shapes without numbers
        backbone = build_backbone(name, verbose=False, pretrained=False)
        features = backbone(torch.empty(2, 3, 224, 224))
    assert features.shape == (2, backbone.out_features) == (2, WIDTHS[name])


def test_every_backbone_of_dassl_is_registered():
    assert set(BACKBONE_REGISTRY.registered_names()) == set(WIDTHS)
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
    with pytest.raises(ValueError, match="'fcn'"):
        modeling.build_network("fcn")
    assert (HEAD_REGISTRY.registered_names(), NETWORK_REGISTRY.registered_names()) == (["mlp"], [])


# --- operations --------------------------------------------------------------------------------------


def test_mixup_mixes_images_and_labels_by_one_share_each():
    torch.manual_seed(0)
    x1, x2 = torch.ones(500, 2, 3, 3), torch.zeros(500, 2, 3, 3)
    y1, y2 = F.one_hot(torch.zeros(500, dtype=torch.long), 2).float(), F.one_hot(torch.ones(500).long(), 2).float()
    x, y = ops.mixup(x1, x2, y1, y2, beta=0.75)
    share = x[:, 0, 0, 0]
    assert torch.equal(x, share.view(-1, 1, 1, 1).expand_as(x))
    assert torch.allclose(y, torch.stack([share, 1 - share], 1))
    assert share.mean() == pytest.approx(0.5, abs=0.08)
    assert share.var() == pytest.approx(1 / (4 * (2 * 0.75 + 1)), rel=0.15)  # of Beta(b, b)
    ordered, _ = ops.mixup(x1, x2, y1, y2, 0.75, preserve_order=True)
    assert ordered.min() >= 0.5


def test_reversed_gradient():
    x = torch.randn(3, requires_grad=True)
    y = ops.ReverseGrad()(x, grad_scaling=0.3)
    assert torch.equal(x, y)
    y.sum().backward()
    assert torch.allclose(x.grad, torch.full((3,), -0.3))
    with pytest.raises(ValueError, match="grad_scaling"):
        ops.ReverseGrad()(x, -1)


def test_small_operations():
    logits, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, 2])
    onehot = ops.create_onehot(labels, 3)
    assert onehot.tolist() == torch.eye(3)[labels].tolist()
    smooth = 0.9 * onehot + 0.1 / 3
    losses = -(smooth * logits.log_softmax(1)).sum(1)
    assert torch.allclose(ops.cross_entropy(logits, labels, 0.1, "none"), losses)
    assert torch.allclose(ops.cross_entropy(logits, labels, label_smooth=0.1), losses.mean())
    assert torch.allclose(ops.sharpen_prob(torch.tensor([[0.25, 0.75]])), torch.tensor([[0.1, 0.9]]))
    data, label = ops.reverse_index(logits, labels)
    assert torch.equal(data[0], logits[3]) and label.tolist() == [2, 1, 2, 0]
    data, label = ops.shuffle_index(torch.arange(50), torch.arange(50))
    assert torch.equal(data, label) and sorted(data.tolist()) == list(range(50)) != data.tolist()


def test_rampups():
    assert [ops.linear_rampup(step, 4) for step in (-1, 0, 1, 4, 9)] == [0, 0, 0.25, 1, 1]
    assert [ops.sigmoid_rampup(step, 4) for step in (0, 2, 9)] == pytest.approx([math.exp(-5), math.exp(-1.25), 1])
    with pytest.raises(ValueError, match="rampup_length"):
        ops.sigmoid_rampup(1, 0)


def test_moving_average_of_a_model():
    model = torch.nn.Linear(2, 2)
    average = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    expected = [0.9 * a + 0.1 * p for a, p in zip(average.parameters(), model.parameters(), strict=True)]
    ops.ema_model_update(model, average, 0.9)
    assert all(torch.allclose(a, e) for a, e in zip(average.parameters(), expected, strict=True))
