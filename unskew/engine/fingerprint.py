"""Fingerprint of a run: a hash of the config keys that determine its result and of the files that they name."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from yacs.config import CfgNode

from unskew.config import class_name, flatten, names
from unskew.data.dataset import USER_DATASETS
from unskew.data.image_folders import OWN_NAMES, user_images
from unskew.data.snapshot import State, file_state, file_states, remember
from unskew.utils.files import expand

# Keys that change where a run is, or how much it prints or keeps, but not its result.
NOT_IDENTITY = (
    *("OUTPUT_DIR", "RESUME", "VERBOSE", "USE_CUDA", "DATASET.ROOT", "DATALOADER.NUM_WORKERS", "TRAIN.KEEP"),
    *("TEST.PARTS_DTYPE", "TEST.MODEL_DIR", "TRAINER.BACKDOOR.MEMBERS_DIR"),
)

# It changes with the reading of the user's images, so that runs with another order of the classes are other runs.
OWN_DATA_VERSION = 2

# Keys that are younger than some finished runs, with the values that equal the earlier behaviour.
LATER_KEYS = {
    "DATASET.UPRIGHT": False,
    "DATASET.UNREADABLE": "error",
    "DATASET.TRAIN_ON_VAL": False,
    "TEST.EPOCH": -1,
    "TRAINER.LINEARPROBE.INIT": "zeros",
}


def _nodes_read(cfg: Mapping) -> set[str]:
    """Return the trainer nodes that a run reads: those of its class and of its base.

    A plugin's trainer may read any node, so all count for it.
    """
    trainer, known = cfg.get("TRAINER") or {}, names("trainers")
    nodes, name = set(), trainer.get("CLASS") or trainer.get("NAME")
    while name and name.upper() not in nodes:
        if name not in known:
            return set(trainer)
        nodes.add(name.upper())
        node = trainer.get(name.upper())
        base = node.get("BASE") if isinstance(node, Mapping) else None
        name = class_name(base) if base in known else base
    return nodes


def _leaves(cfg: Mapping) -> dict[str, object]:
    """Return the config leaves that determine a run's result, as plain JSON values."""
    nodes = _nodes_read(cfg)
    leaves = json.loads(json.dumps(dict(flatten(cfg)), default=list))

    def counts(key: str) -> bool:
        parts = key.split(".")
        if key in NOT_IDENTITY or leaves[key] == LATER_KEYS.get(key):
            return False
        return not (len(parts) == 3 and parts[0] == "TRAINER" and parts[1] not in nodes)

    counted = {key: value for key, value in sorted(leaves.items()) if counts(key)}
    if leaves.get("DATASET.NAME") in USER_DATASETS:
        counted["DATASET.ROOT"] = str(expand(leaves.get("DATASET.ROOT", "")).resolve())
    return counted


# --- files ------------------------------------------------------------------------------------------


def files(cfg: Mapping) -> dict[str, str]:
    """Return the state of the files that a config names, by its keys.

    A trainer's key that names a file (a prior) or a finished run (a base) counts by its content, and so do class
    names. A user's images count by their names, sizes and times, and local weights by their size and time. In an
    evaluation, the checkpoints of the trained run and of its base count by their names, sizes and times. Within a
    snapshot, see `unskew.data.snapshot`, the state of the user's data is taken once.

    Args:
        cfg: a config, or the tree in a ``config.yaml``, which may lack keys.
    """
    leaves = _leaves(cfg)
    states = {key: _content(value) for key, value in leaves.items() if key.startswith("TRAINER.")}
    if file := leaves.get("DATASET.CLASSNAMES"):
        names_file = os.path.join(".", str(file))
        states["DATASET.CLASSNAMES"] = remember(("names", names_file), lambda: _content(names_file))
    elif leaves.get("DATASET.NAME") in USER_DATASETS and leaves.get("DATASET.ROOT"):
        own_names = str(Path(str(leaves["DATASET.ROOT"])) / OWN_NAMES)  # of a folder; a CSV file has none
        states["DATASET.CLASSNAMES"] = remember(("names", own_names), lambda: _content(own_names))
    for key, value in leaves.items():
        if key == "MODEL.BACKBONE.NAME" or key.endswith(".MEMBERS"):
            backbones = value if isinstance(value, list) else [value]
            states[f"{key} (sizes and times of the weights)"] = _weights([str(name) for name in backbones])
    if folder := (cfg.get("TEST") or {}).get("MODEL_DIR"):
        bases = [str(value) for key, value in leaves.items() if key.endswith(".BASE_DIR") and value]
        states["the trained run (sizes and times of its checkpoints)"] = _checkpoints([str(folder), *bases])
    if leaves.get("DATASET.NAME") in USER_DATASETS:
        root = Path(str(leaves["DATASET.ROOT"]))
        states |= remember(("fingerprint", root), lambda: _user_images(root))
    return {key: state for key, state in states.items() if state is not None}


