"""SLURM on this computer, for tests: `python tests/slurm/cluster.py start FOLDER`, later `stop FOLDER`.

The daemons use ports, a socket and files of their own, so several clusters can run at once. They need no cgroups, no
accounting, and no init system. Debian's packages slurm-wlm and munge have all programs.
"""

import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "srun", "sinfo")
DAEMONS = ("slurmd", "slurmctld", "munged")  # in the order in which they stop
SECONDS = 60  # for the start and for the end


def start(folder: Path) -> Path:
    """Start the daemons with their files in an empty folder; return the configuration for SLURM_CONF.

    Raises:
        RuntimeError: a program is missing, or a daemon does not start; the message has the end of its log.
    """
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    programs = {name: shutil.which(name, path=path) for name in PROGRAMS}
    if missing := [name for name, found in programs.items() if not found]:
        raise RuntimeError(f"{', '.join(missing)} missing: install slurm-wlm and munge")
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)  # munged wants its socket to be in reach of all
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    conf = folder / "slurm.conf"
    controller_port, node_port = _free_ports()
    values = {
        **{"host": socket.gethostname().partition(".")[0], "user": getpass.getuser(), "folder": folder},
        **{"controller_port": controller_port, "node_port": node_port},
    }
    template = Path(__file__).with_name("slurm.conf").read_text()
    conf.write_text(re.sub(r"\{(\w+)\}", lambda match: str(values[match[1]]), template))
    options = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munged.pid", "seed-file": "munged.seed"}
    files = [f"--{name}={folder / file}" for name, file in {**options, "log-file": "munged.log"}.items()]
    try:
        _launch([programs["munged"], "--num-threads=2", *files], folder / "munged.log")
        _launch([programs["slurmctld"], "-f", str(conf)], folder / "slurmctld.log")
        _launch([programs["slurmd"], "-f", str(conf)], folder / "slurmd.log")
        _wait_for_node(conf, folder / "slurmd.log")
    except RuntimeError:
        stop(folder)
        raise
    return conf


def stop(folder: Path) -> None:
    """Cancel all jobs, stop the daemons and delete their files."""
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    limit = time.monotonic() + SECONDS
    with suppress(subprocess.SubprocessError, OSError):
        if (folder / "slurmd.pid").is_file():
            subprocess.run(["scancel", "--me"], env=environment, capture_output=True, timeout=10)
            while _output(["squeue", "--noheader"], environment) and time.monotonic() < limit:
                time.sleep(0.5)
    for name in DAEMONS:
        with suppress(OSError, ValueError):
            _end(int((folder / f"{name}.pid").read_text()))
    shutil.rmtree(folder, ignore_errors=True)


def _launch(command: list, log: Path) -> None:
    """Start a daemon, which goes to the background."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode:
        lines = [*done.stderr.splitlines(), *(log.read_text().splitlines() if log.is_file() else [])]
        raise RuntimeError(f"{Path(command[0]).name} does not start: {' | '.join(lines[-3:])}")


def _wait_for_node(conf: Path, log: Path) -> None:
    environment = {**os.environ, "SLURM_CONF": str(conf)}
    limit = time.monotonic() + SECONDS
    while _output(["sinfo", "--noheader", "--format=%T"], environment) != "idle":
        if time.monotonic() > limit:
            raise RuntimeError(f"the node is not idle: {' | '.join(log.read_text().splitlines()[-3:])}")
        time.sleep(0.5)


def _output(command: list[str], environment: dict) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS).stdout.strip()


def _free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        for one in (first, second):
            one.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]


def _end(process: int) -> None:
    """End a daemon, by force after some seconds."""
    os.kill(process, signal.SIGTERM)
    limit = time.monotonic() + 10
    while _runs(process):
        if time.monotonic() > limit:
            os.kill(process, signal.SIGKILL)
            return
        time.sleep(0.1)


def _runs(process: int) -> bool:
    """Return whether a process runs; one that has ended stays in the table until its parent looks."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


if __name__ == "__main__":
    verb, place = sys.argv[1:]
    if verb == "start":
        print(f"export SLURM_CONF={start(Path(place).absolute())}")
    else:
        stop(Path(place).absolute())
