"""Staged learning rates and optimizers, which only Dassl's API has."""

import pytest
import torch

from unskew.config import get_cfg_default
from unskew.dassl import radam
from unskew.dassl.optim import build_optimizer


def optim_cfg(**keys):
    cfg = get_cfg_default().OPTIM
    cfg.LR = 0.1
    for key, value in keys.items():
        cfg[key] = value
    return cfg


def test_staged_lr_covers_every_parameter_once():
    module = torch.nn.Sequential()
    module.body, module.head = torch.nn.Linear(2, 3), torch.nn.Linear(3, 2)
    module.loose = torch.nn.Parameter(torch.zeros(1))  # not in any child
    optimizer = build_optimizer(module, optim_cfg(STAGED_LR=True, NEW_LAYERS=("head",), BASE_LR_MULT=0.1))
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rate[id(module.head.weight)] == 0.1
    assert rate[id(module.body.weight)] == rate[id(module.loose)] == pytest.approx(0.01)
    assert len(rate) == len(list(module.parameters()))


def test_staged_lr_needs_layers_of_a_module():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="'heed'"):
        build_optimizer(module, optim_cfg(STAGED_LR=True, NEW_LAYERS=("heed",)))
    with pytest.raises(ValueError, match="STAGED_LR"):
        build_optimizer(list(module.parameters()), optim_cfg(STAGED_LR=True))


# --- the optimizers of dassl.optim.radam ---------------------------------------------------------------


def trajectory(optimizer_class, gradients, start, **settings):
    """Return the values of a parameter after each step."""
    parameter = torch.nn.Parameter(start.clone())
    optimizer = optimizer_class([parameter], **settings)
    values = []
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        values.append(parameter.detach().clone())
    return torch.stack(values)


@pytest.fixture
def steps():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(30, 3, generator=generator), torch.randn(3, generator=generator)


def rectified(gradients, start, lr, beta1, beta2, eps, decay, skip):
    """Return the values of algorithm 2 of arXiv 1908.03265, one number at a time; ``skip`` leaves out plain steps."""
    values = []
    for column, value in enumerate(start.tolist()):
        first = second = 0.0
        path = []
        for t, gradient in enumerate(gradients[:, column].tolist(), 1):
            first, second = beta1 * first + (1 - beta1) * gradient, beta2 * second + (1 - beta2) * gradient**2
            longest = 2 / (1 - beta2) - 1
            length = longest - 2 * t * beta2**t / (1 - beta2**t)
            mean = first / (1 - beta1**t)
            if length >= 5:
                r = ((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)) ** 0.5
                value -= lr * decay * value
                value -= lr * r * mean * (1 - beta2**t) ** 0.5 / (second**0.5 + eps)
            elif not skip:
                value -= lr * decay * value
                value -= lr * mean
            path.append(value)
        values.append(path)
    return torch.tensor(values).T


@pytest.mark.parametrize("kind", [radam.RAdam, radam.PlainRAdam])
@pytest.mark.parametrize("skip", [False, True])
def test_radam_is_its_algorithm(kind, skip, steps):
    settings = {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}
    found = trajectory(kind, *steps, **settings, degenerated_to_sgd=not skip)
    assert torch.allclose(found, rectified(*steps, 0.05, 0.8, 0.95, 1e-3, 0.1, skip), atol=1e-5)
    assert (found[0] == steps[1]).all() == skip  # the first steps are not rectified


def test_radam_is_pytorchs(steps):
    found = trajectory(radam.RAdam, *steps, lr=0.05, weight_decay=0.1)
    other = trajectory(torch.optim.RAdam, *steps, lr=0.05, weight_decay=0.1, decoupled_weight_decay=True)
    assert torch.allclose(found, other, atol=1e-6)


def test_adamw_with_warmup(steps):
    found = trajectory(radam.AdamW, *steps, lr=0.05, eps=0, weight_decay=0.1)
    assert torch.allclose(found, trajectory(torch.optim.AdamW, *steps, lr=0.05, eps=0, weight_decay=0.1), atol=1e-5)
    warm = trajectory(radam.AdamW, *steps, lr=0.05, warmup=10)
    # With the same gradient, each step of Adam is the rate.
    constant = torch.ones(12, 1), torch.zeros(1)
    rates = -torch.diff(trajectory(radam.AdamW, *constant, lr=0.05, warmup=10).flatten(), prepend=torch.zeros(1))
    assert rates.tolist() == pytest.approx([0.005 * min(step, 10) for step in range(1, 13)], rel=1e-3)
    assert not torch.allclose(warm, trajectory(radam.AdamW, *steps, lr=0.05))


def test_a_closure_and_bad_settings(steps):
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = radam.RAdam([parameter, torch.nn.Parameter(torch.ones(1))], lr=0.1)  # one has no gradient

    def closure():
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2
    assert parameter.tolist() == pytest.approx([0.8, 0.8])
    for settings in ({"lr": -1}, {"betas": (0.9, 1.0)}, {"eps": -1}):
        with pytest.raises(ValueError, match="betas"):
            radam.RAdam([parameter], **settings)


def test_radam_of_a_config_is_dassls():
    module = torch.nn.Sequential()
    module.body, module.head = torch.nn.Linear(2, 3), torch.nn.Linear(3, 2)
    cfg = optim_cfg(NAME="radam", WEIGHT_DECAY=0.2, ADAM_BETA1=0.7)
    optimizer = build_optimizer(module, cfg)
    assert type(optimizer) is radam.RAdam
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"], group["betas"]) == (0.1, 0.2, (0.7, 0.999))
    assert len(group["params"]) == 4
    staged = build_optimizer(module, optim_cfg(NAME="radam", STAGED_LR=True, NEW_LAYERS="head", BASE_LR_MULT=0.1))
    assert [group["lr"] for group in staged.param_groups] == pytest.approx([0.01, 0.1])
