"""The content of a run's file of predictions, and the tensors that its readers return."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from building import SHORT, without_costs
from safetensors.torch import load_file, save_file

import unskew
from unskew.data.dataset import Datum
from unskew.debias.io import read_tensor
from unskew.engine import prediction_file, testing
from unskew.engine.evaluator import build_evaluator
from unskew.engine.prediction import Prediction
from unskew.engine.trainer import build_trainer
from unskew.runs.run import execute
from unskew.utils import derived_tensors

PARTS = ("zs", "ft", "ensemble", "debiased", "gla")
FAST = (*SHORT, "TRAINER.GLA.BASE", "TaskRes")


@pytest.fixture
def make(data_root, tmp_path):
    def run(trainer="GLA", *opts):
        folder = str(tmp_path / trainer)
        run = unskew.Run("digits", trainer, shots=2, seed=1, root=data_root, folder=folder, opts=(*FAST, *opts))
        execute(run, console=False)
        return run

    return run


def file_of(run):
    return run.path / "predictions.safetensors"


def expected(run):
    """Return the tensors that a loaded trainer predicts."""
    trainer = build_trainer(run.config)
    trainer.load_model(str(run.path))
    found = trainer.predict_parts([item.impath for item in trainer.dataset.test])
    labels = torch.tensor([item.label for item in trainer.dataset.test])
    return {"logits": found.logits, "labels": labels, **found.parts}


def assert_same(found, tensors):
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype, name


def test_the_file_of_gla_holds_half_of_its_tensors(make):
    run = make()
    held, whole = load_file(file_of(run)), expected(run)
    assert held.keys() == {"logits", "labels", "zs", "ft", "debiased.term"}
    assert [*whole] == ["logits", "labels", *PARTS]
    assert_same(run.predictions, whole)
    assert held["labels"].dtype == torch.int16
    assert file_of(run).stat().st_size < 3 * whole["logits"].nbytes + held["labels"].nbytes + 1000


@pytest.mark.parametrize(
    ("trainer", "opts", "names"),
    [
        ("GLA", ("TRAINER.GLA.COMBINE", "otter"), {"logits", "zs", "ft", "debiased"}),
        ("Ensemble", ("TRAINER.ENSEMBLE.BASE", "TaskRes"), {"logits", "zs", "ft"}),
        ("DebiasedZeroshot", (), {"logits", "zs"}),
        ("ZeroshotCLIP", (), {"logits"}),
    ],
)
def test_no_tensor_is_held_twice(trainer, opts, names, make):
    run = make(trainer, *opts)
    assert load_file(file_of(run)).keys() == {"labels", *names}
    assert_same(run.predictions, expected(run))


def test_files_with_all_tensors_are_read_as_before(make):
    run = make()
    whole = run.predictions
    save_file({name: tensor.clone() for name, tensor in whole.items()}, file_of(run))
    assert_same(run.predictions, whole)


def test_adjust_reads_all_names(make):
    run = make()
    for name, tensor in run.predictions.items():
        assert torch.equal(read_tensor(f"{file_of(run)}:{name}"), tensor)
    with pytest.raises(ValueError, match="ensemble"):
        read_tensor(f"{file_of(run)}:debiased.term")


def test_among_some_classes_too_no_tensor_is_held_twice():
    zs, ft, row = torch.randn(6, 4), torch.randn(6, 4), torch.randn(4)
    parts = {"zs": zs, "ft": ft, "ensemble": ft + zs, "debiased": zs + row, "gla": zs - ft}
    prediction = Prediction(parts["gla"], parts, {"ensemble": ("ft", "zs"), "debiased": ("zs", row)})
    cfg = unskew.Run("digits", "ZeroshotCLIP").config
    evaluator = build_evaluator(cfg)
    items = [Datum(f"{number}.png", label=1 + 2 * (number % 2)) for number in range(6)]
    dataset = SimpleNamespace(test_classes=[1, 3])
    testing.evaluate(
        SimpleNamespace(
            cfg=cfg,
            _items=lambda split: items,
            predict_parts=lambda paths: prediction,
            dm=SimpleNamespace(dataset=dataset),
            class_groups=dict,
            evaluator=evaluator,
        ),
        "test",
    )
    held, formulas = derived_tensors.split(prediction_file.collect(evaluator, "float32"))
    assert formulas == {"gla": "logits", "ensemble": "ft + zs", "debiased": "zs + debiased.term"}
    labels = torch.tensor([0, 1, 0, 1, 0, 1], dtype=torch.int16)
    chosen = {name: part[:, [1, 3]] for name, part in {"logits": zs - ft, **parts}.items()}
    assert_same(derived_tensors.evaluate(held, formulas), {**chosen, "labels": labels})


def test_parts_in_float16_on_request(make):
    exact, metrics = (run := make()).predictions, run.metrics
    size, before = file_of(run).stat().st_size, file_of(run).stat().st_mtime_ns
    same = make("GLA", "TEST.PARTS_DTYPE", "float16")  # is the same run
    assert file_of(same).stat().st_mtime_ns == before
    (run.path / "done").unlink()
    halved = make("GLA", "TEST.PARTS_DTYPE", "float16")
    held, found = load_file(file_of(halved)), halved.predictions
    assert {name: tensor.dtype for name, tensor in held.items() if name in ("logits", "zs", "ft")} == {
        **{"logits": torch.float32, "zs": torch.float16, "ft": torch.float16},
    }
    assert file_of(halved).stat().st_size < 0.7 * size
    for name, tensor in exact.items():
        assert found[name].dtype == tensor.dtype
        bound = 0 if name in ("logits", "gla", "labels") else 2**-9 * float(tensor.abs().max())
        assert (found[name] - tensor).abs().max() <= bound
    assert without_costs(halved.metrics) == without_costs(metrics)


def judge(parts, sums, dtype="float32"):
    logits, labels = torch.randn(6, 4), torch.arange(6) % 4
    evaluator = build_evaluator(unskew.Run("digits", "ZeroshotCLIP").config)
    evaluator.process(logits, labels, extra=parts)
    evaluator.sums = sums
    return prediction_file.collect(evaluator, dtype), logits


def test_only_exact_sums_are_left_out():
    zs, ft, row = torch.randn(6, 4), torch.randn(6, 4), torch.randn(4)
    parts = {"zs": zs, "ft": ft, "near": torch.nextafter(zs + ft, zs), "debiased": zs + row}
    parts |= {"last": ft + row, "of": zs + row + row}
    sums = {
        "near": ("zs", "ft"),
        "debiased": ("zs", row),
        "gone": ("zs", "zs"),
        "last": ("lost", row),
        "of": ("debiased", row),
    }
    content, logits = judge(parts, sums)
    assert [name for name, value in content.items() if isinstance(value, tuple)] == ["debiased"]
    assert content["logits"].data_ptr() == logits.data_ptr()  # no copy


def test_numbers_that_float16_cannot_hold_stay(make):
    content, _ = judge({"zs": torch.full((6, 4), 1e5), "ft": torch.full((6, 4), 6e4)}, {}, "float16")
    assert (content["zs"].dtype, content["ft"].dtype) == (torch.float32, torch.float16)


SCRIPT = """
import sys, torch
from pathlib import Path
from unskew.engine import prediction_file

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

