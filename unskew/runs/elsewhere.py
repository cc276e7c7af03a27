"""Runs on a worker without the driver's files: the files that are sent to it, and their paths there.

Such a worker has a root folder. The driver's file ``/home/me/x`` is ``<root>/home/me/x`` there, and the worker's
current folder is ``<root>`` with the driver's current folder behind it. So relative paths, which are part of a run's
fingerprint, need no change.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from unskew import config
from unskew.engine.run_dir import backbones_of
from unskew.runs import plugins
from unskew.runs.run import Run

# Folders of a run that no other run and no evaluation reads.
_UNREAD = ("eval", "tensorboard", "__pycache__")

# Keys whose paths are not sent with the others.
_OTHERWISE = ("OUTPUT_DIR", "DATASET.ROOT", "MODEL.BACKBONE.NAME")


class Reads(NamedTuple):
    """The paths that a job reads.

    Attributes:
        sent: files and folders that the driver sends, with their times: plugins, base runs, checkpoints.
        there: weights, and absolute paths in config keys, which the worker must have itself.
        images: the folder of the datasets, which the worker must have itself unless the dataset is rendered.
    """

    sent: tuple[str, ...]
    there: tuple[str, ...]
    images: str


def reads(run: Run, *folders: str | Path) -> Reads:
    """Return the paths that a run reads; ``folders`` are runs that it continues or evaluates."""
    sent = [str(file) for given in run.plugins for file in plugins.source_files(given)]
    sent += [name for name in (run.config_file, run.dataset) if name and os.path.isfile(name)]
    there = [path for name in backbones_of(run.config) if (path := _weights(str(name)))]
    for key, value in config.flatten(run.config):
        names_path = isinstance(value, str) and bool(Path(value).suffix or os.sep in value)
        if names_path and key not in _OTHERWISE and os.path.exists(value):
            (there if os.path.isabs(value) else sent).append(value)
    return Reads((*sent, *map(str, folders)), tuple(there), run.config.DATASET.ROOT)


def _weights(backbone: str) -> str:
    """Return the file or folder of a backbone's weights; "" for those of the cache."""
    local = backbone.removeprefix("local-dir:")
    return (local if local != backbone else backbone.partition("@")[2]).partition("#")[0]


def moved(run: Run, root: str) -> Run:
    """Return a run with its absolute paths below ``root``, apart from those in config keys, which its results name."""

    def inside(path: str) -> str:
        path = os.path.expanduser(path)
        return root + path if os.path.isabs(path) else path

    return replace(
        run,
        dataset=inside(run.dataset),
        output=inside(run.output),
        folder=inside(run.folder),
        config_file=inside(run.config_file),
        plugins=tuple(map(inside, run.plugins)),
    )


def files_of(path: str | Path, unread: bool = False) -> Iterator[Path]:
    """Yield a file, or the files of a folder without temporary ones; ``unread`` includes those that no run reads."""
    if not os.path.isdir(path):
        if os.path.isfile(path):
            yield Path(path)
        return
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if unread or name not in _UNREAD)
        yield from (Path(folder, name) for name in sorted(names) if not name.endswith((".tmp", ".lock")))
