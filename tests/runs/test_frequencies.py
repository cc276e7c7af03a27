"""The frequencies of checkpoints and log lines are no part of a run's identity: changing them loses no work."""

from pathlib import Path

import pytest

from unskew.engine.run_dir import RunDir
from unskew.runs.run import Run, execute

SHORT = ("OPTIM.MAX_EPOCH", 2, "INPUT.VIEWS", 1, "DATALOADER.NUM_WORKERS", 0)
OTHER = ("TRAIN.CHECKPOINT_FREQ", 1, "TRAIN.PRINT_FREQ", 3)


@pytest.fixture
def run(data_root, tmp_path):
    return lambda *opts: Run("digits", "CoOp", "micro", 1, 1, data_root, folder=str(tmp_path), opts=(*SHORT, *opts))


def test_a_finished_run_is_read_with_other_frequencies(run):
    metrics = execute(run(), console=False)
    assert execute(run(*OTHER), console=False) == metrics
    assert RunDir(run().path).is_finished_run_of(run(*OTHER).config)
    with pytest.raises(ValueError, match=r"OPTIM\.LR") as error:
        execute(run(*OTHER, "OPTIM.LR", 0.5), console=False)
    assert "FREQ" not in str(error.value)


def test_an_unfinished_run_keeps_its_checkpoints(run, warned):
    execute(run(), console=False)
    folder = RunDir(run().path)
    folder.done.unlink()
    (checkpoint,) = Path(folder.path).glob("prompt_learner/model.pth.tar-2")
    before = checkpoint.stat().st_mtime_ns
    execute(run(*OTHER), console=False)
    assert checkpoint.stat().st_mtime_ns == before and warned() == []
    assert folder.is_finished_run_of(run().config) and folder.is_finished_run_of(run(*OTHER).config)
