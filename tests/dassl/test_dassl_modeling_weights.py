"""Initial weights of Dassl's backbones and networks: equal to those of Dassl 0.6.3 at seed 1.

The file of facts was made with the original on one CPU: a hash of the names and shapes of the state, the sum of the
state's values and of their magnitudes, the next draw of the generator, and the mean magnitude of the output for random
images in training (with the layers' draws) and evaluation.
"""

import hashlib
import json
import math
import random
from pathlib import Path

import pytest
import torch
from torch import nn

from unskew.dassl.modeling import BACKBONE_REGISTRY, NETWORK_REGISTRY, build_backbone, weights

FACTS = json.loads((Path(__file__).parent / "dassl_063_weights.json").read_text())
# One of each architecture, and of each kind of mixing; the others take longer.
QUICK = (
    "resnet18 resnet50 resnet18_ms_l123 resnet18_ms_l1 resnet18_efdmix_l12 resnet18_dynamic_ms_l12 wide_resnet_16_4 "
    "cnn_digitsdg cnn_digitsingle cnn_digit5_m3sda preact_resnet18 efficientnet_b0 fcn_3x32_gctx fcn_3x32_gctx_stn"
).split()


def cases():
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.world) for name in FACTS]


def side_of(name: str) -> int:
    if name == "fcn_3x64_gctx_stn":
        return 224
    return 32 if name.startswith(("cnn", "preact", "wide", "fcn")) else 64


def build(name: str, seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    if name in NETWORK_REGISTRY:
        return NETWORK_REGISTRY.get(name)()
    return BACKBONE_REGISTRY.get(name)(pretrained=False)


@pytest.mark.parametrize("name", cases())
def test_weights_draws_and_outputs_are_dassls(name):
    layout, total, magnitude, following, in_training, in_evaluation = FACTS[name]
    model = build(name)
    assert torch.rand(1).item() == pytest.approx(following, abs=1e-6), "the generator is at another place"
    state = model.state_dict()
    text = " ".join(f"{key}:{list(value.shape)}" for key, value in state.items())
    assert hashlib.sha256(text.encode()).hexdigest()[:8] == layout, "checkpoints of Dassl do not fit"
    assert sum(float(value.double().abs().sum()) for value in state.values()) == pytest.approx(magnitude, rel=1e-6)
    assert sum(float(value.double().sum()) for value in state.values()) == pytest.approx(total, rel=1e-5)
    for mode, expected in ((True, in_training), (False, in_evaluation)):
        model.train(mode)
        torch.manual_seed(2)
        random.seed(4)
        with torch.no_grad():
            output = model(torch.rand(4, 3, side_of(name), side_of(name)))
        if name in BACKBONE_REGISTRY:
            assert output.shape == (4, model.out_features)
        assert output.double().abs().mean().item() == pytest.approx(expected, rel=1e-4)


def test_the_facts_are_of_all_backbones_and_networks_of_dassl():
    names = {*BACKBONE_REGISTRY.registered_names(), *NETWORK_REGISTRY.registered_names()}
    others = ("shufflenet", "mobilenet", "toy_")  # of torchvision and of other tests
    assert {name for name in names if not name.startswith(others)} == FACTS.keys()
    assert len(FACTS) == 55


@pytest.mark.parametrize("name", ["resnet18", "resnet18_dynamic", "wide_resnet_16_4"])
def test_convolutions_have_hes_deviation(name):
    """The deviation is sqrt(2 / fan_out), of which a convolution's kernel and output width decide the fan-out."""
    for module in build(name, seed=3).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 20_000:
            fan_out = module.weight[:, 0].numel()  # per input channel; of grouped convolutions too
            deviation = module.weight.double().std().item()
            assert deviation == pytest.approx(math.sqrt(2 / fan_out), rel=0.03)
            assert abs(module.weight.double().mean().item()) < 5 * deviation / math.sqrt(module.weight.numel())


def test_digits_networks_have_hes_deviation_of_the_fan_in():
    for name in ("cnn_digitsdg", "cnn_digitsingle"):
        for module in build(name, seed=3).modules():
            if isinstance(module, nn.Conv2d | nn.Linear) and module.weight.numel() > 20_000:
                assert module.weight.std().item() == pytest.approx(math.sqrt(2 / module.weight[0].numel()), rel=0.03)
                assert not module.bias.any()


def test_a_seed_decides_the_weights():
    first, again, other = (build("cnn_digitsdg", seed) for seed in (1, 1, 2))
    states = [torch.cat([value.flatten() for value in model.state_dict().values()]) for model in (first, again, other)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("resnet18_ms_l1", "resnet18-5c106cde.pth"),
        ("alexnet", "alexnet-owt-4df8aa71.pth"),
        ("efficientnet_b0", "efficientnet-b0-355c32eb.pth"),
        ("resnet18_dynamic", "resnet18_dynamic-074db766.pth"),
    ],
)
def test_pretrained_weights_come_from_dassls_addresses(name, file, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    saved = build(name, seed=5).state_dict()
    torch.save({**saved, "fc.weight": torch.zeros(2, 2)}, tmp_path / "hub" / "checkpoints" / file)
    loaded = build_backbone(name, verbose=False, pretrained=True).state_dict()
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[key], value) for key, value in saved.items())


def test_a_failed_download_names_the_weights_and_the_setting(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(OSError, match=r"'resnet18'.*PRETRAINED"):
        weights.init_pretrained_weights(nn.Linear(1, 1), "file:///no_such_folder/resnet18-5c106cde.pth")
