"""`local --jobs N` and failures on Ray, with real processes."""

import os
import signal
import subprocess
import sys
import time

import pytest
from plugin_traces import as_a_process
from ray_clusters import PLUGIN, journal, results

from unskew.cli.main import main
from unskew.runs.launch import launch, plan
from unskew.runs.launchers import Options, build

pytestmark = pytest.mark.ray

SHORT = ["INPUT.VIEWS", "1", "DATALOADER.NUM_WORKERS", "0"]


@pytest.fixture
def at(tmp_path, monkeypatch):
    """An empty current folder with the plugin, an empty cache, and a journal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNSKEW_CACHE", str(tmp_path / "cache"))
    (tmp_path / "steady.py").write_text(PLUGIN, encoding="utf-8")
    with journal(monkeypatch) as lines, as_a_process(tmp_path):
        yield lines


def command(trainers, root, *words):
    command = ["sweep", "-d", "digits", "-t", trainers, "--shots", "1", "--seeds", "1-2", "--root", root]
    return [*command, "--plugin", "steady.py", *words, *SHORT]


def unskew(*words):
    return [sys.executable, "-m", "unskew", *words]


def children_of(session):
    """Return the commands of the processes of a session."""
    lines = subprocess.run(["ps", "-eo", "sess,args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if line.split()[0] == str(session)]


def workers_of(process):
    """Return the IDs of the workers that descend from a process; other tests may have workers at the same time."""
    lines = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in lines.splitlines()[1:]]
    family = {str(process)}
    while more := {pid for pid, parent, _ in rows if parent in family} - family:
        family |= more
    return {pid for pid, _, command in rows if pid in family and command.startswith("ray::Worker")}


def is_worker(process):
    """Return whether a process is a worker of Ray, and no zombie."""
    command = ["ps", "-o", "args=", "-p", process]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.startswith("ray::Worker")


def test_two_workers_equal_this_process(at, data_root, tmp_path, monkeypatch):
    """Both workers encode the same images at once; failures, warnings and the table are those of one process."""
    words = command("Steady,GLA,Backdoor,Failing", data_root, "--threads", "2")
    words += ["OPTIM.MAX_EPOCH", "1"]
    answer = subprocess.run(
        unskew(*words, "--output", "two", "--jobs", "2"), capture_output=True, text=True, check=False
    )
    assert {line[4] for line in at.lines()} == {"2"}  # threads
    monkeypatch.setenv("UNSKEW_CACHE", str(tmp_path / "another"))
    expected = subprocess.run(unskew(*words, "--output", "one"), capture_output=True, text=True, check=False)
    assert answer.returncode == expected.returncode == 2, answer.stderr
    assert answer.stdout == expected.stdout and "Backdoor" in answer.stdout
    ours, theirs = results("one"), results("two")
    assert ours.keys() == theirs.keys() and len(ours) == 6
    for name, parts in theirs.items():
        assert parts == ours[name], name
    error = answer.stderr
    assert error.count("Odd: of a plugin (two/digits/Failing") == 1 and "failed as run" in error
    assert error.count("steady trainers are for tests") == 1
    assert len(error.splitlines()) == len(expected.stderr.splitlines())

    begun = len(at.lines("begin"))
    assert main([*words, "--output", "two", "--jobs", "2"]) == 2  # only the failing runs again
    assert len(at.lines("begin")) == begun


def test_an_interrupt_stops_all_processes_and_the_next_sweep_resumes(at, data_root, monkeypatch):
    monkeypatch.setenv("UNSKEW_TEST_PAUSE", "1")
    words = command("Steady", data_root, "--output", "out", "--jobs", "2")
    words += ["OPTIM.MAX_EPOCH", "8", "TRAIN.CHECKPOINT_FREQ", "1"]
    process = subprocess.Popen(
        unskew(*words),
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background process ignores it
    )
    at.wait(lambda lines: len({line[2] for line in lines if line[0] == "epoch"}) == 2)  # both workers train
    time.sleep(1.5)  # for the checkpoint, which follows the journal's line
    for _ in range(12):  # an impatient user; a terminal sends it to all processes
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.1)
    error = process.communicate()[1]
    assert process.returncode == 130 and "interrupted" in error and "Traceback" not in error
    deadline = time.monotonic() + 20
    while children := children_of(process.pid):
        assert time.monotonic() < deadline, children
        time.sleep(0.2)

    monkeypatch.setenv("UNSKEW_TEST_PAUSE", "0")
    at.path.unlink()
    assert subprocess.run(unskew(*words), capture_output=True, check=False).returncode == 0
    assert len(at.lines("begin")) == 2 and all(int(line[3]) > 0 for line in at.lines("begin"))


def test_a_run_that_kills_its_worker_is_tried_three_times(at, data_root, tmp_path, capsys):
    words = command("Fatal,ZeroshotCLIP", data_root, "--seeds", "1", "--output", "out", "--jobs", "2")
    assert main(words) == 2
    answer = capsys.readouterr()
    assert len(at.lines("died")) == 3
    assert "its worker died 3 times" in answer.err and "ZeroshotCLIP" in answer.out
    assert "raylet" not in answer.err + answer.out


def test_missing_weights_stop_the_workers(at, data_root, capsys):
    words = command("CoOp", data_root, "--seeds", "1-6", "--output", "out", "--jobs", "2", "-b", "RN50@nowhere.pt")
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "nowhere.pt" in error and "of 6 runs were not started" in error


def test_a_closed_iterator_leaves_no_worker(at, data_root, monkeypatch):
    import ray

    monkeypatch.setenv("UNSKEW_TEST_PAUSE", "60")
    opts = {"OPTIM.MAX_EPOCH": 2, "INPUT.VIEWS": 1}
    runs = plan(
        "digits", ["ZeroshotCLIP", "Steady"], shots=[1], seeds=[1], root=data_root, opts=opts, plugins=["steady.py"]
    )
    outcomes = launch(runs, build(Options(jobs=2), "output"))
    position, outcome = next(outcomes)
    assert position == 0 and outcome["accuracy"] > 50
    at.wait(lambda lines: lines)
    workers = workers_of(os.getpid())
    assert workers
    outcomes.close()
    assert not ray.is_initialized()
    assert not any(map(is_worker, workers))