def _content(value: object) -> str | None:
    """Return a hash of the content of a file or a finished run; ``None`` for other values."""
    if not isinstance(value, str) or not (Path(value).suffix or os.sep in value):
        return None
    path = Path(value)
    path = path / "done" if path.is_dir() else path
    return _sha256(path.read_bytes()) if path.is_file() else None


def _weights(backbones: Sequence[str]) -> str | None:
    """Return a hash of the sizes and times of the files of weights; ``None`` if no backbone is local."""
    paths: list[str] = []
    for name in backbones:
        place = expand(name.removeprefix("local-dir:") if name.startswith("local-dir:") else name.partition("@")[2])
        if place.is_file():
            paths.append(str(place))
        elif place.is_dir() and name.startswith("local-dir:"):
            paths += sorted(str(file) for file in place.iterdir() if file.is_file())
    return _hash(_sizes_and_times(map(file_state, paths))) if paths else None


def _checkpoints(folders: Sequence[str]) -> str:
    """Return a hash of ``done`` and of the names, sizes and times of the checkpoints in the folders of runs."""
    found: list[object] = []
    for folder in map(Path, folders):
        files = sorted(str(file.relative_to(folder)) for file in folder.rglob("model*.pth.tar*"))
        found += [
            files,
            _sizes_and_times([file_state(str(folder / name)) for name in files]),
            _content(os.path.join(".", folder)),
        ]
    return _hash(found)


def _user_images(root: Path) -> dict[str, str | None]:
    """Return the states of a CSV file or of a folder, and of the images."""
    states: dict[str, str | None] = {"DATASET.ROOT (version of its reading)": str(OWN_DATA_VERSION)}
    paths: list[str] = []
    if root.is_file():
        from unskew.data.custom_csv import image_paths  # NumPy and Pillow, which folders do not need here

        states["DATASET.ROOT (content of the CSV file)"] = _sha256(root.read_bytes())
        with contextlib.suppress(ValueError):  # reading the data reports the error
            paths = sorted(set(image_paths(root)))
    elif root.is_dir():
        images = user_images(root)
        states["DATASET.ROOT (names of the images)"] = _hash(images)
        paths = [f"{root}/{name}/{path}" for name, inside in images.items() for path in inside]
    states["DATASET.ROOT (sizes and times of the images)"] = _hash(_sizes_and_times(file_states(paths)))
    return states


def _sizes_and_times(states: Iterable[State | None]) -> list[tuple[int, int] | None]:
    return [state and state[:2] for state in states]


def _hash(content: object) -> str:
    return _sha256(json.dumps(content).encode())


def _sha256(content: bytes) -> str:
    return f"sha256 {hashlib.sha256(content).hexdigest()}"


# --- fingerprints -----------------------------------------------------------------------------------


def identity(cfg: Mapping, states: Mapping[str, str] | None = None) -> dict[str, object]:
    """Return all that determines a run's result: config leaves, and the states of the files that they name.

    Args:
        cfg: a config, or the tree in a ``config.yaml``, which may lack keys.
        states: what `files` returned when the run began; by default the files' present states.
    """
    return {**_leaves(cfg), **(files(cfg) if states is None else states)}


def config_hash(cfg: Mapping, states: Mapping[str, str] | None = None) -> str:
    """Return a short hash of `identity`, the same on any machine."""
    return hashlib.sha256(json.dumps(identity(cfg, states), sort_keys=True).encode()).hexdigest()[:16]


def differing_keys(cfg: CfgNode, saved: Mapping, states: Mapping[str, str] | None = None) -> list[str]:
    """Return the keys of `identity` in which a saved config differs from ``cfg``.

    Args:
        cfg: the config.
        saved: the tree in ``config.yaml``.
        states: the states of the files that the saved run recorded; by default the present ones.
    """
    ours, theirs = identity(cfg), identity(saved, states)
    return sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
