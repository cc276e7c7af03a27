"""A run's folder: ``config.yaml`` is written first, ``done`` last, with a hash of the config in it.

The folder of a config is its ``OUTPUT_DIR``.
"""

import logging
from pathlib import Path

from yacs.config import CfgNode

from unskew import config
from unskew.engine import fingerprint
from unskew.engine.fingerprint import OWN
from unskew.utils.files import expand, write_atomically

logger = logging.getLogger("unskew")

_CHECKPOINTS = "*/model*.pth.tar*"

# The first line of config.yaml.
_HASH = "# identity "


def path_safe(backbone: str) -> str:
    """A backbone's name as part of a path."""
    return backbone.replace("/", "-").replace("@", "-")


def is_done(cfg: CfgNode) -> bool:
    """Whether the folder holds a finished run of this very config."""
    done = Path(cfg.OUTPUT_DIR) / "done"
    return done.is_file() and done.read_text(encoding="utf-8").strip() == fingerprint.config_hash(cfg)


def check_same(cfg: CfgNode) -> None:
    """Raise ``ValueError``, with the keys that differ, if the folder holds a finished run of another config."""
    folder = Path(cfg.OUTPUT_DIR)
    if not (folder / "done").is_file() or is_done(cfg):
        return
    keys = fingerprint.differing_keys(cfg, config.read_yaml(folder / "config.yaml"))
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
        write_atomically(saved, f"{_HASH}{fingerprint.config_hash(cfg)}\n{config.dump(cfg)}")
    except OSError as error:
        raise ValueError(
            f"the output folder '{folder}' cannot be written ({error.strerror}); choose another"
        ) from error


def _difference(cfg: CfgNode, saved: Path) -> str:
    """In which keys a saved config differs; by its hash, which was made when it was saved, in a file that it names."""
    first = saved.read_text(encoding="utf-8").partition("\n")[0]
    same = first in (f"{_HASH}{fingerprint.config_hash(cfg)}", "") or not first.startswith(_HASH)
    return ", ".join(fingerprint.differing_keys(cfg, config.read_yaml(saved))) or (
        "" if same else "a file that it names"
    )


def drop_checkpoints(folder: Path) -> None:
    """So that a run there starts anew."""
    for checkpoint in folder.glob(_CHECKPOINTS):
        checkpoint.unlink()


def finish(cfg: CfgNode) -> None:
    """Mark the folder's run as finished."""
    write_atomically(Path(cfg.OUTPUT_DIR) / "done", fingerprint.config_hash(cfg) + "\n")


def find(root: str | Path, cfg: CfgNode) -> Path | None:
    """A folder below ``root`` with a finished run of this very config, whatever it is called; the first by path."""
    wanted = fingerprint.config_hash(cfg)
    notes = [note for note in sorted(Path(root).rglob("done")) if any(note.parent.glob(_CHECKPOINTS))]
    return next((note.parent for note in notes if note.read_text(encoding="utf-8").strip() == wanted), None)


def copy_checkpoints(source: Path, folder: str | Path) -> None:
    """Copy the checkpoints of one run's folder into another's, each file whole or not at all."""
    for note in source.glob("*/checkpoint"):
        target = Path(folder) / note.parent.name
        target.mkdir(parents=True, exist_ok=True)
        for file in note.parent.iterdir():
            write_atomically(target / file.name, file.read_bytes())


def dataset_label(cfg: CfgNode) -> str:
    """What a dataset is called on disk and in tables: its name; for a user's own images at .../birds "folder-birds"."""
    name = cfg.DATASET.NAME
    if name not in OWN:
        return name
    root = expand(cfg.DATASET.ROOT).resolve()
    return f"{name}-{root.name if root.is_dir() else root.stem}"


def trainer_label(cfg: CfgNode) -> str:
    """The trainer config's name; over another base than its default, `GLA-CoOp`."""
    name, default = cfg.TRAINER.NAME, config.read_base(cfg.TRAINER.NAME)
    base = cfg.TRAINER.get((cfg.TRAINER.CLASS or name).upper(), {}).get("BASE")
    return name if not base or base == default else f"{name}-{base}"


def backbone_label(cfg: CfgNode) -> str:
    """The backbone's name; those of a trainer's members (`TRAINER.BACKDOOR.MEMBERS`) are joined by `+`."""
    own = cfg.TRAINER.get((cfg.TRAINER.CLASS or cfg.TRAINER.NAME).upper(), {})
    return "+".join(own.get("MEMBERS") or [cfg.MODEL.BACKBONE.NAME])


def run_folder(cfg: CfgNode, output: str) -> Path:
    """`output/<dataset>/<Trainer>/<backbone>_<K>shots/seed<S>`; `lt` for `<K>shots` of a whole long-tailed set."""
    backbone = path_safe(backbone_label(cfg))
    if cfg.DATASET.NUM_SHOTS > 0:
        images = f"{cfg.DATASET.NUM_SHOTS}shots"
    else:
        images = "lt" if cfg.DATASET.LONGTAIL else "allshots"
    return Path(output) / dataset_label(cfg) / trainer_label(cfg) / f"{backbone}_{images}" / f"seed{cfg.SEED}"


def shots_label(shots: int, longtail: bool = False) -> str:
    """ "1 shot", "16 shots", "all images", which those of a long-tailed dataset call "long-tailed"."""
    if shots < 0:
        return "long-tailed" if longtail else "all images"
    return f"{shots} shot{'s' if shots > 1 else ''}"
