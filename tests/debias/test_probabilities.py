"""Tests of probabilities and cosines that are passed as logits."""

import numpy as np
import pytest
import torch
from exact_world import ExactWorld
from safetensors.torch import save_file

import unskew
from unskew.cli import adjust as command
from unskew.debias import combination, mixture, rivals
from unskew.debias.gla import GLA
from unskew.debias.transport import transport_offset

WORLD = ExactWorld(5, imbalance=20, seed=3, separation=1.5)
ZS, Y = (torch.from_numpy(np.ascontiguousarray(part)) for part in WORLD.sample([40] * 5))
FT = ZS - torch.from_numpy(WORLD.log_q) + 0.7 * torch.randn(ZS.shape, generator=torch.Generator().manual_seed(0))
ZS, FT = ZS.log_softmax(1).float(), FT.log_softmax(1).float()
LOG_Q = torch.from_numpy(WORLD.log_q)

ROUNDED = {
    "float32": lambda p: p,
    "float16": lambda p: p.half(),
    "bfloat16": lambda p: p.bfloat16(),
    "bfloat16 in float32": lambda p: p.bfloat16().float(),
    "four digits": lambda p: (p * 1e4).round() / 1e4,
}


@pytest.mark.parametrize("rounded", ROUNDED)
@pytest.mark.parametrize("numpy", [False, True])
def test_gla_on_probabilities_equals_gla_on_logits(rounded, numpy, warned):
    if numpy and rounded == "bfloat16":
        pytest.skip("NumPy has no bfloat16")
    zs, ft = (ROUNDED[rounded](logits.exp()) for logits in (ZS, FT))
    kind = (lambda tensor: tensor.numpy()) if numpy else (lambda tensor: tensor)
    gla = GLA().fit(kind(zs), kind(ft), kind(Y))
    found = torch.as_tensor(gla.predict(kind(zs), kind(ft)))
    assert len(warned()) == 1 and "zs and ft" in warned()[0]  # none for the prediction
    expected = GLA().fit(ZS, FT, Y).predict(ZS, FT)
    assert float((found == expected).double().mean()) > (0.999 if rounded == "float32" else 0.97)


FUNCTIONS = {
    "estimate_log_prior": lambda zs, ft: unskew.estimate_log_prior(zs, Y).log_q,
    "unlabelled": lambda zs, ft: unskew.estimate_log_prior(zs, method="unlabelled").log_q,
    "fit_temperature": lambda zs, ft: unskew.fit_temperature(zs, Y, method="nll"),
    "adjust": lambda zs, ft: unskew.adjust(zs, ft, LOG_Q),
    "combine": lambda zs, ft: combination.combine(zs, ft, LOG_Q),
    "fit_combination": lambda zs, ft: combination.fit_combination(zs, ft, Y, LOG_Q)[:3],
    "remaining_bias": lambda zs, ft: combination.remaining_bias(ft, Y, LOG_Q),
    "fit_weights": lambda zs, ft: combination.fit_weights(zs, ft, Y),
    "combine_members": lambda zs, ft: unskew.combine_members(torch.stack([zs, ft]), torch.tensor([0.3, 0.7])),
    "fit_member_weights": lambda zs, ft: mixture.fit_member_weights(torch.stack([zs, ft]), Y),
    "fit_bcts": lambda zs, ft: rivals.fit_bcts(zs, Y).bias,
    "ece": lambda zs, ft: unskew.classification_metrics(zs, Y)["ece"],
    "train": lambda zs, ft: GLA().fit(zs[::2], None, Y[::2], zs_train=zs[1::2], y_train=Y[1::2]).log_q_,
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_each_function_takes_the_logarithm_and_warns_once(function, warned):
    found = FUNCTIONS[function](ZS.exp(), FT.exp())
    assert len(warned()) == 1
    expected = FUNCTIONS[function](ZS, FT)
    assert torch.allclose(torch.as_tensor(found).double(), torch.as_tensor(expected).double(), atol=1e-4)
    assert len(warned()) == 1


def test_each_half_can_be_fitted_alone(warned):
    found, expected = (
        GLA().fit_zeroshot(zs, Y).fit_finetuned(zs, ft, Y).decision_function(zs, ft)
        for zs, ft in ((ZS.exp(), FT.exp()), (ZS, FT))
    )
    assert torch.allclose(found, expected, atol=1e-4)
    assert len(warned()) == 2


def test_optimal_transport_of_probabilities(warned):
    pytest.importorskip("ot")
    assert torch.allclose(transport_offset(ZS.exp()), transport_offset(ZS), atol=1e-4)
    assert len(warned()) == 1


def test_one_member_of_probabilities_beside_one_of_logits():
    weights = torch.tensor([0.5, 0.5])
    mixed = unskew.combine_members(torch.stack([ZS, FT.exp()]), weights)
    assert torch.allclose(mixed, unskew.combine_members(torch.stack([ZS, FT]), weights), atol=1e-4)


def test_zeros_become_the_smallest_positive_probability():
    probabilities = torch.tensor([[0.9, 0.1, 0.0], [0.25, 0.0, 0.75], [0.001, 0.499, 0.5]])
    expected = torch.tensor([[0.9, 0.1, 0.001], [0.25, 0.001, 0.75], [0.001, 0.499, 0.5]]).log()
    assert torch.allclose(unskew.adjust(probabilities, torch.zeros(3, 3), torch.zeros(3)), expected)


def test_a_single_row_is_treated_as_the_fit_was(warned, tmp_path):
    zs, ft = ZS.exp(), FT.exp()
    sure = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0]])  # alone it could be a vote
    gla = GLA().fit(zs, ft, Y)
    together = gla.decision_function(torch.cat([zs, sure]), torch.cat([ft, sure]))
    torch.save(gla.state_dict(), tmp_path / "gla.pt")
    loaded = GLA()
    loaded.load_state_dict(torch.load(tmp_path / "gla.pt", weights_only=True))
    for estimator in (gla, loaded):
        for row, pair in ((0, (zs[:1], ft[:1])), (-1, (sure, sure))):
            assert torch.allclose(estimator.decision_function(*pair)[0], together[row], atol=1e-4)
    on_logits = GLA().fit(ZS, FT, Y)
    assert torch.allclose(on_logits.decision_function(zs, ft), on_logits.decision_function(ZS, FT), atol=1e-4)
    assert len(warned()) == 3  # of the first fit, and of each half of the last prediction


