"""Fingerprint of a run: a hash of the config keys that determine its result and of the files that they name."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from yacs.config import CfgNode

from unskew.config import class_name, flatten, names
from unskew.data.dataset import USER_DATASETS
from unskew.data.image_folders import list_images
from unskew.utils.files import expand, user_cache

# Keys that change where a run is or how much it prints, but not its result.
NOT_IDENTITY = (
    *("OUTPUT_DIR", "RESUME", "VERBOSE", "USE_CUDA", "DATASET.ROOT", "DATALOADER.NUM_WORKERS"),
    "TRAINER.BACKDOOR.MEMBERS_DIR",
)

# It changes with the reading of the user's images, so that runs with another order of the classes are other runs.
OWN_DATA_VERSION = 2

# Keys that are younger than some finished runs, with the values that equal the earlier behaviour.
LATER_KEYS = {"DATASET.UPRIGHT": False, "DATASET.UNREADABLE": "error"}


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


def _content(value: object) -> object:
    """Replace the path of a file or of a finished run by a hash of its content."""
    if not isinstance(value, str) or not (Path(value).suffix or os.sep in value):
        return value
    path = Path(value)
    path = path / "done" if path.is_dir() else path
    return f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}" if path.is_file() else value


def identity(cfg: Mapping) -> dict[str, object]:
    """Return the config leaves that determine a run's result, as plain JSON values.

    A trainer's key that names a file (a prior) or a finished run (a base) counts by its content, and so do class
    names. A user's own data count by their path and by the images that they name.

    Args:
        cfg: a config, or the tree in a ``config.yaml``, which may lack keys.
    """
    nodes = _nodes_read(cfg)
    leaves = json.loads(json.dumps(dict(flatten(cfg)), default=list))

    def counts(key: str) -> bool:
        parts = key.split(".")
        if key in NOT_IDENTITY or leaves[key] == LATER_KEYS.get(key):
            return False
        return not (len(parts) == 3 and parts[0] == "TRAINER" and parts[1] not in nodes)

    counted = {
        key: _content(value) if key.startswith("TRAINER.") else value
        for key, value in sorted(leaves.items())
        if counts(key)
    }
    if file := leaves.get("DATASET.CLASSNAMES"):
        counted["DATASET.CLASSNAMES"] = _content(os.path.join(".", file))
    if leaves.get("DATASET.NAME") in USER_DATASETS:
        counted["DATASET.ROOT"] = f"{_user_data(leaves.get('DATASET.ROOT', ''))} version {OWN_DATA_VERSION}"
    return counted


def _user_data(root: str) -> str:
    """Return the path of a user's images with a hash of the CSV file or of all image names."""
    path = expand(root).resolve()
    if path.is_file():
        return f"{path} sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}"
    if root and path.is_dir():
        images = json.dumps(list_images(path, user_cache(path)))
        return f"{path} sha256 {hashlib.sha256(images.encode()).hexdigest()}"
    return str(path)


def config_hash(cfg: Mapping) -> str:
    """Return a short hash of `identity`, the same on any machine."""
    return hashlib.sha256(json.dumps(identity(cfg), sort_keys=True).encode()).hexdigest()[:16]


def differing_keys(cfg: CfgNode, saved: Mapping) -> list[str]:
    """Return the keys of `identity` in which a saved config (the tree in ``config.yaml``) differs from ``cfg``."""
    ours, theirs = identity(cfg), identity(saved)
    return sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