content = {name: torch.ones(10_000, 2_000) for name in ("logits", "zs", "ft")}  # 76 MiB each
prediction_file.write(Path(sys.argv[1]), {"logits": torch.ones(2, 2)})
open("/proc/self/clear_refs", "w").write("5")
before = peak()
prediction_file.write(Path(sys.argv[1]), {**content, "gla": content["logits"]})
print((peak() - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_writing_takes_no_memory(tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "predictions.safetensors")]
    assert int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) < 40
    assert (tmp_path / "predictions.safetensors").stat().st_size < 241e6


def test_no_part_is_lost_when_an_evaluator_changes_shapes_or_sums_depend_on_sums(tmp_path):
    zs, ft, row = torch.randn(6, 4), torch.randn(6, 4), torch.randn(4)
    tensors = {"logits": ft, "zs": zs, "a": zs + ft, "b": (zs + ft) + row, "cut": (zs + row)[:, :2], "few": zs[:2]}
    sums = {"a": ("zs", "logits"), "b": ("a", row), "cut": ("zs", row), "few": ("zs", "logits"), "lost": ("few", row)}
    evaluator = SimpleNamespace(predictions=lambda: tensors, sums=sums)
    prediction_file.write(tmp_path / "a.safetensors", prediction_file.collect(evaluator, "float32"))
    found = prediction_file.read(tmp_path / "a.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_a_sum_of_tensors_of_other_shapes_is_no_sum():
    parts = {"zs": torch.ones(6, 4), "s": torch.ones(6, 2)}
    for terms in (("zs", torch.ones(3)), ("zs", "few")):
        evaluator = SimpleNamespace(predictions=lambda: {**parts, "few": torch.ones(2, 4)}, sums={"s": terms})
        assert prediction_file.collect(evaluator, "float32").keys() == {"zs", "s", "few"}
