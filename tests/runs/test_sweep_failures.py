"""A sweep prints equal errors once, stops if weights are missing, and reads finished runs from a read-only disk."""

import errno
import os
from pathlib import Path

import pytest
from trees import put

from unskew.cli.main import main
from unskew.runs.launch import launch, plan
from unskew.utils.errors import MissingWeightsError

SHORT = ["OPTIM.MAX_EPOCH", "1", "INPUT.VIEWS", "1", "DATALOADER.NUM_WORKERS", "0"]


@pytest.fixture
def work(monkeypatch):
    """Replace the execution of runs by a function of the run."""
    return lambda function: monkeypatch.setattr("unskew.runs.launch.execute", lambda run, console: function(run))


def fail(error):
    raise error


def test_equal_errors_are_printed_once_with_their_number(work, capsys, tmp_path):
    """An error that names the run's own folder is the same error of another run."""
    runs = plan("digits", ["CoOp", "GLA"], shots=[1], seeds=range(1, 5), output=tmp_path)
    work(lambda run: fail(ValueError(f"no val in {run.path}" if run.trainer == "GLA" else "bad split")))
    assert len(list(launch(runs))) == 8
    error = capsys.readouterr().err
    assert error.count("bad split") == error.count("no val in") == 1
    assert [line for line in error.splitlines() if line.startswith("4 runs")] == [
        "4 runs failed with the error of run 1",
        "4 runs failed with the error of run 5",
    ]


def test_missing_weights_stop_a_sweep_at_once(work, capsys, tmp_path):
    work(lambda run: fail(MissingWeightsError("backbone 'X': its weights are not in the cache")))
    argv = ["sweep", "-d", "digits", "-t", "CoOp,GLA", "--shots", "1", "--output", str(tmp_path)]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.count("its weights") == 1 and "5 of 6 runs were not started" in error


def test_a_file_of_weights_that_is_missing_stops_a_sweep(data_root, capsys, tmp_path):
    argv = ["sweep", "-d", "digits", "-t", "CoOp,ZeroshotCLIP", "--shots", "1", "--root", data_root]
    assert main([*argv, "-b", "RN50@nowhere.pt", "--output", str(tmp_path), "--opts", *SHORT]) == 2
    error = capsys.readouterr().err
    assert error.count("there is no file") == 1 and "5 of 6 runs were not started" in error


def test_a_finished_sweep_on_a_read_only_disk_prints_its_table(data_root, capsys, tmp_path, monkeypatch):
    argv = ["sweep", "-d", "digits", "-t", "ZeroshotCLIP", "--shots", "1", "--seeds", "1", "--root", data_root]
    argv += ["--output", str(tmp_path / "out"), "--opts", *SHORT]
    assert main(argv) == 0
    table = capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    writable = os.access
    read_only = {"unskew.cli.sweep.os.access": lambda path, mode: mode != os.W_OK and writable(path, mode)}
    for name, function in read_only.items():
        monkeypatch.setattr(name, function)
    assert main(argv) == 0
    assert capsys.readouterr().out == table
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    assert main([*argv, "DATASET.SEED", "3", "--seeds", "2"]) == 2
    assert str(Path(tmp_path) / "out") in capsys.readouterr().err


@pytest.mark.parametrize("key", ["TRAINER.GLA.TARGET", "TRAINER.GLA.PRIOR"])
def test_a_file_that_a_trainer_needs_is_looked_for_before_data_is_read(key, data_root, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("unskew.data.loaders.build_dataset", None)
    monkeypatch.setattr("unskew.clip.backbones.load_backbone", None)
    argv = ["train", "-d", "digits", "-t", "GLA", "--root", data_root, "--output-dir", str(tmp_path / "run")]
    assert main([*argv, key, str(tmp_path / "nope.csv")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert key in line and "nope.csv" in line


def test_a_target_of_other_classes_stops_before_images_are_encoded(data_root, tmp_path, capsys, monkeypatch):
    (tmp_path / "target.csv").write_text("class,q\ncat,0.5\ndog,0.5\n")
    monkeypatch.setattr("unskew.clip.features.extract", None)
    argv = ["train", "-d", "digits", "-t", "GLA", "--shots", "1", "--root", data_root, *SHORT]
    pairs = ["TRAINER.GLA.TARGET", str(tmp_path / "target.csv")]
    assert main([*argv, *pairs, "--output-dir", str(tmp_path / "run")]) == 2
    assert "target.csv" in capsys.readouterr().err


def test_a_sweep_shows_the_same_warning_once_and_each_log_has_it(tmp_path, capsys):
    argv = ["sweep", "-d", "folder", "-t", "ZeroshotCLIP", "-b", "micro", "--shots", "-1", "--seeds", "1-3"]
    root = tmp_path / "shapes"
    for number, name in enumerate(("red arrow", "red_arrow", "blue_ring")):
        for n in range(5):
            put(root / name / f"{n}.png", shade=number)
    (root / "blue_ring" / "no image.png").touch()
    (root / "empty").mkdir()
    argv += ["--root", str(root), "--output", str(tmp_path / "out")]
    assert main([*argv, "--opts", *SHORT, "DATASET.UNREADABLE", "skip"]) == 0
    error = capsys.readouterr().err
    expected = ("'empty'", "'red_arrow'", "byte-identical", "'blue_ring/no image.png'")
    assert [error.count(word) for word in expected] == [1, 1, 1, 1]
    logs = [path.read_text() for path in (tmp_path / "out").rglob("log.txt")]
    assert len(logs) == 3 and all(log.count(word) == 1 for log in logs for word in expected)


def test_a_full_disk_at_the_start_of_a_run_gives_one_advice(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "fsync", lambda _: fail(OSError(errno.ENOSPC, "No space left on device")))
    assert main(["train", "-d", "digits", "-t", "ZeroshotCLIP", "--output-dir", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.count("No space left") == 1 and "choose another" not in line
