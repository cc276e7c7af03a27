"""The benchmarks run, small, from the command line that their docs give."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_prior_recovery(data_root, tmp_path):
    flags = ["--datasets", "digits", "--shots", "1", "2", "--seeds", "1", "--root", data_root]
    files = ["--json", str(tmp_path / "rows.json"), "--plot", str(tmp_path / "plot.png")]
    command = [sys.executable, str(ROOT / "benchmarks" / "prior_recovery.py"), *flags, *files]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "digits: accuracy (%) of GLA with that q, by shots" in done.stdout
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    found = {(row["shots"], row["name"]): row for row in rows if row["study"] == "recovery"}
    assert found[2, "true"]["kl"] == pytest.approx(0, abs=1e-5)
    assert found[2, "convex, strength 1"]["correlation"] > 0.7
    em, convex = found[2, "em, no labels"], found[2, "convex, strength 1"]
    assert em["kl"] == pytest.approx(convex["kl"], abs=1e-4)  # balanced samples: the same optimum
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_backdoor_controls(data_root, tmp_path):
    flags = ["--dataset", "digits_lt", "--seeds", "1", "--root", data_root, "--json", str(tmp_path / "rows.json")]
    command = [sys.executable, str(ROOT / "benchmarks" / "backdoor_controls.py"), *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "3 models" in done.stdout
    assert json.loads((tmp_path / "rows.json").read_text())["rows"]


def test_listing(tmp_path):
    flags = ["--files", "10007", "--classes", "20", "--json", str(tmp_path / "rows.json")]
    command = [sys.executable, str(ROOT / "benchmarks" / "listing.py"), *flags]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert "10007 files in 20 folders" in done.stdout and "the list from its file" in done.stdout
    rows = {row["name"]: row["seconds"] for row in json.loads((tmp_path / "rows.json").read_text())["rows"]}
    assert len(rows) == 5 and rows["the list from its file"] < rows["the same, each image looked up"]
    assert not list(tmp_path.rglob("imagenet"))  # the tree is gone
