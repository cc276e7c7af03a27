"""The command `unskew` with the processor time of its phases, calls that are counted, and its peak memory.

    python benchmarks/phases.py FILE.json train --dataset digits --trainer CoOp --shots 1

`run` does this in a new process. The functions of a phase are wrapped by name as soon as their module is imported;
missing names are skipped, so that versions with other functions can be compared. Time in a nested phase belongs to
that phase alone. The exceptions are imports and groups, which keep all the time inside them. The module imports only
the standard library, since imports are measured too.
"""

import builtins
import functools
import importlib
import json
import os
import resource
import runpy
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path

# Functions by phase: `module:function` or `module:Class.method`, with `*` for any module or class.
PHASES = {
    "config": ("unskew.runs.launch:plan", "unskew.config.load:load", "unskew.config.load:derive"),
    "data": (
        "unskew.data.dataset:build_dataset",
        "unskew.data.loaders:DataManager.__init__",
        "unskew.engine.fingerprint:files",  # sizes and times of the images
    ),
    "backbone": ("unskew.clip.backbones:load_backbone",),
    "images": ("unskew.clip.features:extract",),
    "text": ("unskew.clip.text:zeroshot_classifier",),
    "training": ("unskew.engine.*:*.train", "unskew.trainers.*:*.train"),
    "test": ("unskew.engine.testing:evaluate",),
    "groups": ("unskew.engine.dataset_groups:dataset_groups",),
    "files": (
        "unskew.utils.files:write_atomically",
        "unskew.engine.results:write_results",
        "unskew.engine.results:results_of",
    ),
}
NAMES = ("imports", *PHASES, "rest", "exit")
CLOSED = ("imports", "groups")
COUNTED = {
    "listings": ("unskew.data.image_folders:list_images",),
    "builds": ("unskew.data.dataset:build_dataset",),
    "batches encoded": ("unskew.clip.backbones:Backbone.encode_image",),
}
COUNTS = (*COUNTED, "os.scandir", "os.stat")


class Watch:
    """Processor time of all threads by phase, of which the main thread is in one at a time, and counts of calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.counts: Counter[str] = Counter()
        self._open = ["rest"]
        self._since = time.process_time()
        self.seconds["imports"] = self._since  # the start of Python

    def _switch(self) -> None:
        now = time.process_time()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def phase(self, name: str, function: Callable) -> Callable:
        """Return the function with its time added to a phase."""

        @functools.wraps(function)
        def timed(*args, **kwargs):
            if self._open[-1] in (name, *CLOSED) or threading.current_thread() is not threading.main_thread():
                return function(*args, **kwargs)
            self._switch()
            self._open.append(name)
            try:
                return function(*args, **kwargs)
            finally:
                self._switch()
                self._open.pop()

        return timed

    def count(self, name: str, function: Callable) -> Callable:
        """Return the function with its calls counted, without those that imports make."""

        @functools.wraps(function)
        def counted(*args, **kwargs):
            self.counts[name] += self._open[-1] != "imports"
            return function(*args, **kwargs)

        return counted

    def wrap(self, module) -> None:
        """Wrap the functions of a module that a phase or a count names."""
        for table, wrapper in ((PHASES, self.phase), (COUNTED, self.count)):
            for name, targets in table.items():
                for place, path in (target.split(":") for target in targets):
                    for owner, function in _found(module, path) if fnmatch(module.__name__, place) else ():
                        setattr(owner, function, wrapper(name, vars(owner)[function]))

    def start(self) -> None:
        """Time imports, count the calls of ``os``, and wrap each module of unskew when it is imported."""
        sys.meta_path.insert(0, _Finder(self.wrap))
        builtins.__import__ = self.phase("imports", builtins.__import__)
        importlib.import_module = self.phase("imports", importlib.import_module)
        for name in ("scandir", "stat"):
            setattr(os, name, self.count(f"os.{name}", getattr(os, name)))

    def result(self) -> dict:
        """Return the seconds by phase, the counts and the peak memory in bytes (``None`` if it is not known)."""
        self._switch()
        status = Path("/proc/self/status")
        lines = status.read_text().splitlines() if status.exists() else []
        peak = [1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
        return {"phases": self.seconds, "counts": self.counts, "peak_bytes": peak[0] if peak else None}


def _found(module, path: str) -> list[tuple[object, str]]:
    """Return the owners, the module or its classes, that define the function of a path, and its name."""
    owner, _, function = path.rpartition(".")
    owners = [module]
    if owner:
        classes = [value for value in vars(module).values() if isinstance(value, type)]
        owners = [c for c in classes if c.__module__ == module.__name__ and fnmatch(c.__name__, owner)]
    return [(owner, function) for owner in owners if callable(vars(owner).get(function))]


class _Finder:
    """A finder that calls a function with each module of unskew after its import."""

    def __init__(self, call: Callable) -> None:
        self.call = call

    def find_spec(self, name: str, path: Sequence[str] | None = None, target=None):
        if not name.startswith("unskew."):
            return None
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, found), None)
        if spec and hasattr(spec.loader, "exec_module"):
            execute = spec.loader.exec_module
            spec.loader.exec_module = lambda module: (execute(module), self.call(module))
        return spec


def run(arguments: Sequence[str], cache: Path, folder: Path) -> dict:
    """Run a command of `unskew` with one thread in a new process.

    Args:
        arguments: the command and its flags.
        cache: the folder of unskew's cache.
        folder: a folder for the file of the numbers.

    Returns:
        Wall ``seconds``, ``cpu`` seconds of user and system, and `Watch.result` with a further phase, Python's exit.

    Raises:
        RuntimeError: the command failed; the message is its last line.
    """
    file = folder / "phases.json"
    one = {"UNSKEW_CACHE": str(cache), "OMP_NUM_THREADS": "1", "UNSKEW_THREADS": "1"}
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, __file__, str(file), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **one})
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    result = json.loads(file.read_text())
    result["phases"]["exit"] = cpu - sum(result["phases"].values())
    return {"seconds": seconds, "cpu": cpu, **result}


def main() -> None:
    file, *arguments = sys.argv[1:]
    watch = Watch()
    watch.start()
    sys.argv = ["unskew", *arguments]
    try:
        runpy.run_module("unskew", run_name="__main__", alter_sys=True)
    finally:
        Path(file).write_text(json.dumps(watch.result()))


if __name__ == "__main__":
    main()
