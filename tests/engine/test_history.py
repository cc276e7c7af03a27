"""``history.csv``: one row for each epoch, after interrupted and resumed trainings too."""

import csv
import math

import pytest
import torch
from building import build

from unskew.engine import checkpoint
from unskew.engine.history import History
from unskew.runs.run import Run, execute

EPOCHS = ("OPTIM.MAX_EPOCH", 5)


def rows(folder):
    with (folder / "history.csv").open() as file:
        return list(csv.DictReader(file))


def train(name, data_root, folder, *opts, stop=None):
    """Train; raise after so many epochs, as a killed process would end."""
    trainer = build(name, data_root, folder, *EPOCHS, *opts)

    def interrupt(trainer):
        if stop is not None and trainer.epoch + 1 == stop:
            raise KeyboardInterrupt

    getattr(trainer, "base", trainer).epoch_callbacks.append(interrupt)
    if stop is None:
        trainer.train()
    else:
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    return trainer


def test_the_rows_hold_the_numbers_of_the_epochs(data_root, tmp_path):
    trainer = build("CoOp", data_root, tmp_path, *EPOCHS, "TEST.FINAL_MODEL", "best_val", "OPTIM.WARMUP_EPOCH", 0)
    losses, scores = [], []
    forward_backward = trainer.forward_backward

    def noted(batch):
        losses.append((trainer.epoch, forward_backward(batch)))
        return losses[-1][1]

    trainer.forward_backward = noted
    trainer.epoch_callbacks.append(lambda trainer: scores.append(trainer.test("val")))
    trainer.train()
    table = rows(tmp_path)
    assert list(table[0]) == ["epoch", "loss", "accuracy", "lr", "val_score"]
    assert [row["epoch"] for row in table] == ["1", "2", "3", "4", "5"]
    for epoch, row in enumerate(table):
        batches = [values for number, values in losses if number == epoch]
        for column, name in (("loss", "loss"), ("accuracy", "acc")):
            mean = sum(float(values[name]) for values in batches) / len(batches)
            assert float(row[column]) == pytest.approx(mean, rel=1e-5)
        rate = trainer.cfg.OPTIM.LR * (1 + math.cos(math.pi * epoch / 5)) / 2
        assert float(row["lr"]) == pytest.approx(rate, rel=1e-5)
    assert [float(row["val_score"]) for row in table] == pytest.approx(scores, rel=1e-5)


