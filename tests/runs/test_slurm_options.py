"""The options of --slurm, and the errors of a computer without SLURM."""

import sys

import pytest
from slurm.local import LocalCluster

from unskew.cli.main import main
from unskew.runs.launch import Training, plan
from unskew.runs.launchers._slurm_options import minutes, parse, slurm_options
from unskew.runs.launchers._slurm_tasks import Notes
from unskew.runs.launchers.slurm import Slurm
from unskew.utils.errors import MissingWeightsError

KNOWN = frozenset({"partition", "time", "cpus_per_task", "job_name", "setup", "srun_args", "signal_delay_s", "nodes"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("partition=gpu,time=2:00:00,gpus-per-node=1", {"partition": "gpu", "time": "2:00:00", "gpus_per_node": "1"}),
        ("--partition=gpu,long,qos=a", {"partition": "gpu,long", "qos": "a"}),
        ("nodelist=n[1,2-4],gres=gpu:a100:2", {"nodelist": "n[1,2-4]", "gres": "gpu:a100:2"}),
        ("export=A=1", {"export": "A=1"}),
        ("time=1-12:00:00,", {"time": "1-12:00:00"}),
    ],
)
def test_options_are_read(text, expected):
    assert parse(text) == expected


@pytest.mark.parametrize("text", ["gpu", "=3", "partition=", "qos=a,qos=b", "Part=1", "a b=1", ",", " "])
def test_options_without_a_name_or_a_value_are_refused(text):
    with pytest.raises(ValueError, match="--slurm"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(("90", 90), ("90:30", 91), ("2:00:00", 120), ("0:00:30", 1), ("1-12", 2160), ("1-12:30", 2190)),
        *(("2-00:00:01", 2881), ("UNLIMITED", 5_256_000), ("0", 5_256_000)),
    ],
)
def test_times_have_the_formats_of_slurm(text, expected):
    assert minutes(text) == expected


@pytest.mark.parametrize("text", ["2h", "1:2:3:4", "1-2:3:4:5", "-5", "", "1.5"])
def test_other_times_are_refused(text):
    with pytest.raises(ValueError, match="time"):
        minutes(text)


def test_the_defaults_and_the_threads_of_the_user():
    options = slurm_options("", KNOWN)
    assert options.parameters["time"] == 120 and options.parameters["cpus_per_task"] == "4"
    assert options.parameters["additional_parameters"] == {"time": "2:00:00", "requeue": True}
    assert options.max_num_timeout == 10
    assert slurm_options("", KNOWN, threads=2).parameters["srun_args"] == ["--cpus-per-task=2"]
    assert slurm_options("cpus_per_task=8", KNOWN, threads=2).parameters["cpus_per_task"] == "8"


def test_options_go_to_submitit_or_to_sbatch():
    text = "partition=gpu,time=1-0,licenses=a:1,exclusive=true,signal_delay_s=30,max_num_timeout=0,nodes=1"
    options = slurm_options(f"{text},setup=module load cuda,srun_args=--mpi none", KNOWN)
    parameters = options.parameters
    assert parameters["partition"] == "gpu" and parameters["time"] == 1440 and parameters["signal_delay_s"] == 30
    assert parameters["setup"] == ["module load cuda"] and "nodes" not in parameters
    assert parameters["srun_args"] == ["--mpi", "none", "--cpus-per-task=4"] and options.max_num_timeout == 0
    others = parameters["additional_parameters"]
    assert others == {"time": "1-0", "requeue": True, "licenses": "a:1", "exclusive": True}


@pytest.mark.parametrize("text", ["array=1-3", "output=x", "signal=USR1@9", "nodes=2", "ntasks=4", "max_num_timeout=a"])
def test_options_of_the_launcher_are_refused(text):
    with pytest.raises(ValueError, match=text.partition("=")[0]):
        slurm_options(text, KNOWN)


@pytest.mark.parametrize("text", ["time=1", "time=0:01:30,signal_delay_s=120", "time=2:00:00,signal_delay_s=7200"])
def test_a_time_limit_before_the_signal_is_refused(text):
    with pytest.raises(ValueError, match="longer than signal_delay_s"):
        slurm_options(text, KNOWN)


def test_the_error_of_a_run_keeps_its_type_in_a_note(tmp_path):
    notes = Notes(tmp_path)
    for number, outcome in enumerate([{"accuracy": 1.0}, MissingWeightsError("no file"), KeyError("odd")]):
        notes.start(number)
        notes.end(number, outcome)
    assert notes.numbers("started") == notes.numbers("json") == {0, 1, 2} and notes.error(0) is None
    assert type(notes.error(1)) is MissingWeightsError and str(notes.error(1)) == "no file"
    assert "KeyError" in str(notes.error(2))


def test_a_folder_that_cannot_be_written_is_named(tmp_path, data_root):
    (tmp_path / ".slurm").touch()
    jobs = [Training(run) for run in plan("digits", ["ZeroshotCLIP"], seeds=[1], root=data_root, output=tmp_path)]
    with pytest.raises(OSError, match=r"cannot write .*slurm"):
        list(Slurm(LocalCluster(), tmp_path / ".slurm").outcomes(jobs))


def test_a_computer_without_slurm_gets_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    argv = ["sweep", "-d", "digits", "-t", "ZeroshotCLIP", "--output", str(tmp_path / "out"), "--launcher", "slurm"]
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "sbatch" in line and "--launcher local" in line


def test_the_package_that_is_missing_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "submitit", None)
    argv = ["sweep", "-d", "digits", "-t", "ZeroshotCLIP", "--output", str(tmp_path / "out"), "--launcher", "slurm"]
    assert main(argv) == 2
    assert "pip install 'unskew[slurm]'" in capsys.readouterr().err