NO_PROBABILITIES = {
    "logits": ZS.double() * 3,
    "log probabilities": ZS,
    "votes": torch.eye(5).repeat(40, 1),
    "whole numbers": torch.eye(5, dtype=torch.long).repeat(40, 1),
    "zeros": torch.zeros(200, 5),
    "logits above zero": ZS - ZS.min() + 0.1,
    "sums of two": 2 * ZS.exp(),
    "one row that sums to one": torch.cat([ZS.exp()[:1], ZS[1:] - 1]),
}


@pytest.mark.parametrize("kind", NO_PROBABILITIES)
def test_other_values_are_used_as_they_are(kind, warned):
    logits = NO_PROBABILITIES[kind]
    assert torch.allclose(unskew.adjust(logits, logits, torch.zeros(5)), 2.0 * logits)
    unskew.estimate_log_prior(logits, Y)
    assert warned() == []


@pytest.mark.parametrize("logits", [torch.ones(30, 1), torch.tensor([[1.0, 0.0]]), torch.tensor([[0.2, 0.5]])], ids=str)
def test_one_class_and_one_row(logits, warned):
    assert torch.equal(unskew.adjust(logits, logits, torch.zeros(logits.shape[1])), 2 * logits)
    assert warned() == []


def test_cosines_are_used_with_a_warning(warned):
    zs, ft = (0.2 + 0.01 * (logits - logits.mean(1, keepdim=True)) for logits in (ZS, FT))
    assert torch.allclose(unskew.adjust(zs, ft, torch.zeros(5)), zs + ft)
    assert len(warned()) == 1 and "100" in warned()[0]
    unskew.estimate_log_prior(zs, Y)
    GLA().fit(zs, ft, Y)
    assert len(warned()) == 3
    unskew.fit_temperature(zs, Y)  # is for logits of any scale
    GLA(logit_scale="unknown").fit(zs, ft, Y)
    assert len(warned()) == 3


def test_small_logits_of_a_trainer_bring_no_warning(warned):
    GLA().fit_zeroshot(ZS, Y).fit_finetuned(ZS, 0.002 * FT, Y).parts(ZS, 0.002 * FT)
    assert warned() == []


def test_calibrated_logits_of_a_weak_model_bring_no_warning_in_a_fit(warned):
    """GLA divides the logits by their temperature, and the result may be in [-1, 1]."""
    labels = torch.arange(200) % 5
    noise = 5 * torch.randn(200, 5, generator=torch.Generator().manual_seed(1))
    for prior in ("map", "convex", "unlabelled"):
        GLA(prior=prior).fit(noise, noise, labels).predict(noise, noise)
    assert [line for line in warned() if "100" in line] == []


def test_digits_give_the_same_table_from_probabilities(tmp_path, data_root, warned):
    opts = {"TRAINER.GLA.BASE": "LinearProbe", "OPTIM.MAX_EPOCH": 2}
    run = unskew.train("digits", "GLA", shots=4, seed=1, root=data_root, output=tmp_path, opts=opts)
    assert [line for line in warned() if "zs" in line or "logits" in line] == []
    logits = {name: run.predictions[name] for name in ("zs", "ft")} | {"labels": run.predictions["labels"]}
    tables = []
    for name, content in {
        "logits": logits,
        "probabilities": {key: value.softmax(1) if value.ndim == 2 else value for key, value in logits.items()},
    }.items():
        file = str(tmp_path / f"{name}.safetensors")
        save_file(content, file)
        tables.append(command.run(command.Request(file, file, file)).splitlines()[-5:])
    assert tables[0] == tables[1]
    assert len([line for line in warned() if "--zeroshot and --finetuned" in line]) == 1
