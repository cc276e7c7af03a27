"""Pools that passes over large files are spread on."""

import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from unskew.cli.pools import open_pool


def place(number):
    return number, os.getpid()


def test_one_job_needs_no_pool():
    for jobs in (None, 1):
        with open_pool("local", jobs) as pool:
            assert pool is None


def test_local_processes_keep_the_order():
    with open_pool("local", 2) as pool:
        found = list(pool.map(place, range(20)))
    assert [number for number, _ in found] == list(range(20))
    assert os.getpid() not in {process for _, process in found}
    assert not multiprocessing.active_children()


def kill(_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_ends_the_passes():
    with pytest.raises(ChildProcessError, match="a smaller --jobs"), open_pool("local", 2) as pool:
        list(pool.map(kill, range(4)))
    assert not multiprocessing.active_children()


def test_an_error_of_a_process_does_not_wait_for_the_others():
    with pytest.raises(ValueError, match="math domain error"), open_pool("local", 2) as pool:
        slow = pool.submit(time.sleep, 600)
        list(pool.map(math.sqrt, [1, -1]))
    assert slow.done() and not multiprocessing.active_children()


SLEEP = """
import time
from unskew.cli.pools import open_pool
if __name__ == "__main__":
    with open_pool("local", 2) as pool:
        pool.submit(time.sleep, 0).result()  # one process has started, and the other will start
        futures = [pool.submit(time.sleep, 600) for _ in range(2)]
        print("ready", flush=True)
        time.sleep(600)
"""


def processes_of(group: int) -> list[str]:
    found = subprocess.run(["ps", "-o", "stat=,args=", "-g", str(group)], capture_output=True, text=True)
    return [line for line in found.stdout.splitlines() if not line.startswith("Z")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_all_processes_without_their_tracebacks(number, tmp_path):
    """A terminal interrupts all processes, at any moment; SIGKILL of the first one alone leaves no others."""
    script = tmp_path / "sleep.py"
    script.write_text(SLEEP)
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen([sys.executable, str(script)], **options) as command:
        assert command.stdout.readline() == "ready\n"
        os.killpg(command.pid, number) if number == signal.SIGINT else command.send_signal(number)
        _, errors = command.communicate(timeout=60)
    assert errors.count("Traceback") == (number == signal.SIGINT)  # of this script
    last = time.monotonic() + 30
    while (left := processes_of(command.pid)) and time.monotonic() < last:
        time.sleep(0.1)
    assert not left


def test_ray_that_is_not_installed_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'unskew\[ray\]'"), open_pool("ray", 2):
        pass


@pytest.mark.ray
def test_ray_keeps_the_order_and_ends(monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with open_pool("ray", 1) as pool:
        assert pool.map(math.sqrt, range(20)) == list(map(math.sqrt, range(20)))
    assert not ray.is_initialized()
    with pytest.raises(ValueError, match=r"^math domain error|^expected a nonnegative"), open_pool("ray", 1) as pool:
        pool.map(math.sqrt, [-1])
    with pytest.raises(ValueError, match="--jobs 99999"), open_pool("ray", 99999):
        pass
    assert not ray.is_initialized()
