"""Processes that work together end with the code of what happened to them."""

import os
import socket
import subprocess
import sys

import pytest

SCRIPT = """
import atexit, sys
import torch
from unskew.runtime import build_accelerator

# Registered first, so called last: an interpreter that ends within the group may be aborted by Gloo's threads.
atexit.register(lambda: print(torch.distributed.is_initialized()))
accelerator = build_accelerator(use_cuda=False)
for step in range(6):
    if step == 3 and accelerator.process_index == 1:
        sys.exit(2)
    accelerator.reduce(torch.ones(1000), "mean")
"""


@pytest.mark.slow
def test_a_process_that_gives_up_leaves_the_group_and_the_other_one_ends_too():
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
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [1, 2], said
    assert [output for output, _ in said] == ["False\n", "False\n"]
