"""Tests of the moments of checkpoints and of the number that stays."""

import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from building import build
from safetensors.torch import load_file

from unskew.dassl.config import get_cfg_default as dassl_default
from unskew.engine import checkpoint, saving
from unskew.runs.run import Run, execute

ROOT = Path(__file__).resolve().parents[2]
EPOCHS = ("OPTIM.MAX_EPOCH", 6)


def epochs(folder, name="prompt_learner"):
    return sorted(checkpoint.saved_epochs(Path(folder) / name))


def train(data_root, folder, *opts):
    trainer = build("CoOp", data_root, folder, *EPOCHS, *opts)
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("keep", "frequency", "expected"),
    [((), 1, [6]), ((1,), 4, [6]), ((3,), 1, [4, 5, 6]), ((2,), 4, [4, 6]), ((-1,), 2, [2, 4, 6]), ((), 0, [6])],
)
def test_the_last_checkpoints_stay(keep, frequency, expected, data_root, tmp_path):
    more = [part for value in keep for part in ("TRAIN.KEEP", value)]
    train(data_root, tmp_path, "TRAIN.CHECKPOINT_FREQ", frequency, *more)
    assert epochs(tmp_path) == expected
    assert checkpoint.last_checkpoint(tmp_path / "prompt_learner").name == "model.pth.tar-6"


def test_the_best_checkpoint_stays_beside_the_last(data_root, tmp_path, monkeypatch):
    scores = iter([1, 5, 2, 3, 4, 0])
    trainer = build("CoOp", data_root, tmp_path, *EPOCHS, "TRAIN.CHECKPOINT_FREQ", 1, "TEST.FINAL_MODEL", "best_val")
    monkeypatch.setattr(trainer, "validate", lambda: float(next(scores)))
    trainer.train()
    assert epochs(tmp_path) == [6]
    assert checkpoint.load_checkpoint(tmp_path / "prompt_learner" / checkpoint.BEST)["epoch"] == 2


@pytest.mark.parametrize("keep", [0, -2])
def test_a_run_without_checkpoints_is_refused(keep, data_root, tmp_path):
    with pytest.raises(ValueError, match=rf"TRAIN\.KEEP.*-1.*{keep}"):
        build("CoOp", data_root, tmp_path, "TRAIN.KEEP", keep)


def test_a_config_of_dassl_keeps_all():
    assert dassl_default().TRAIN.KEEP == -1


@pytest.mark.parametrize(("frequency", "expected"), [(0, [6]), (4, [4, 6])])
def test_checkpoints_by_time_replace_each_other(frequency, expected, data_root, tmp_path, monkeypatch):
    """With -1, as in Dassl, those of CHECKPOINT_FREQ stay and no others."""
    monkeypatch.setattr(saving.CheckpointSchedule, "is_due", lambda *args: True)
    seen = []
    trainer = build("CoOp", data_root, tmp_path, *EPOCHS, "TRAIN.KEEP", -1, "TRAIN.CHECKPOINT_FREQ", frequency)
    trainer.epoch_callbacks.append(lambda t: seen.append(epochs(tmp_path)))
    trainer.train()
    assert seen[0] == [1] and seen[2] == [3] and epochs(tmp_path) == expected


def test_a_short_run_saves_once_and_saving_takes_a_tenth_of_the_time(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(saving.time, "monotonic", lambda: clock[0])
    schedule = saving.CheckpointSchedule(dassl_default().TRAIN)
    clock[0] = 119.0
    assert not schedule.is_due(3, 50) and schedule.is_due(50, 50)
    clock[0] = 121.0
    assert schedule.is_due(3, 50)

    class Slow:
        accelerator = None

        def save_model(self, epoch, directory):
            clock[0] += 60.0

        def get_model_names(self):
            return []

    schedule.save(Slow(), 2, "")
    clock[0] += 599.0
    assert not schedule.is_due(4, 50)
    clock[0] += 2.0
    assert schedule.is_due(4, 50)


def test_checkpoints_by_time_change_no_bit(data_root, tmp_path, monkeypatch):
    plain = train(data_root, tmp_path / "plain")
    with monkeypatch.context() as patch:
        patch.setattr(saving.CheckpointSchedule, "is_due", lambda *args: True)
        often = train(data_root, tmp_path / "often")
    states = [trainer.state_dict()["prompt_learner"] for trainer in (plain, often)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert plain.results == often.results and epochs(tmp_path / "often") == [6]


KILLED = """
import os, signal, sys
from unskew.engine import saving
from unskew.engine.loop import TrainerBase
from unskew.runs.run import Run, execute

saving.CheckpointSchedule.is_due = lambda self, epochs, last: True
save = TrainerBase.save_model

def save_then_die(self, epoch, directory, **options):
    if epoch == 3 and sys.argv[1] == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, epoch, directory, **options)
    if epoch == 3:
        os.kill(os.getpid(), signal.SIGKILL)

TrainerBase.save_model = save_then_die
execute(Run("digits", "CoOp", shots=2, root=sys.argv[2], output=sys.argv[3], opts=eval(sys.argv[4])), console=False)
"""


@pytest.mark.parametrize(("moment", "left"), [("before", [3]), ("after", [3, 4])])
def test_a_killed_run_resumes_from_a_checkpoint_by_time_to_the_same_bits(moment, left, data_root, tmp_path):
    opts = (*EPOCHS, "INPUT.VIEWS", 2, "DATALOADER.NUM_WORKERS", 0)
    run = Run("digits", "CoOp", shots=2, root=data_root, output=str(tmp_path / "whole"), opts=opts)
    expected = execute(run, console=False)
    killed = replace(run, output=str(tmp_path / "killed"))
    command = [sys.executable, "-c", KILLED, moment, data_root, killed.output, repr(opts)]
    child = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    assert epochs(killed.path) == left  # the older one is deleted after the newer one is whole
    metrics = execute(killed, console=False)
    log = (killed.path / "log.txt").read_text()
    assert "Found checkpoint" in log and len(re.findall(r"epoch \[6/6\]", log)) == 1
    assert metrics["accuracy"] == expected["accuracy"] and epochs(killed.path) == [6]
    logits = [load_file(place.path / "predictions.safetensors")["logits"] for place in (run, killed)]
    assert torch.equal(*logits)


def test_models_at_different_last_epochs_resume_from_the_last_common_one(data_root, tmp_path):
    trainer = build("CoOp", data_root, tmp_path, *EPOCHS)
    trainer.register_model("other", torch.nn.Linear(1, 1))
    for epoch in (1, 2):
        trainer.save_model(epoch, tmp_path)
    (tmp_path / "other" / "model.pth.tar-3").unlink()
    (tmp_path / "other" / "checkpoint").write_text("model.pth.tar-2\n")
    assert trainer.resume_model_if_exist(tmp_path) == 2
