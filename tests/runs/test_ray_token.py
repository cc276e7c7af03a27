"""The token by which Ray knows its processes."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS")


def environment(home, **others):
    given = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return given | {"HOME": str(home), **others}


@contextlib.contextmanager
def head(home):
    """Start the head of a cluster with a token in a home folder; yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text(secrets.token_hex(32), encoding="utf-8")
    # Sockets need a short path.
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, open(home / "log", "wb") as log:
        command = [str(Path(sys.executable).with_name("ray")), "start", "--head", f"--port={port}", "--block"]
        command += ["--num-cpus=1", "--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={folder}"]
        command += ["--object-store-memory=100000000"]
        options = {"stdout": log, "stderr": subprocess.STDOUT, "start_new_session": True}
        process = subprocess.Popen(command, env=environment(home, RAY_AUTH_MODE="token"), **options)
        try:
            limit = time.monotonic() + 120
            while b"Ray runtime started" not in (home / "log").read_bytes():
                assert process.poll() is None and time.monotonic() < limit, (home / "log").read_text(encoding="utf-8")
                time.sleep(0.2)
            yield f"127.0.0.1:{port}"
        finally:
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(timeout=30)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_a_sweep_sends_the_token_of_the_cluster_or_asks_for_it(tmp_path):
    home, stranger = tmp_path / "home", tmp_path / "stranger"
    stranger.mkdir()
    words = ["sweep", "-d", "digits", "-t", "ZeroshotCLIP", "--launcher", "ray", "--output", str(tmp_path / "out")]
    command = [sys.executable, "-m", "unskew", *words]

    def sweep(home):
        variables = environment(home, RAY_ADDRESS=address, UNSKEW_CACHE=str(tmp_path / "cache"))
        return subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    with head(home) as address:
        refused, done = sweep(stranger), sweep(home)
    assert refused.returncode == 2 and "copy the head node's ~/.ray/auth_token" in refused.stderr.splitlines()[-1]
    assert done.returncode == 0, done.stderr
    assert "ZeroshotCLIP" in done.stdout


def test_a_ray_of_our_own_needs_no_home_folder(tmp_path):
    words = ["sweep", "-d", "digits", "-t", "ZeroshotCLIP", "--seeds", "1-2", "--jobs", "2"]
    command = [sys.executable, "-m", "unskew", *words, "--output", str(tmp_path / "out")]
    variables = environment("/proc/no-home", UNSKEW_CACHE=str(tmp_path / "cache"))
    done = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "ZeroshotCLIP" in done.stdout
