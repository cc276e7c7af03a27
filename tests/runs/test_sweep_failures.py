"""A sweep prints equal errors once, stops if weights are missing, and reads finished runs from a read-only disk."""

import os
from pathlib import Path

import pytest

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
