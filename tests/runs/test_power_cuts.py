"""Tests of runs after a power cut: a finished run has whole files, any other run is repeated."""

import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from unskew import config
from unskew.engine.run_dir import RunDir
from unskew.runs import launch, tables
from unskew.runs.run import Run, execute, load_run
from unskew.runs.wiseft import predict_test

SHORT = ("OPTIM.MAX_EPOCH", 2, "INPUT.VIEWS", 1, "DATALOADER.NUM_WORKERS", 0)
FILES = ("done", "metrics.json", "predictions.safetensors", "model.json")


@pytest.fixture(scope="module")
def finished(data_root, tmp_path_factory):
    run = Run("digits", "CoOp", shots=1, root=data_root, output=str(tmp_path_factory.mktemp("whole")), opts=SHORT)
    return run, execute(run, console=False)


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run in another folder."""
    whole, _ = finished
    shutil.copytree(whole.path, tmp_path / "run")
    return Run("digits", "CoOp", shots=1, root=whole.root, folder=str(tmp_path / "run"), opts=SHORT)


def cut(path, how):
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "half": content[: len(content) // 2], "zeros": bytes(len(content))}[how])


CUTS = [(name, how) for name in FILES for how in ("empty", "half", "zeros", "missing")]


@pytest.mark.parametrize(("name", "how"), CUTS)
def test_the_rerun_after_a_cut_gives_the_same_numbers(name, how, finished, run):
    cut(run.path / name, how)
    assert not run.is_finished
    metrics = execute(run, console=False)
    assert metrics["accuracy"] == finished[1]["accuracy"] and run.is_finished
    log = (run.path / "log.txt").read_text()
    assert "Found checkpoint" in log  # resumed, not trained again
    first, again = (load_file(folder / "predictions.safetensors") for folder in (finished[0].path, run.path))
    assert first["logits"].equal(again["logits"])
    lines = [line for line in log.splitlines() if "unfinished" in line]
    assert len(lines) == (0 if (name, how) == ("done", "missing") else 1) and all(name in line for line in lines)


def test_all_readers_agree_that_a_cut_run_is_unfinished(run, data_root, tmp_path, caplog):
    (run.path / "metrics.json").write_bytes(b"")
    assert "1 of 1 runs" not in launch.overview([run]) and "unfinished" in launch.overview([run])
    assert tables.collect(tmp_path) == [] and "metrics.json" in caplog.text
    for read in (lambda: load_run(run.path), lambda: predict_test("init", str(run.path), 1.0)):
        with pytest.raises(FileNotFoundError, match=r"metrics\.json"):
            read()
    over = config.load("digits", "", "GLA", ("TRAINER.GLA.BASE_DIR", str(run.path), "DATASET.ROOT", data_root))
    from unskew.engine.trainer import build_trainer

    with pytest.raises(FileNotFoundError, match=r"metrics\.json"):
        build_trainer(over)
    assert RunDir.find(tmp_path, run.config) is None


def test_done_names_the_files_of_the_run(finished):
    lines = (finished[0].path / "done").read_text().splitlines()
    assert len(lines[0]) == 16 and lines[1:] == list(FILES[1:])


def test_a_run_of_an_older_version_is_finished(run):
    done = run.path / "done"
    done.write_text(done.read_text().splitlines()[0] + "\n")
    assert run.is_finished
    (run.path / "predictions.safetensors").unlink()  # as without a test
    assert run.is_finished
    (run.path / "metrics.json").unlink()
    assert not run.is_finished


def test_done_is_on_the_disk_after_all_other_files(data_root, tmp_path, monkeypatch):
    calls, real_fsync, real_replace = [], os.fsync, os.replace

    def fsync(descriptor):
        calls.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real_fsync(descriptor)

    def replace(source, target):
        assert os.path.realpath(source) in calls  # its content is on the disk
        real_replace(source, target)
        calls.append(f"moved {os.path.basename(target)}")

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    run = Run("digits", "CoOp", shots=1, root=data_root, output=str(tmp_path), opts=SHORT)
    execute(run, console=False)
    folder = str(Path(run.path).resolve())
    for name in ("model.pth.tar-2", "predictions.safetensors", "metrics.json", "done"):
        place = calls.index(f"moved {name}")
        after = calls[place : calls.index("moved done")] if name != "done" else calls[place:]
        assert (f"{folder}/prompt_learner" if name.startswith("model") else folder) in after


def test_the_rerun_removes_the_temporary_files_of_a_killed_run(run):
    from unskew.utils.files import temporary_path

    left = []
    for place in (run.path / "metrics.json", run.path / "prompt_learner" / "model.pth.tar-2"):
        mine = temporary_path(place)
        left.append(mine.with_name(mine.name.replace(f"-{os.getpid()}-", "-999999999-")))
        left[-1].write_bytes(b"half")
    cut(run.path / "done", "missing")
    execute(run, console=False)
    assert not any(path.exists() for path in left)
