"""Values of fixed names that are kept from step to step equal freshly computed ones."""

import copy
import operator

import pytest
import torch
from torch import nn
from towers import NAMES, add_architectures, assert_close, load, outputs_and_gradient

from unskew.clip import text
from unskew.clip.prompts import POSITIONS, LearnableContext


@pytest.fixture(scope="module", autouse=True)
def architectures(tmp_path_factory):
    add_architectures(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("limit", [1 << 40, 0])
@pytest.mark.parametrize("position", POSITIONS)
def test_training_after_a_first_call_in_inference_mode(monkeypatch, position, limit):
    monkeypatch.setattr(text, "ACTIVATION_BYTES", limit)
    backbone = load("tiny")
    learner = LearnableContext(backbone, [*NAMES, "a layout of its own"], 4, position=position)
    with torch.inference_mode():
        predicted = text.encode_prompts(backbone, learner())
    features, gradient = outputs_and_gradient(text.encode_prompts, backbone, learner)
    assert torch.equal(features, predicted) and gradient.any()


def written(tensor):
    with torch.no_grad():
        tensor.mul_(1.5).add_(0.1)


def moved(tensor):
    tensor.data = tensor.data * 1.5  # not counted as a write


def trained(tensor):
    """By a fused optimiser, whose writes are not counted either, and frozen again."""
    tensor.requires_grad_(True).grad = tensor.detach().flip(0)
    yield
    torch.optim.SGD([tensor], lr=0.1, fused=True).step()
    tensor.requires_grad_(False).grad = None


def at(path, change):
    return lambda backbone, learner: change(operator.attrgetter(path)(backbone.resblocks[0]))


CHANGES = {
    "norm": at("ln_1.weight", written),
    "norm's bias": at("ln_1.bias", written),
    "projection": at("attn.in_proj_weight", written),
    "another bias": at("attn", lambda attention: setattr(attention, "in_proj_bias", nn.Parameter(torch.ones(144)))),
    "other memory": at("attn.in_proj_weight", moved),
    "other precision": lambda backbone, learner: [backbone.to(torch.float8_e4m3fn), backbone.float()],
    "positions": lambda backbone, learner: written(backbone.positional_embedding),
    "names": lambda backbone, learner: written(learner._rest),
    "other names": lambda backbone, learner: setattr(learner, "_rest", learner._rest.flip(0)),
    "training": at("attn.in_proj_weight", trained),
    "a hook": at("ln_1", lambda norm: norm.register_forward_hook(lambda *a: 1.5 * a[-1]) and None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_kept_of_names_goes_when_anything_changes(change):
    backbone = copy.deepcopy(load("tiny"))
    learner = LearnableContext(backbone, NAMES, 4)
    steps = [outputs_and_gradient(text.encode_prompts, backbone, learner) for _ in range(2)]
    assert torch.equal(steps[1][0], steps[0][0]) and torch.equal(steps[1][1], steps[0][1])
    for _ in CHANGES[change](backbone, learner) or ():  # in between it is called as it is
        text.encode_prompts(backbone, learner())
    backbone.requires_grad_(False)
    features, gradient = outputs_and_gradient(text.encode_prompts, backbone, learner)
    plain = outputs_and_gradient(text.encode_plain, backbone, learner)
    assert (features - steps[0][0]).abs().max() > 0.01
    assert_close(features, plain[0])
    assert_close(gradient, plain[1])


@pytest.mark.parametrize("again", [False, True], ids=["kept", "recomputed"])
def test_fixed_names_are_projected_once(monkeypatch, again):
    if again:
        monkeypatch.setattr(text, "ACTIVATION_BYTES", 0)
    backbone = load("tiny")
    learner, counts = LearnableContext(backbone, NAMES, 4), []
    project = text._project
    monkeypatch.setattr(text, "_project", lambda block, x: counts.append(len(x)) or project(block, x))
    prefix, own = len(learner().prefix), len(learner().suffix)
    for _ in range(3):
        outputs_and_gradient(text.encode_prompts, backbone, learner)
    step = [prefix, prefix + own, *([prefix + own, prefix] if again else [])]  # the second block has all rows
    assert counts == [own, *step, *step, *step]


def test_what_is_kept_of_names_goes_with_their_layout():
    backbone = load("tiny")
    learner = LearnableContext(backbone, ["red box", "red cup", "red"], 4)
    expected = text.encode_prompts(backbone, learner())
    learner._prefix_ids = None  # nothing in common any more
    assert_close(text.encode_prompts(backbone, learner()), expected, 1e-6)


def test_what_is_kept_of_names_goes_by_precision():
    backbone = load("tiny")
    learner, fresh = (LearnableContext(backbone, NAMES, 4, generator=torch.Generator().manual_seed(0)) for _ in "ab")
    exact = text.encode_prompts(backbone, learner())
    for dtype in (torch.bfloat16, torch.float16):
        fresh._memory.clear()
        with torch.autocast("cpu", dtype):
            mixed, expected = (text.encode_prompts(backbone, one()) for one in (learner, fresh))
        assert torch.equal(mixed, expected) and not torch.equal(mixed.float(), exact)
    assert torch.equal(text.encode_prompts(backbone, learner()), exact)


def test_names_that_were_made_in_inference_mode():
    backbone = load("tiny")
    with torch.inference_mode():
        learner = LearnableContext(backbone, NAMES, 4)
    with torch.no_grad():
        for _ in range(2):
            assert_close(text.encode_prompts(backbone, learner()), text.encode_plain(backbone, learner()))


def test_a_tower_in_training_gets_the_gradients_of_fixed_names():
    backbone = copy.deepcopy(load("tiny"))
    learner = LearnableContext(backbone, NAMES, 4)
    text.encode_prompts(backbone, learner())  # frozen still
    weight = backbone.resblocks[0].attn.in_proj_weight.requires_grad_(True)
    gradients = []
    for encode in (text.encode_prompts, text.encode_plain):
        outputs_and_gradient(encode, backbone, learner)
        gradients.append(weight.grad.clone())
        weight.grad = None
    assert_close(*gradients)


def test_a_copy_of_a_learner_has_a_memory_of_its_own():
    backbone = load("tiny")
    learner = LearnableContext(backbone, NAMES, 4)
    expected = text.encode_prompts(backbone, learner())
    other = copy.deepcopy(learner)
    assert learner._memory and other._memory == {}
    other._rest = other._rest.flip(0)
    assert list(learner.state_dict()) == ["ctx"]
    assert not torch.equal(text.encode_prompts(backbone, other()), expected)
    assert torch.equal(text.encode_prompts(backbone, learner()), expected)
