"""The scripts of the protocols, end to end on the embedded world with short schedules."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unskew.runs import tables

ROOT = Path(__file__).parents[2]
SHORT = "OPTIM.MAX_EPOCH 1 INPUT.VIEWS 1 DATALOADER.NUM_WORKERS 0"

# The words of each script, its environment, and the columns of its last table. `all` are the embedded datasets.
SCRIPTS = {
    "run_fewshot": ("all 1,2 ZeroshotCLIP CLIPAdapter", {}, ["1 shot", "2 shots"]),
    "base_to_new": ("shapes 1", {}, ["base", "new", "H"]),
    "cross_dataset": ("shapes patterns shapes_shifted", {"SHOTS": "1"}, ["patterns", "shapes_shifted", "average"]),
    "domain_generalisation": ("shapes shapes_shifted", {"SHOTS": "1"}, ["shapes_shifted"]),
    "run_longtail": ("digits_lt FineTune GLA Backdoor", {"BACKBONES": "micro-a"}, ["forward 50", "backward 50"]),
}

pytestmark = pytest.mark.world


def start(name, words, data, output, **environment):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    place = {"DATA": data, "OUTPUT": str(output), "SEEDS": "1", "PATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        ["bash", str(ROOT / "scripts" / f"{name}.sh"), *words.split()],
        env={**os.environ, **place, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs_to_its_table_and_reads_finished_parts_when_repeated(name, data_root, tmp_path):
    words, environment, columns = SCRIPTS[name]
    words = f"{words} {SHORT}"
    out, err = start(name, words, data_root, tmp_path, **environment).communicate()
    header = [line for line in out.splitlines() if line.startswith("| ") and all(f" {c} " in line for c in columns)]
    assert header, out + err
    plan, _ = start(name, f"{words} --dry-run", data_root, tmp_path, **environment).communicate()
    first, planned = re.search(r"(\d+) of (\d+) runs", plan).groups()
    assert first == planned and "| new " not in plan
    again, err = start(name, words, data_root, tmp_path, **environment).communicate()
    assert again == out and err.count("finished earlier") == len(re.findall("^(run|evaluation) ", err, re.MULTILINE))


def test_a_killed_protocol_resumes_where_it_was(data_root, tmp_path):
    words = f"digits 1 ZeroshotCLIP CLIPAdapter {SHORT}"
    process = start("base_to_new", words, data_root, tmp_path)
    deadline = time.monotonic() + 300
    while not any(tmp_path.rglob("done")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    finished = len(list(tmp_path.rglob("done")))
    assert 0 < finished < 4, "the protocol ended before it was killed"
    out, err = start("base_to_new", words, data_root, tmp_path).communicate()
    assert err.count("finished earlier") == finished and "CLIPAdapter" in out
    assert len(tables.evaluations(tmp_path)) == len(tables.collect(tmp_path)) == 2
