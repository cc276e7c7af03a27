"""The costs of a run in ``metrics.json``."""

import sys
from types import SimpleNamespace

import pytest
import torch
from building import SHORT, build, without_costs

import unskew
from unskew.engine.trainer import build_trainer
from unskew.runs import costs, tables
from unskew.runs.run import Run, execute
from unskew.runs.tables import text_tables
from unskew.utils import row_store

MIB = 2**20


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of features."""
    monkeypatch.setenv("UNSKEW_CACHE", str(tmp_path / "cache"))
    row_store.open_folder.cache_clear()
    yield
    row_store.open_folder.cache_clear()


def run_of(name, data_root, folder, *opts):
    return Run("digits", name, shots=2, seed=1, root=data_root, folder=str(folder), opts=(*SHORT, *opts))


# --- parameters -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "opts", "expected"),
    [
        ("ZeroshotCLIP", (), 0),
        ("DebiasedZeroshot", (), 0),
        ("TipAdapter", (), 0),
        ("TipAdapterF", (), 2 * 10 * 64),  # a key of 64 numbers per training image
        ("LinearProbe", (), (64 + 1) * 10),
        ("CoOp", ("TRAINER.COOP.N_CTX", 3), 3 * 64),
        ("GLA", ("TRAINER.GLA.BASE", "LinearProbe"), (64 + 1) * 10),
        ("Ensemble", ("TRAINER.ENSEMBLE.BASE", "TipAdapterF"), 2 * 10 * 64),
    ],
)
def test_trained_parameters(name, opts, expected, data_root, tmp_path):
    assert build(name, data_root, tmp_path, *opts).trained_parameters() == expected


def test_frozen_and_repeated_parameters_do_not_count(data_root, tmp_path):
    trainer = build("ZeroshotCLIP", data_root, tmp_path)
    model = torch.nn.Linear(5, 3)
    model.bias.requires_grad_(False)
    for name in ("one", "same"):
        trainer.register_model(name, model, torch.optim.SGD(model.parameters(), 0.1))
    trainer.register_model("frozen", torch.nn.Linear(7, 7))
    assert trainer.trained_parameters() == 15


# --- a run ------------------------------------------------------------------------------------------


def test_equal_runs_differ_only_in_costs_and_find_their_images_in_the_cache(data_root, tmp_path, cache):
    first, second = (execute(run_of("GLA", data_root, tmp_path / name), console=False) for name in "ab")
    assert without_costs(first) == without_costs(second)
    assert first["trained_parameters"] == second["trained_parameters"] > 0
    assert (first["images_cached"], second["images_encoded"]) == (0, 0)
    trainer = build_trainer(run_of("GLA", data_root, tmp_path / "c").config)
    dataset = trainer.dataset
    once = len(dataset.train_x) + len(dataset.val) + len(dataset.test)  # both halves need val and test
    views = 2 * len(dataset.train_x)
    assert second["images_cached"] == once + views
    assert first["images_encoded"] >= once + views  # also the images of the groups of classes, if they are not kept
    assert all(value >= 0 for value in (first["peak_memory_mb"], first["seconds"]))


def test_the_members_parameters_add_up(data_root, tmp_path):
    members, together = ["micro-a", "micro-b"], 0
    opts = ("TRAINER.BACKDOOR.MEMBERS", members)
    metrics = execute(run_of("Backdoor", data_root, tmp_path, *opts), console=False)
    for name in members:
        member = build_trainer(unskew.config.restore(tmp_path / "members" / name / "config.yaml"))
        together += sum(p.numel() for p in member.model.parameters() if p.requires_grad)
    assert metrics["trained_parameters"] == together > 0


def test_a_trainer_that_lacks_everything_costs_only_memory():
    with costs.measured() as cost:
        found = cost.of(SimpleNamespace())
    assert set(found) == {"peak_memory_mb", "peak_memory_of"}


# --- memory -----------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux resets the peak of a process")
def test_the_peak_is_that_of_the_run_not_of_earlier_ones():
    earlier = b"x" * (400 * MIB)
    del earlier
    with costs.measured() as cost:
        before = cost.of(SimpleNamespace())
        own = b"x" * (150 * MIB)
        del own
        after = cost.of(SimpleNamespace())
    assert before["peak_memory_of"] == after["peak_memory_of"] == "process during the run"
    assert 140 * MIB / 1e6 < after["peak_memory_mb"] - before["peak_memory_mb"] < 200 * MIB / 1e6


@pytest.mark.skipif(sys.platform == "win32", reason="no getrusage")
def test_a_system_that_cannot_reset_the_peak_gives_that_since_the_start(monkeypatch, tmp_path):
    import resource

    monkeypatch.setattr(costs, "_RESET", tmp_path / "nowhere" / "clear_refs")
    with costs.measured() as cost:
        found = cost.of(SimpleNamespace())
    assert found["peak_memory_of"] == "process since its start"
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    assert found["peak_memory_mb"] == pytest.approx(usage / 1e6, rel=0.1)


def test_the_peak_of_a_gpu_is_reset_and_read(monkeypatch):
    peaks = [9e9, 8e9]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda number: peaks.__setitem__(number, 0))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peaks[device.index])
    with costs.measured() as cost:
        peaks[1] = 2_500_000
        found = cost.of(SimpleNamespace(device="cuda:1"))
    assert found == {"peak_memory_mb": 2.5, "peak_memory_of": "GPU"}
    with costs.measured(cuda=False):
        pass
    assert peaks[1] == 2_500_000


# --- tables -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", costs.NAMES)
def test_a_table_shows_costs_without_a_percentage(name):
    names = {"dataset": "d", "trainer": "t", "backbone": "b", "shots": 1, "seed": 1, "accuracy": 50.0}
    tables.check_columns([name])
    assert "%" not in text_tables.table([{**names, name: 12}], name).splitlines()[0]


# --- labelled images --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "opts", "expected"),
    [
        ("ZeroshotCLIP", (), 0),
        ("CoOp", (), 6),
        ("CoOp", ("TEST.FINAL_MODEL", "best_val"), 10),
        ("LinearProbe", (), 10),
        ("LinearProbe", ("TRAINER.LINEARPROBE.C", 1.0), 6),
        ("TipAdapterF", (), 10),
        ("DebiasedZeroshot", (), 10),
        ("DebiasedZeroshot", ("TRAINER.DEBIASEDZEROSHOT.PRIOR", "unlabelled"), 0),
        ("FineTune", (), 6),
        ("FineTune", ("TRAINER.FINETUNE.LOSS", "gla_train"), 10),
        ("GLA", (), 10),
        ("Backdoor", (), 10),
    ],
)
def test_labelled_images_per_class(name, opts, expected, data_root, tmp_path):
    trainer = build(name, data_root, tmp_path, *opts, shots=6)
    assert len(trainer.labelled_items()) == 10 * expected


@pytest.mark.parametrize("name", ["CoOp", "ZeroshotCLIP", "FineTune", "CLIPAdapter", "TaskRes"])
def test_without_val_the_bits_are_the_same_if_no_image_of_it_is_counted(name, data_root, tmp_path):
    paths, logits = [], []
    for number in (-1, 0):
        trainer = build(name, data_root, tmp_path / str(number), "DATASET.NUM_VAL_SHOTS", number, "OPTIM.MAX_EPOCH", 1)
        trainer.train()
        paths = paths or [item.impath for item in trainer.dataset.test[:20]]
        logits.append(trainer.predict(paths))
    assert torch.equal(*logits)


def test_they_are_in_the_metrics(data_root, tmp_path):
    assert execute(run_of("LinearProbe", data_root, tmp_path))["labelled_images"] == 4