def test_the_validation_score_is_in_tensorboard_too(data_root, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    build("GLA", data_root, tmp_path).train()
    (events,) = (
        path for path in (tmp_path / "tensorboard").iterdir() if "val/score" in scalars(EventAccumulator, path)
    )
    written = scalars(EventAccumulator, events)["val/score"]
    assert [(step + 1, value) for step, value in written] == [
        (int(row["epoch"]), pytest.approx(float(row["val_score"]), rel=1e-5)) for row in rows(tmp_path)
    ]


def scalars(accumulator, path):
    events = accumulator(str(path))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.parametrize(("name", "best"), [("CoOp", "last_step"), ("CoOp", "best_val"), ("GLA", "best_val")])
@pytest.mark.parametrize(("frequency", "stop"), [(1, 3), (2, 3), (0, 3)])
def test_a_resumed_run_has_the_rows_of_an_uninterrupted_one(name, best, frequency, stop, data_root, tmp_path):
    opts = ("TRAIN.CHECKPOINT_FREQ", frequency, "TEST.FINAL_MODEL", best)
    train(name, data_root, tmp_path / "whole", *opts)
    train(name, data_root, tmp_path / "killed", *opts, stop=stop)
    train(name, data_root, tmp_path / "killed", *opts)
    whole, killed = ((tmp_path / folder / "history.csv").read_text() for folder in ("whole", "killed"))
    assert whole == killed and len(whole.splitlines()) == 6


def test_a_row_is_on_the_disk_before_its_checkpoint(data_root, tmp_path, monkeypatch):
    saved = []

    def save(*args, **kwargs):
        saved.append(len(rows(tmp_path)))

    monkeypatch.setattr(checkpoint, "save_checkpoint", save)
    train("CoOp", data_root, tmp_path, "TRAIN.CHECKPOINT_FREQ", 2)
    assert saved == [2, 4, 5]


def test_a_run_that_continues_another_has_its_rows(data_root, tmp_path):
    train("CoOp", data_root, tmp_path / "short", "OPTIM.MAX_EPOCH", 2)
    before = (tmp_path / "short" / "history.csv").read_text()
    train("CoOp", data_root, tmp_path / "long", "RESUME", str(tmp_path / "short"))
    after = (tmp_path / "long" / "history.csv").read_text()
    assert after.startswith(before) and [row["epoch"] for row in rows(tmp_path / "long")] == list("12345")
    assert (tmp_path / "short" / "history.csv").read_text() == before


def test_a_run_of_another_config_starts_a_new_table(data_root, tmp_path):
    run = Run("digits", "CoOp", shots=2, seed=1, root=data_root, folder=str(tmp_path), opts=EPOCHS)
    execute(run, console=False)
    assert len(rows(tmp_path)) == 5
    (tmp_path / "done").unlink()
    execute(Run("digits", "CoOp", shots=1, seed=1, root=data_root, folder=str(tmp_path), opts=(*EPOCHS[:1], 2)), False)
    assert [row["epoch"] for row in rows(tmp_path)] == ["1", "2"]
    for name in ("done", "prompt_learner/model.pth.tar-2"):
        (tmp_path / name).unlink()
    execute(Run("digits", "ZeroshotCLIP", shots=2, seed=1, root=data_root, folder=str(tmp_path)), console=False)
    assert not (tmp_path / "history.csv").exists()  # nothing was trained


@pytest.mark.parametrize("content", [b"", b"\0\xff\0", b"epoch,loss\nx,y\n", b"epoch,loss,accuracy,lr,val_score\n1\n"])
def test_a_damaged_table_costs_its_rows_alone(content, data_root, tmp_path):
    train("CoOp", data_root, tmp_path, "TRAIN.CHECKPOINT_FREQ", 1, stop=3)
    (tmp_path / "history.csv").write_bytes(content)
    train("CoOp", data_root, tmp_path)
    assert [row["epoch"] for row in rows(tmp_path)][-2:] == ["4", "5"]


def test_numbers_that_a_trainer_does_not_report_are_empty(data_root, tmp_path):
    trainer = build("CoOp", data_root, tmp_path)
    forward_backward = trainer.forward_backward
    trainer.forward_backward = lambda batch: {"loss_x": forward_backward(batch)["loss"]}
    trainer.train()
    assert [(row["loss"], row["accuracy"], row["val_score"]) for row in rows(tmp_path)] == [("", "", "")] * 2


def test_a_trainer_without_epochs_has_no_table(data_root, tmp_path):
    build("LinearProbe", data_root, tmp_path).train()
    assert not (tmp_path / "history.csv").exists()


def test_members_have_tables_of_their_own(data_root, tmp_path):
    members = ("TRAINER.BACKDOOR.MEMBERS", ["micro-a", "micro-b"])
    build("Backdoor", data_root, tmp_path / "first", *members).train()
    for name in members[1]:
        assert len(rows(tmp_path / "first" / "members" / name)) == 2
    assert not (tmp_path / "first" / "history.csv").exists()
    build("Backdoor", data_root, tmp_path / "copy", *members, "TRAINER.BACKDOOR.MEMBERS_DIR", str(tmp_path)).train()
    first, copy = (tmp_path / name / "members" / "micro-a" / "history.csv" for name in ("first", "copy"))
    assert copy.read_text() == first.read_text()


def test_a_number_that_is_not_finite_is_missing(tmp_path):
    history = History()
    history.record(1, loss=torch.tensor(0.5), lr=math.nan)
    history.write(tmp_path)
    assert (tmp_path / "history.csv").read_text() == "epoch,loss,accuracy,lr,val_score\n1,0.5,,,\n"
    assert History.read(tmp_path, 1).rows == {1: {"loss": 0.5}}
    assert History.read(tmp_path, 0).rows == {}
