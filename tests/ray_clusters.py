"""Clusters of Ray on one computer, and a trainer that keeps a journal."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# CoOp that writes when and where a training begins and ends, and which may pause or die between epochs.
PLUGIN = """
import logging, os, time
import torch
from unskew.trainers.coop import CoOp
from unskew.engine.trainer import TRAINER_REGISTRY

def note(word, trainer):
    import ray
    node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else "local"
    run = "/".join(str(trainer.output_dir).split("/")[-3:])
    with open(os.environ["UNSKEW_TEST_JOURNAL"], "a") as file:
        file.write(f"{word} {node} {run} {trainer.start_epoch} {torch.get_num_threads()}\\n")

@TRAINER_REGISTRY.register()
class Steady(CoOp):
    def before_train(self):
        super().before_train()
        logging.getLogger("unskew").warning("steady trainers are for tests")
        note("begin", self)

    def after_epoch(self):
        super().after_epoch()
        note("epoch", self)
        time.sleep(float(os.environ.get("UNSKEW_TEST_PAUSE", 0)))

    def after_train(self):
        super().after_train()
        note("end", self)

@TRAINER_REGISTRY.register()
class Fatal(Steady):
    def after_epoch(self):
        note("died", self)
        os.kill(os.getpid(), 9)

class Odd(Exception):
    pass

@TRAINER_REGISTRY.register()
class Failing(Steady):
    def before_train(self):
        raise Odd("of a plugin")
"""


class Journal:
    """The lines that the plugin writes: (word, node, run, start epoch, threads)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self, word=""):
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        lines = [tuple(line.split()) for line in text.splitlines()]
        return [line for line in lines if not word or line[0] == word]

    def wait(self, found, seconds=120):
        """Return the first true value of ``found(lines)``."""
        deadline = time.monotonic() + seconds
        while not (value := found(self.lines())):
            assert time.monotonic() < deadline, self.lines()
            time.sleep(0.05)
        return value


@contextlib.contextmanager
def journal(monkeypatch):
    """Keep a journal outside the folder of the tests, which some nodes do not see."""
    folder = Path(tempfile.mkdtemp(prefix="unskew-journal-"))
    monkeypatch.setenv("UNSKEW_TEST_JOURNAL", str(folder / "journal"))
    try:
        yield Journal(folder / "journal")
    finally:
        shutil.rmtree(folder)


def _head():
    from ray.cluster_utils import Cluster

    return Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})


@contextlib.contextmanager
def shared_nodes(monkeypatch, count=2):
    """Start a head without CPUs and ``count`` nodes with one CPU; yield a function that kills a node by its ID."""
    cluster = _head()
    try:
        nodes = {node.node_id: node for node in (cluster.add_node(num_cpus=1) for _ in range(count))}
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        yield lambda name: cluster.remove_node(nodes[name], allow_graceful=False)
    finally:
        cluster.shutdown()


def can_unshare() -> bool:
    """Return whether this user may start processes with mounts of their own."""
    command = [*_UNSHARE, "mount", "-t", "tmpfs", "none", "/mnt"]
    return bool(shutil.which("unshare")) and subprocess.run(command, capture_output=True, check=False).returncode == 0


_UNSHARE = ["unshare", "--map-root-user", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]


@contextlib.contextmanager
def own_nodes(monkeypatch, hidden, count=2):
    """Start nodes that have an empty disk of their own at the folder ``hidden``; yield as `shared_nodes` does."""
    cluster = _head()
    processes = {}
    script = 'mount -t tmpfs none "$0" && cd / && exec "$@"'
    ray = str(Path(sys.executable).with_name("ray"))
    try:
        with tempfile.TemporaryFile() as log:
            for number in range(count):  # one after another: two at once may choose the same free port
                start = [ray, "start", f"--address={cluster.address}", "--num-cpus=1", "--num-gpus=0", "--block"]
                start += [f"--node-name=own{number}", "--object-store-memory=100000000", "--disable-usage-stats"]
                start += ["--min-worker-port=0", "--max-worker-port=0"]
                processes[f"own{number}"] = subprocess.Popen(
                    [*_UNSHARE, "sh", "-c", script, str(hidden), *start],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "RAY_TMPDIR": "/tmp", "TMPDIR": str(hidden)},
                )
                _wait_for(cluster, number + 2, processes[f"own{number}"], log)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        yield lambda name: processes[_names(cluster)[name]].kill()
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
        cluster.shutdown()


def _names(cluster):
    return {node["NodeID"]: node["NodeName"] for node in cluster.global_state.node_table()}


def _wait_for(cluster, count, process, log):
    deadline = time.monotonic() + 120
    while sum(node["Alive"] for node in cluster.global_state.node_table()) < count:
        if process.poll() is not None or time.monotonic() > deadline:
            log.seek(0)
            raise AssertionError(f"a node does not start: {log.read().decode(errors='replace')}")
        time.sleep(0.2)


# --- results ----------------------------------------------------------------------------------------


def results(output):
    """Return the results of all runs and evaluations: metrics without costs, bytes of the predictions, files."""
    costs = ("seconds", "peak_memory_mb", "images_encoded", "images_cached")
    found = {}
    for done in sorted(Path(output).rglob("done")):
        folder = done.parent
        if not (folder / "metrics.json").is_file():  # a member
            continue
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        metrics = {key: value for key, value in metrics.items() if key not in costs}
        files = sorted(
            str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file() and "tfevents" not in f.name
        )
        found[str(folder.relative_to(output))] = (
            metrics,
            (folder / "predictions.safetensors").read_bytes(),
            files,
            done.read_text(encoding="utf-8"),
        )
    return found
