"""Tests of every reader on hostile files: an error of one line, with little memory and in little time.

The readers run in one process of their own, because a limit on its memory cannot be lifted.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "hostile.py"

# What a reader may make of a file: nothing in it is against its format, or a flipped bit does not show.
READ = {
    "config": {"empty"},
    "table": {"empty"},
    "checkpoint": {"complex", "sparse", "quantised", "meta", "expanded", "float8", "keys of tuples"},
    "best checkpoint": {"a pipe", "a device"},  # the same as no checkpoint
}

READERS = [
    *("few-shot files", "CIFAR", "scripts' pickles", "logits, npy", "logits, pt", "logits, safetensors", "prior, npy"),
    *("source, npy", "source, safetensors"),
    *("prior, pt", "prior, json", "prior, csv", "checkpoint", "best checkpoint", "config", "dataset", "run", "metrics"),
    *("split", "table", "class names", "csv", "MATLAB"),
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    command = [sys.executable, str(PROGRAM), str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS and /dev/zero")
@pytest.mark.parametrize("reader", READERS)
def test_hostile_files_are_refused_in_one_line(reader, outcomes):
    assert set(outcomes) == set(READERS)
    bad = {damage: outcome for damage, outcome in outcomes[reader].items() if outcome != "refused"}
    if reader == "MATLAB":  # a flipped bit may not show
        assert set(bad.values()) <= {"read"} and not any(" is " in damage for damage in bad)
    else:
        assert bad == dict.fromkeys(READ.get(reader, ()), "read")
