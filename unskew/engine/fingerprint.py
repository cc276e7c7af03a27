"""What makes a run the run that it is: which keys count, and what stands in the files that they name."""

import hashlib
import json
import os
from pathlib import Path

from yacs.config import CfgNode

from unskew.config import class_name, flatten, names
from unskew.data.image_folders import list_images
from unskew.utils.files import expand, user_cache

# Keys that say where a run lives or how much it prints, and so do not make it another run.
NOT_IDENTITY = (
    *("OUTPUT_DIR", "RESUME", "VERBOSE", "USE_CUDA", "DATASET.ROOT", "DATALOADER.NUM_WORKERS"),
    "TRAINER.BACKDOOR.MEMBERS_DIR",
)

# Datasets that are whatever stands at DATASET.ROOT.
OWN = ("folder", "csv")


def _own_nodes(cfg: CfgNode) -> set[str]:
    """The trainer nodes that a run reads: its class's, and its base's where it has one.

    A plugin's trainer may read any of them, so all count for it.
    """
    trainer, known = cfg.get("TRAINER", {}), names("trainers")
    nodes, name = set(), trainer.get("CLASS") or trainer.get("NAME")
    while name and name.upper() not in nodes:
        if name not in known:
            return set(trainer)
        nodes.add(name.upper())
        base = trainer.get(name.upper(), {}).get("BASE")
        name = class_name(base) if base in known else base
    return nodes


def _content(value: object) -> object:
    """In place of the path of a file or of a finished run, what stands there: that is what a run depends on."""
    if not isinstance(value, str) or not (Path(value).suffix or os.sep in value):
        return value
    path = Path(value)
    path = path / "done" if path.is_dir() else path
    return f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}" if path.is_file() else value


def identity(cfg: CfgNode) -> dict[str, object]:
    """The leaves that make a run what it is, as plain JSON values; other trainers' nodes are not.

    A trainer's key that names a file (a prior) or a finished run (a base) counts by its content; so do class names. A
    user's own data count by where they are and which images they name.
    """
    own = _own_nodes(cfg)
    leaves = json.loads(json.dumps(dict(flatten(cfg)), default=list))

    def counts(key: str) -> bool:
        parts = key.split(".")
        return key not in NOT_IDENTITY and not (len(parts) == 3 and parts[0] == "TRAINER" and parts[1] not in own)

    found = {
        key: _content(value) if key.startswith("TRAINER.") else value
        for key, value in sorted(leaves.items())
        if counts(key)
    }
    if file := leaves.get("DATASET.CLASSNAMES"):
        found["DATASET.CLASSNAMES"] = _content(os.path.join(".", file))
    if leaves.get("DATASET.NAME") in OWN:  # a saved config may lack keys
        found["DATASET.ROOT"] = _own_data(leaves.get("DATASET.ROOT", ""))
    return found


def _own_data(root: str) -> str:
    """Where a user's images are, and a hash of the CSV file or of all images' names."""
    path = expand(root).resolve()
    if path.is_file():
        return f"{path} sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}"
    if root and path.is_dir():
        names = json.dumps(list_images(path, user_cache(path)))
        return f"{path} sha256 {hashlib.sha256(names.encode()).hexdigest()}"
    return str(path)


def config_hash(cfg: CfgNode) -> str:
    """A short hash of what makes a run what it is, the same on any machine."""
    return hashlib.sha256(json.dumps(identity(cfg), sort_keys=True).encode()).hexdigest()[:16]


def differing_keys(cfg: CfgNode, saved: dict) -> list[str]:
    """The keys in which a saved config (`config.yaml`, as a tree) differs from ``cfg``."""
    ours, theirs = identity(cfg), identity(CfgNode(saved))
    return sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
