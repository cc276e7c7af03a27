"""Staged learning rates, which only Dassl's API has."""

import pytest
import torch

from unskew.config import get_cfg_default
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
