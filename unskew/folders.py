"""A run's folder: ``config.yaml`` is written first, ``done`` last, with a hash of the config in it.

The folder of a config is its ``OUTPUT_DIR``.
"""

import logging
from pathlib import Path

from yacs.config import CfgNode

from unskew import config, identity
from unskew.files import write_atomically

logger = logging.getLogger("unskew")

_CHECKPOINTS = "*/model*.pth.tar*"
# The first line of config.yaml.
_HASH = "# identity "


def name_of(backbone: str) -> str:
    """A backbone's name as part of a path."""
    return backbone.replace("/", "-").replace("@", "-")


def is_done(cfg: CfgNode) -> bool:
    """Whether the folder holds a finished run of this very config."""
    done = Path(cfg.OUTPUT_DIR) / "done"
    return done.is_file() and done.read_text(encoding="utf-8").strip() == identity.config_hash(cfg)


def check_same(cfg: CfgNode) -> None:
    """Raise ``ValueError``, with the keys that differ, if the folder holds a finished run of another config."""
    folder = Path(cfg.OUTPUT_DIR)
    if not (folder / "done").is_file() or is_done(cfg):
        return
    keys = identity.differing_keys(cfg, config.read_yaml(folder / "config.yaml"))
    where = ", ".join(keys) or "a file that it names"
    raise ValueError(
        f"'{folder}' holds a finished run with another config (it differs in {where}); "
        "choose another output folder or delete this one"
    )


def prepare(cfg: CfgNode) -> None:
    """Make the folder, and drop the checkpoints of an unfinished run that had another config."""
    folder = Path(cfg.OUTPUT_DIR)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        saved = folder / "config.yaml"
        differs = _difference(cfg, saved) if saved.is_file() else ""
        if differs and any(folder.glob(_CHECKPOINTS)):
            logger.warning(f"'{folder}' holds an unfinished run that differs in {differs}: it starts anew")
            drop_checkpoints(folder)
        if not any(folder.glob(_CHECKPOINTS)):  # nothing to resume from: the log starts anew too
            (folder / "log.txt").unlink(missing_ok=True)
        write_atomically(saved, f"{_HASH}{identity.config_hash(cfg)}\n{config.dump(cfg)}")
    except OSError as error:
        raise ValueError(
            f"the output folder '{folder}' cannot be written ({error.strerror}); choose another"
        ) from error


def _difference(cfg: CfgNode, saved: Path) -> str:
    """In which keys a saved config differs; by its hash, which was made when it was saved, in a file that it names."""
    first = saved.read_text(encoding="utf-8").partition("\n")[0]
    same = first in (f"{_HASH}{identity.config_hash(cfg)}", "") or not first.startswith(_HASH)
    return ", ".join(identity.differing_keys(cfg, config.read_yaml(saved))) or ("" if same else "a file that it names")


def drop_checkpoints(folder: Path) -> None:
    """So that a run there starts anew."""
    for checkpoint in folder.glob(_CHECKPOINTS):
        checkpoint.unlink()


def finish(cfg: CfgNode) -> None:
    """Mark the folder's run as finished."""
    write_atomically(Path(cfg.OUTPUT_DIR) / "done", identity.config_hash(cfg) + "\n")


def find(root: str | Path, cfg: CfgNode) -> Path | None:
    """A folder below ``root`` with a finished run of this very config, whatever it is called; the first by path."""
    wanted = identity.config_hash(cfg)
    notes = [note for note in sorted(Path(root).rglob("done")) if any(note.parent.glob(_CHECKPOINTS))]
    return next((note.parent for note in notes if note.read_text(encoding="utf-8").strip() == wanted), None)


def copy_checkpoints(source: Path, folder: str | Path) -> None:
    """Copy the checkpoints of one run's folder into another's, each file whole or not at all."""
    for note in source.glob("*/checkpoint"):
        target = Path(folder) / note.parent.name
        target.mkdir(parents=True, exist_ok=True)
        for file in note.parent.iterdir():
            write_atomically(target / file.name, file.read_bytes())
