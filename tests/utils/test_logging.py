"""Tests of log files, and of the exit codes of processes in one group."""

import logging
import os
import socket
import subprocess
import sys

import pytest

from unskew.utils.errors import format_error
from unskew.utils.logging import setup_logger

logger = logging.getLogger("unskew")


def test_the_traceback_of_an_error_is_in_the_log_only(tmp_path, capsys):
    with pytest.raises(KeyError), setup_logger(tmp_path, console=False):
        logger.info("a line with a lone surrogate: \udc80")
        {}["nothing"]
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert lines[0] == "a line with a lone surrogate: \\udc80"
    assert lines[1:3] == ["Stopped", "Traceback (most recent call last):"] and lines[-1] == "KeyError: 'nothing'"
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_does_not_hide_an_error(tmp_path, capsys):
    (tmp_path / "log.txt").symlink_to("/dev/full")
    with pytest.raises(ValueError, match="the error itself"), setup_logger(tmp_path, console=False):
        for _ in range(3):
            logger.info("a line")
        raise ValueError("the error itself")
    log = tmp_path / "log.txt"
    assert capsys.readouterr().err == f"the log '{log}' cannot be written (No space left on device)\n"
    assert not logger.handlers


def test_a_run_continues_when_the_reader_of_its_lines_has_ended(tmp_path):
    code = (
        "import sys, logging\nfrom unskew.utils.logging import setup_logger\n"
        "with setup_logger(sys.argv[1]):\n"
        "    for number in range(3):\n        logging.getLogger('unskew').info(f'line {number}')\n"
        "print('done', flush=True)"
    )
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "log.txt").read_text() == "line 0\nline 1\nline 2\n"


def test_an_error_is_one_line():
    worker = "Caught ValueError in worker 0.\nOriginal Traceback (most recent call last):\n  ...\nValueError: one.png\n"
    assert format_error(ValueError(worker)) == "one.png"
    assert format_error(RuntimeError("my own bug\n  second line\n")) == "my own bug second line"
    assert format_error(KeyError()) == "KeyError"


def test_an_error_without_a_text_is_named():
    class Unreadable(ValueError):
        def __str__(self):
            raise RuntimeError("a plugin's mistake")

    assert format_error(Unreadable()) == "Unreadable"


SCRIPT = """
import atexit, sys, threading, time
import torch
from unskew.engine.accelerator import build_accelerator

def free():
    time.sleep(0.1)
    freed.append(True)

# Gloo's threads may still free the last exchange and need the interpreter for it, like this thread.
freed = []
atexit.register(lambda: print(bool(freed)))  # registered first, so called last
accelerator = build_accelerator(use_cuda=False)
try:
    for step in range(6):
        if step == 3 and accelerator.process_index == 1:
            sys.exit(2)
        accelerator.reduce(torch.ones(1000), "mean")
finally:
    threading.Thread(target=free, daemon=True).start()
"""


@pytest.mark.slow
def test_if_one_process_of_a_group_exits_the_other_one_ends_too():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, **group, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [1, 2], outputs
    assert [output for output, _ in outputs] == ["True\n", "True\n"]
