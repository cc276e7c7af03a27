import math
import os

import pytest
import torch
from safetensors.torch import load_file

from unskew.runs.run import Run, execute
from unskew.runs.wiseft import interpolate, predict_test


def state(seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        "w": torch.randn(3, 4, generator=generator),
        "half": torch.randn(5, generator=generator).half(),
        "ids": torch.arange(3),
        "bn.num_batches_tracked": torch.tensor(seed),
    }


def test_interpolate_is_the_weighted_mean():
    a, b = state(1), state(2)
    for alpha in (0.1, 0.5, 0.75):
        between = interpolate(a, b, alpha)
        assert torch.allclose(between["w"].double(), (1 - alpha) * a["w"].double() + alpha * b["w"].double(), atol=1e-6)
        assert between["half"].dtype == torch.float16
        assert torch.equal(between["ids"], a["ids"])


@pytest.mark.parametrize(("alpha", "end"), [(0, 0), (1, 1)])
def test_the_ends_are_exact_to_the_bit(alpha, end):
    a, b = state(1), state(2)
    a["w"][0, 0], b["w"][0, 1] = -0.0, math.inf
    between, expected = interpolate(a, b, alpha), (a, b)[end]
    for key, value in expected.items():
        assert between[key].numpy().tobytes() == value.numpy().tobytes()
        assert between[key].data_ptr() != value.data_ptr()  # a copy


def test_interpolate_refuses_what_does_not_fit():
    a, b = state(1), state(2)
    for alpha in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match="alpha"):
            interpolate(a, b, alpha)
    with pytest.raises(ValueError, match="'extra'"):
        interpolate(a, {**b, "extra": torch.zeros(1)}, 0.5)
    with pytest.raises(ValueError, match=r"'w' is torch.float32 of shape \[3, 4\] in one .* of \[3, 5\]"):
        interpolate(a, {**b, "w": torch.zeros(3, 5)}, 0.5)
    with pytest.raises(ValueError, match=r"'half' is .*float16"):
        interpolate(a, {**b, "half": b["half"].float()}, 0.5)
    with pytest.raises(ValueError, match="'ids'"):
        interpolate(a, {**b, "ids": torch.tensor([0, 1, 3])}, 0.5)


# --- runs ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(data_root, tmp_path_factory):
    """Folders of short runs on digits, by name."""
    folder = tmp_path_factory.mktemp("wiseft")

    def make(name, trainer, seed=1):
        opts = ("OPTIM.MAX_EPOCH", 2, "INPUT.VIEWS", 1, "OPTIM.LR", 0.05)
        execute(Run("digits", trainer, shots=1, seed=seed, root=data_root, folder=str(folder / name), opts=opts), False)
        return str(folder / name)

    return {
        "zeroshot": make("zeroshot", "ZeroshotCLIP"),
        "one": make("one", "ResidualPrompt"),
        "two": make("two", "ResidualPrompt", seed=2),
        "coop": make("coop", "CoOp"),
    }


def predictions(folder):
    return load_file(os.path.join(folder, "predictions.safetensors"))


def test_the_ends_are_the_runs_own_predictions(runs):
    for alpha, name in ((0, "one"), (1, "two")):
        logits, labels = predict_test(runs["one"], runs["two"], alpha)
        assert torch.equal(labels, predictions(runs[name])["labels"])
        assert torch.equal(logits, predictions(runs[name])["logits"])


def test_init_is_the_model_before_training(runs):
    zeroshot, trained = predictions(runs["zeroshot"])["logits"], predictions(runs["one"])["logits"]
    assert torch.allclose(predict_test("init", runs["one"], 0)[0], zeroshot, atol=1e-4)
    half = predict_test("init", runs["one"], 0.5)[0]
    assert min((half - zeroshot).abs().max(), (half - trained).abs().max()) > 0.1


def test_the_runs_folders_are_left_as_they_are(runs):
    def snapshot():
        places = [os.path.join(at, name) for at, _, names in os.walk(runs["one"]) for name in names]
        return {place: os.stat(place).st_mtime_ns for place in places}

    before = snapshot()
    predict_test("init", runs["one"], 0.5)
    assert snapshot() == before


def test_runs_that_cannot_be_interpolated(runs, tmp_path):
    with pytest.raises(ValueError, match=r"TRAINER\.NAME is CoOp in .*coop' and ResidualPrompt in"):
        predict_test(runs["coop"], runs["one"], 0.5)
    with pytest.raises(ValueError, match="ZeroshotCLIP"):
        predict_test("init", runs["zeroshot"], 0.5)
    with pytest.raises(FileNotFoundError, match="done"):
        predict_test("init", str(tmp_path), 0.5)


@pytest.mark.parametrize("name", ["GLA", "Backdoor"])
def test_what_is_made_of_several_models_is_refused(name, data_root, tmp_path):
    opts = ("OPTIM.MAX_EPOCH", 1, "INPUT.VIEWS", 1, "DATALOADER.NUM_WORKERS", 0)
    run = Run("digits", name, shots=1, seed=1, root=data_root, folder=str(tmp_path / "run"), opts=opts)
    execute(run, console=False)
    with pytest.raises(ValueError, match=name):
        predict_test("init", str(tmp_path / "run"), 0.5)
