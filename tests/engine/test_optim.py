"""Schedules against hand-written sequences, and optimizers against PyTorch's."""

import math
import warnings

import pytest
import torch

from unskew.config import get_cfg_default
from unskew.engine.optim import build_lr_scheduler, build_optimizer

BASE = 0.1


def optim_cfg(**keys):
    cfg = get_cfg_default().OPTIM
    cfg.merge_from_list(
        [item for pair in {"NAME": "sgd", "LR": BASE, "WARMUP_EPOCH": -1, **keys}.items() for item in pair]
    )
    return cfg


def rates(cfg, epochs):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = build_optimizer([parameter], cfg)
    scheduler = build_lr_scheduler(optimizer, cfg)
    sequence = []
    for _ in range(epochs):
        sequence.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return sequence


def cosine(step, total):
    return BASE * (1 + math.cos(math.pi * step / total)) / 2


def test_cosine_without_warmup():
    expected = [cosine(e, 10) for e in range(10)]
    assert rates(optim_cfg(LR_SCHEDULER="cosine", MAX_EPOCH=10), 10) == pytest.approx(expected)


def test_cosine_after_constant_warmup_counts_from_zero_and_never_reaches_zero():
    cfg = optim_cfg(LR_SCHEDULER="cosine", MAX_EPOCH=10, WARMUP_EPOCH=2, WARMUP_TYPE="constant", WARMUP_CONS_LR=1e-5)
    expected = [1e-5, 1e-5] + [cosine(e, 10) for e in range(8)]
    assert rates(cfg, 10) == pytest.approx(expected)
    assert rates(cfg, 10)[-1] > 0.01 * BASE


def test_cosine_without_recount_continues_from_the_warmup_epoch_at_the_base_rate():
    """Dassl moves the successor's counter, not its rate, and PyTorch steps by ratios of neighbours."""
    cfg = optim_cfg(
        LR_SCHEDULER="cosine",
        MAX_EPOCH=10,
        WARMUP_EPOCH=3,
        WARMUP_TYPE="constant",
        WARMUP_CONS_LR=1e-5,
        WARMUP_RECOUNT=False,
    )
    expected = [1e-5] * 3 + [BASE]
    for epoch in range(4, 10):
        expected.append(expected[-1] * cosine(epoch, 10) / cosine(epoch - 1, 10))
    assert rates(cfg, 10) == pytest.approx(expected)


def test_linear_warmup():
    cfg = optim_cfg(
        LR_SCHEDULER="multi_step",
        STEPSIZE=(3, 5),
        MAX_EPOCH=10,
        WARMUP_EPOCH=4,
        WARMUP_TYPE="linear",
        WARMUP_MIN_LR=1e-4,
    )
    warm = [1e-4, BASE / 4, BASE / 2, BASE * 3 / 4]
    assert rates(cfg, 10) == pytest.approx(warm + [BASE] * 3 + [BASE / 10] * 2 + [BASE / 100])
    cfg.WARMUP_RECOUNT = False  # milestone 3 lies in the warm-up, 5 is counted from the start
    assert rates(cfg, 10) == pytest.approx(warm + [BASE] + [BASE / 10] * 5)


@pytest.mark.parametrize(("stepsize", "drops_every"), [((4,), 4), ((-1,), 6), ((2, 3), 3)])
def test_single_step(stepsize, drops_every):
    cfg = optim_cfg(LR_SCHEDULER="single_step", STEPSIZE=stepsize, MAX_EPOCH=6, GAMMA=0.5)
    assert rates(cfg, 12) == pytest.approx([BASE * 0.5 ** (e // drops_every) for e in range(12)])


@pytest.mark.parametrize("name", ["cosine", "multi_step", "single_step"])
def test_main_schedules_equal_pytorchs(name):
    cfg = optim_cfg(LR_SCHEDULER=name, STEPSIZE=(2, 5), MAX_EPOCH=9)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE)
    schedulers = torch.optim.lr_scheduler
    reference = {
        "cosine": lambda: schedulers.CosineAnnealingLR(optimizer, 9),
        "multi_step": lambda: schedulers.MultiStepLR(optimizer, [2, 5], 0.1),
        "single_step": lambda: schedulers.StepLR(optimizer, 5, 0.1),
    }[name]()
    expected = []
    for _ in range(9):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    assert rates(cfg, 9) == pytest.approx(expected)


def test_schedule_state_is_plain_and_restores():
    cfg = optim_cfg(LR_SCHEDULER="cosine", MAX_EPOCH=10, WARMUP_EPOCH=1, WARMUP_TYPE="constant")
    whole = rates(cfg, 10)

    def fresh():
        optimizer = build_optimizer([torch.nn.Parameter(torch.zeros(1))], cfg)
        return optimizer, build_lr_scheduler(optimizer, cfg)

    optimizer, scheduler = fresh()
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    state = scheduler.state_dict()
    assert all(isinstance(value, int | float | list | bool) for value in state.values())
    resumed_optimizer, resumed = fresh()
    resumed_optimizer.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(state)
    assert resumed_optimizer.param_groups[0]["lr"] == whole[4]
    resumed_optimizer.step()
    resumed.step()
    assert resumed_optimizer.param_groups[0]["lr"] == whole[5]


def test_no_warning_from_pytorch():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rates(optim_cfg(LR_SCHEDULER="cosine", WARMUP_EPOCH=1), 3)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sgd", "SGD"),
        ("adam", "Adam"),
        ("amsgrad", "Adam"),
        ("adamw", "AdamW"),
        ("rmsprop", "RMSprop"),
        ("radam", "RAdam"),
    ],
)
def test_optimizers_take_the_configs_settings(name, kind):
    module = torch.nn.Linear(2, 2)
    optimizer = build_optimizer(module, optim_cfg(NAME=name, MOMENTUM=0.8, WEIGHT_DECAY=0.01, ADAM_BETA2=0.95))
    assert type(optimizer).__name__ == kind
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], len(group["params"])) == (BASE, 0.01, 2)
    assert group.get("momentum", 0.8) == 0.8
    assert group.get("betas", (0.9, 0.95)) == (0.9, 0.95)
    assert group.get("amsgrad", False) == (name == "amsgrad")
    before = module.weight.detach().clone()
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert not torch.equal(before, module.weight)


def test_param_groups_replace_the_model():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": parameters[:1], "lr": 1.0}, {"params": parameters[1:]}]
    optimizer = build_optimizer(None, optim_cfg(), param_groups=groups)
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, BASE]


@pytest.mark.parametrize(
    ("keys", "fact"),
    [
        ({"LR_SCHEDULER": "cosin"}, "LR_SCHEDULER"),
        ({"LR_SCHEDULER": "multi_step", "STEPSIZE": (2.5,)}, "STEPSIZE"),
        ({"WARMUP_EPOCH": 1, "WARMUP_TYPE": "linaer"}, "WARMUP_TYPE"),
    ],
)
def test_bad_schedules_are_errors(keys, fact):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE)
    with pytest.raises(ValueError, match=fact):
        build_lr_scheduler(optimizer, optim_cfg(**keys))


def test_bad_optimizers_are_errors():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="adamww"):
        build_optimizer(module, optim_cfg(NAME="adamww"))
    with pytest.raises(ValueError, match="STAGED_LR"):
        build_optimizer(module, optim_cfg(STAGED_LR=True, NEW_LAYERS=("0",)))
