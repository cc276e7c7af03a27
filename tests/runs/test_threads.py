"""Runs on the embedded world have the same bits on any number of cores."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from unskew.cli.main import main
from unskew.runs import run as runs
from unskew.runs.run import Run, execute, train
from unskew.utils import threads

SHORT = ("OPTIM.MAX_EPOCH", 2, "INPUT.VIEWS", 2, "DATALOADER.NUM_WORKERS", 0)


@pytest.mark.parametrize("trainer", [pytest.param("ProGrad", marks=pytest.mark.slow), "GLA"])
def test_bits_do_not_depend_on_the_number_of_cores(trainer, data_root, tmp_path):
    results = []
    for number in ("1", "2", "4"):
        environment = {k: v for k, v in os.environ.items() if "THREADS" not in k}
        environment |= {"OMP_NUM_THREADS": number, "UNSKEW_CACHE": str(tmp_path / f"cache{number}")}
        command = [sys.executable, "-m", "unskew", "train", "-d", "digits", "-t", trainer, "-b", "micro"]
        command += ["--shots", "4", "--seed", "1", "--root", data_root, "--output-dir", str(tmp_path / number)]
        done = subprocess.run([*command, *map(str, SHORT)], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        results.append(load_file(tmp_path / number / "predictions.safetensors"))
    for other in results[1:]:
        assert other.keys() == results[0].keys()
        assert all(torch.equal(other[name], tensor) for name, tensor in results[0].items())


def test_a_run_that_reads_features_of_other_runs_has_the_bits_of_one_that_encodes(data_root, tmp_path, monkeypatch):
    logits = {}
    for name, before in (("cold", []), ("partly warm", [1]), ("warm", [1, 4])):
        monkeypatch.setenv("UNSKEW_CACHE", str(tmp_path / f"cache {name}"))
        for shots in [*before, 4]:
            trained = train("digits", "CoOp", shots=shots, root=data_root, output=tmp_path / name, opts=SHORT)
        logits[name] = trained.predictions["logits"]
    assert torch.equal(logits["cold"], logits["partly warm"]) and torch.equal(logits["cold"], logits["warm"])


@pytest.fixture
def used(monkeypatch):
    """The numbers of threads in each run so far; the caller has three."""
    found, before = [], torch.get_num_threads()
    inner = runs._train_and_test
    monkeypatch.setattr(runs, "_train_and_test", lambda *args: found.append(torch.get_num_threads()) or inner(*args))
    monkeypatch.delenv("UNSKEW_THREADS", raising=False)
    torch.set_num_threads(3)
    yield found
    torch.set_num_threads(before)


def arguments(data_root, folder, *more):
    named = ("-d", "digits", "-t", "ZeroshotCLIP", "--shots", "1", "--root", data_root)
    return ["train", *named, *more, "--output-dir", str(folder), "DATALOADER.NUM_WORKERS", "0"]


def test_a_flag_wins_over_the_environment_and_both_over_one_thread(used, data_root, tmp_path, monkeypatch):
    assert main(arguments(data_root, tmp_path / "a")) == 0
    monkeypatch.setenv("UNSKEW_THREADS", "2")
    assert main(arguments(data_root, tmp_path / "b")) == 0
    assert main(arguments(data_root, tmp_path / "c", "--threads", "4")) == 0
    assert used == [1, 2, 4]
    assert torch.get_num_threads() == 3 and os.environ["UNSKEW_THREADS"] == "2"


def test_a_sweep_takes_the_flag_too(used, data_root, tmp_path):
    command = ["sweep", "-d", "digits", "-t", "ZeroshotCLIP", "--shots", "1", "--seeds", "1", "2", "--threads", "2"]
    assert main([*command, "--root", data_root, "--output", str(tmp_path)]) == 0
    assert used == [2, 2] and torch.get_num_threads() == 3 and "UNSKEW_THREADS" not in os.environ


@pytest.mark.parametrize(
    ("backbone", "number"), [("micro-a", 1), ("micro@random", 1), ("ViT-B/16", None), ("ViT-B-32@openai", None)]
)
def test_other_backbones_keep_the_callers_threads(backbone, number):
    assert runs.number_of_threads(Run("digits", "CoOp", backbone, 1, 1).config) == number


def test_members_of_the_embedded_world_use_one_thread():
    def number(*members):
        return runs.number_of_threads(Run("digits_lt", "Backdoor", opts=("TRAINER.BACKDOOR.MEMBERS", members)).config)

    assert number("micro", "micro-a#1") == 1
    assert number("micro", "ViT-B/16") is None


def test_the_callers_threads_return_after_an_error(used, data_root, tmp_path, monkeypatch):
    def fail(cfg, folder):
        raise RuntimeError(torch.get_num_threads())

    monkeypatch.setattr(runs, "_train_and_test", fail)
    with pytest.raises(RuntimeError, match="1"):
        execute(Run("digits", "CoOp", shots=1, root=data_root, folder=str(tmp_path)), console=False)
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "", "100000"])
def test_a_wrong_number_is_one_line(value, data_root, tmp_path, monkeypatch, capsys):
    flagged = arguments(data_root, tmp_path / "run", f"--threads={value}")
    code = None
    try:
        code = main(flagged)
    except SystemExit as error:
        code = error.code
    assert code == 2
    error = capsys.readouterr().err
    assert "--threads" in error and len(error.splitlines()) == 1
    monkeypatch.setenv("UNSKEW_THREADS", value)
    if value:  # an empty variable is none
        assert main(arguments(data_root, tmp_path / "run")) == 2
        error = capsys.readouterr().err
        assert "UNSKEW_THREADS" in error and len(error.splitlines()) == 1
    else:
        assert threads.requested() is None
    assert not (tmp_path / "run").exists()
