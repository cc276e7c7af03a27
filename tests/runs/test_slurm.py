"""Sweeps and protocols in array jobs of a real SLURM, which runs on this computer."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch
from plugin_traces import as_a_process
from safetensors.torch import load_file
from slurm import cluster
from slurm.local import LocalCluster

from unskew.cli.main import main
from unskew.runs.launchers import slurm

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).resolve().parents[2]
SHORT = ["INPUT.VIEWS", "1", "DATALOADER.NUM_WORKERS", "0"]
SLURM = ["--launcher", "slurm", "--slurm", "cpus_per_task=1,time=10"]

# Trainers with slow epochs until a checkpoint is found, with an error for seed 2, and with a crash for seed 1.
PLUGIN = """
import logging, os, time
import torch
from unskew.engine import TRAINER_REGISTRY
from unskew.trainers.coop import CoOp

class _Noisy(CoOp):
    def before_train(self):
        where = os.path.basename(os.getcwd())
        logging.getLogger("unskew").info(f"{torch.get_num_threads()} threads, {os.environ.get('UNSKEW_X')}, in {where}")
        super().before_train()

@TRAINER_REGISTRY.register()
class Slow(_Noisy):
    def after_epoch(self):
        time.sleep(0.02 if self.start_epoch else 0.5)
        super().after_epoch()

@TRAINER_REGISTRY.register()
class Fragile(_Noisy):
    def before_train(self):
        if self.cfg.SEED == 2:
            raise ValueError("seed 2 is unlucky")
        super().before_train()

@TRAINER_REGISTRY.register()
class Deadly(_Noisy):
    def after_train(self):
        if self.cfg.SEED == 1:
            os.kill(os.getpid(), 9)
        super().after_train()
"""


@pytest.fixture(scope="module")
def reason():
    """Start SLURM for these tests; the value is empty, or the reason why SLURM cannot run here."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # a socket's path has at most 108 bytes
    try:
        conf = cluster.start(folder)
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        warnings.warn(f"SLURM cannot run here, so these tests use submitit's local executor: {error}", stacklevel=1)
        cluster.stop(folder)
        yield str(error)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(conf))
        try:
            yield ""
        finally:
            cluster.stop(folder)


@pytest.fixture
def place(reason, tmp_path, monkeypatch):
    """Work in a folder with a plugin, and look at the queue often."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(PLUGIN)
    monkeypatch.setattr(slurm, "NOTES_SECONDS", 0.5)
    monkeypatch.setattr(slurm, "QUEUE_SECONDS", 2.0)
    if reason:
        monkeypatch.setattr(slurm, "SlurmCluster", LocalCluster)
    with as_a_process(tmp_path):
        yield tmp_path


@pytest.fixture
def real(reason, place):
    """Skip a test that submitit's local executor cannot pass."""
    if reason:
        pytest.skip(f"SLURM cannot run here: {reason}")
    return place


def sweep(data_root, trainers, seeds, epochs, *more, output="out"):
    words = ["sweep", "-d", "digits", "-t", trainers, "--seeds", seeds, "--shots", "1", "--root", data_root]
    return [*words, "--output", output, *more, *SHORT, "OPTIM.MAX_EPOCH", str(epochs)]


def driver(argv):
    """Start a command in a process of its own, as a shell does."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-c", DRIVER, *argv]
    # A process group of its own: the interrupt is for the command alone.
    return subprocess.Popen(command, env=environment, text=True, stderr=subprocess.PIPE, start_new_session=True)


DRIVER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background process ignores it
from unskew.runs.launchers import slurm
slurm.NOTES_SECONDS, slurm.QUEUE_SECONDS = 0.5, 2.0
from unskew.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def queue(form="%i %T"):
    command = ["squeue", "--noheader", "--array", f"--format={form}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def hasten(job):
    """Start a requeued job now: SLURM waits for two minutes before it starts one again. Return false."""
    if any("BeginTime" in line for line in queue("%i %r")):
        subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], capture_output=True)
    return False


def until(condition, seconds=240):
    limit = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < limit, "nothing happened"
        time.sleep(0.5)
    return value


def logits(folder):
    found = {path.parent: load_file(path)["logits"] for path in Path(folder).rglob("predictions.safetensors")}
    return {path.relative_to(folder): values for path, values in found.items()}


def submissions(folder="out"):
    return sorted(path.parent for path in Path(folder, ".slurm").glob("*/tasks.json"))


def test_an_array_job_gives_the_bits_of_this_process(place, data_root, capsys, monkeypatch):
    """The plugin, the folder, the threads and the variables of this process reach the tasks."""
    monkeypatch.setenv("UNSKEW_X", "it's set")
    more = ["--plugin", "mine.py", "--threads", "1"]
    given = [sweep(data_root, "CoOp,Slow,ZeroshotCLIP", "1-2", 2, *more, output=out) for out in ("here", "there")]
    assert main(given[0]) == 0
    here = capsys.readouterr().out
    assert main([*given[1], *SLURM, "--jobs", "2"]) == 0
    there, error = capsys.readouterr()
    assert there == here and error.count("accuracy") == 6
    local, remote = logits("here"), logits("there")
    assert len(local) == 6 and local.keys() == remote.keys()
    assert all(torch.equal(local[name], remote[name]) for name in local)
    (log,) = Path("there/digits/Slow").glob("*/seed1/log.txt")
    assert f"1 threads, it's set, in {place.name}" in log.read_text()
    (folder,) = submissions("there")
    assert len({path.name.split("_log")[0] for path in folder.glob("*_log.err")}) == 2  # two tasks
    before = sorted(folder.parent.iterdir())
    assert main([*given[1], *SLURM]) == 0 and capsys.readouterr().out == here  # nothing is submitted again
    assert sorted(folder.parent.iterdir()) == before
    assert main(["table", "there"]) == 0 and "CoOp" in capsys.readouterr().out


def test_an_error_of_a_run_is_printed_and_the_others_finish(place, data_root, capsys):
    argv = [*sweep(data_root, "Fragile", "1-3", 1, "--plugin", "mine.py"), *SLURM]
    assert main(argv) == 2
    output, error = capsys.readouterr()
    assert "Fragile" in output and error.count("seed 2 is unlucky") == 1 and "1 of 3 runs failed" in error
    assert len(logits("out")) == 2
    assert main([*argv, "--detach"]) == 0  # submits the failed one again
    _, error = capsys.readouterr()
    assert "1 failed before, submitted again: seed 2 is unlucky" in error and "2 of 3 done" in error


def test_missing_weights_stop_the_array(place, data_root, capsys):
    argv = [*sweep(data_root, "CoOp,ZeroshotCLIP", "1-4", 1, "-b", "RN50@nowhere.pt"), *SLURM, "--jobs", "1"]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.count("there is no file") == 1 and "7 of 8 runs were not started" in error
    assert len(list(submissions()[0].glob("notes/*.json"))) == 1


def test_the_evaluations_of_a_protocol_are_a_second_array(place, data_root, capsys):
    argv = ["protocol", "base_to_new", "-d", "digits", "-t", "CoOp", "--seeds", "1", "--shots", "1", *SHORT]
    argv += ["OPTIM.MAX_EPOCH", "1", "--root", data_root]
    assert main([*argv, "--output", "here"]) == 0
    here = capsys.readouterr().out
    assert main([*argv, "--output", "there", *SLURM]) == 0
    assert capsys.readouterr().out == here and len(submissions("there")) == 2
    assert all(torch.equal(values, logits("there")[name]) for name, values in logits("here").items())


def test_a_task_at_its_time_limit_is_requeued_and_resumes(real, data_root, capsys):
    """The time limit is real: SLURM sends the signal. Commands with --detach show the progress meanwhile."""
    epochs = 120
    more = ["--plugin", "mine.py", "--jobs", "1", "TRAIN.CHECKPOINT_FREQ", "1"]
    options = ["--launcher", "slurm", "--slurm", "cpus_per_task=1,time=1,signal_delay_s=10"]
    argv = [*sweep(data_root, "ZeroshotCLIP,Slow", "1", epochs, *more), *options]
    assert main([*argv, "--detach"]) == 0
    output, error = capsys.readouterr()
    (folder,) = submissions()
    job = folder.joinpath("tasks.json").read_text().split('"')[3]
    assert not output and f"SLURM job {job}" in error and f"scancel {job}" in error
    done = until(lambda: hasten(job) or list(Path("out").glob("digits/ZeroshotCLIP/*/seed1/done")))[0]
    finished = done.stat().st_mtime_ns
    until(lambda: hasten(job) or list(Path("out").glob("digits/Slow/*/seed1/*/model.pth.tar-*")))
    assert main([*argv, "--detach"]) == 0
    output, error = capsys.readouterr()
    assert "ZeroshotCLIP" in output and "submitted" not in error and submissions() == [folder]
    assert re.search("1 of 2 done, (1 running, 0|0 running, 1) queued", error)
    until(lambda: any("BeginTime" in line for line in queue("%i %r")))
    assert main([*argv, "--detach"]) == 0
    assert "1 of 2 done, 0 running, 1 queued" in capsys.readouterr().err and submissions() == [folder]
    watcher = driver(argv)  # waits for the tasks of the first command
    until(lambda: hasten(job) or watcher.poll() is not None)
    assert watcher.returncode == 0, watcher.stderr.read()
    assert submissions() == [folder] and done.stat().st_mtime_ns == finished
    (log,) = Path("out").glob("digits/Slow/*/seed1/log.txt")
    trained = [int(epoch) for epoch in re.findall(rf"epoch \[(\d+)/{epochs}\] batch \[1/", log.read_text())]
    restarts = log.read_text().count("Found checkpoint")
    assert restarts >= 1 and set(trained) == set(range(1, epochs + 1)) and len(trained) <= epochs + restarts
    assert "Requeued job" in "".join(path.read_text() for path in folder.glob("*_log.*"))


def test_a_preempted_task_is_requeued_and_resumes(real, data_root):
    argv = sweep(data_root, "Slow", "1", 120, "--plugin", "mine.py", "TRAIN.CHECKPOINT_FREQ", "1")
    command = driver([*argv, *SLURM])
    until(lambda: list(Path("out").glob("digits/Slow/*/seed1/*/model.pth.tar-*")))
    (job,) = queue("%i")
    urgent = ["sbatch", "--partition=urgent", "--cpus-per-task=2", "--output=/dev/null", "--wrap=sleep 1"]
    subprocess.run(urgent, check=True, capture_output=True)
    until(lambda: hasten(job) or command.poll() is not None)
    assert command.returncode == 0, command.stderr.read()
    (log,) = Path("out").glob("digits/Slow/*/seed1/log.txt")
    assert log.read_text().count("Found checkpoint") == 1 and len(submissions()) == 1
    assert "DUE TO PREEMPTION" in "".join(path.read_text() for path in submissions()[0].glob("*_log.err"))


def test_the_requeues_have_a_limit(real, data_root):
    argv = sweep(data_root, "Slow", "1", 400, "--plugin", "mine.py", "TRAIN.CHECKPOINT_FREQ", "1")
    command = driver([*argv, "--launcher", "slurm", "--slurm", "cpus_per_task=1,time=10,max_num_timeout=0"])
    until(lambda: list(Path("out").glob("digits/Slow/*/seed1/*/model.pth.tar-*")))
    subprocess.run(["scancel", "--signal=USR2", *queue("%i")], check=True)  # as SLURM before the time limit
    assert command.wait() == 2
    assert "time limit too often" in command.stderr.read() and not queue()


def test_a_run_that_kills_its_process_does_not_stop_the_others_again(place, data_root, capsys):
    argv = [*sweep(data_root, "Deadly", "1-2", 1, "--plugin", "mine.py"), *SLURM]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert "2 of 2 runs failed" in error and "_log.err" in error and str(submissions()[0]) in error
    assert main(argv) == 2
    output, error = capsys.readouterr()
    assert "1 of 2 runs failed" in error and "Deadly" in output and len(logits("out")) == 1


def test_a_cancelled_task_is_an_error_and_an_interrupt_cancels_the_array(real, data_root, capsys):
    """Each later command finds what the one before left, and starts nothing twice."""
    argv = [*sweep(data_root, "Slow", "1-2", 400, "--plugin", "mine.py", "TRAIN.CHECKPOINT_FREQ", "1"), *SLURM]
    argv += ["--jobs", "2"]
    first = driver(argv)
    job = until(lambda: queue("%F"))[0]
    until(lambda: len(list(Path("out").glob("digits/Slow/*/seed*/*/model.pth.tar-*"))) >= 2)
    first.send_signal(signal.SIGKILL)  # as if the connection broke: the tasks stay
    first.wait()
    assert len(queue()) == 2
    second = driver(argv)
    until(lambda: "Waiting for SLURM job" in second.stderr.readline())
    subprocess.run(["scancel", f"{job}_1"], check=True)
    error = until(lambda: next((line for line in second.stderr if "CANCELLED" in line), None))
    folder = submissions()[0]
    assert f"{job}_1" in error and str(folder / f"{job}_1_0_log.err") in error and len(submissions()) == 1
    second.send_signal(signal.SIGINT)
    assert second.wait() == 130 and "run the same command again" in second.stderr.read()
    until(lambda: not queue())
    assert not list(Path("out").rglob("done"))
    assert main([*argv, "--detach"]) == 0
    error = capsys.readouterr().err
    assert error.count("submitted again") == 2 and "SLURM task" in error and len(submissions()) == 2
    subprocess.run(["scancel", "--me"], check=True)
    # A task of which SLURM knows nothing: its number is of another time.
    record = submissions()[1] / "tasks.json"
    record.write_text(re.sub(r'"\d+_', '"98765_', record.read_text()))
    assert main([*argv, "--detach"]) == 0
    assert "98765_0 left the queue" in capsys.readouterr().err and len(submissions()) == 3
    subprocess.run(["scancel", "--me"], check=True)


def test_a_task_that_no_node_can_run_is_explained(real, data_root, capsys):
    argv = sweep(data_root, "ZeroshotCLIP", "1", 1, "--launcher", "slurm", "--slurm", "cpus_per_task=64")
    command = driver(argv)
    limit = threading.Timer(120, command.kill)  # then the next line fails instead of waiting
    limit.start()
    line = next((line for line in command.stderr if "change --slurm" in line), "")
    limit.cancel()
    assert "PENDING (" in line and "1 task" in line
    command.send_signal(signal.SIGKILL)  # the task stays
    command.wait()
    assert main([*argv, "--detach"]) == 0  # a later command explains it at once
    assert line in capsys.readouterr().err
    subprocess.run(["scancel", "--me"], check=True)
    until(lambda: not queue())


def test_a_wrong_option_is_one_line_with_the_message_of_sbatch(real, data_root, capfd):
    given = sweep(data_root, "ZeroshotCLIP", "1", 1, "--launcher", "slurm", "--slurm")
    for option, expected in (("partition=nowhere", "nowhere"), ("partitoin=main", "--partitoin"), ("mem=x", "mem")):
        place = given.index("--slurm") + 1
        assert main([*given[:place], option, *given[place:]]) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert "sbatch" in line and expected in line
    assert not submissions() and not [path for path in Path("out/.slurm").iterdir() if path.is_dir()]
