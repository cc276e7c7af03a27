"""The folder of a run, and the names of folders and tables."""

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from yacs.config import CfgNode

from unskew import config
from unskew.data.saved_run import MODEL_FILE
from unskew.engine import fingerprint, history
from unskew.engine.fingerprint import USER_DATASETS
from unskew.utils.files import expand, read_json, remove_leftovers, write_atomically

logger = logging.getLogger("unskew")

_CHECKPOINTS = "*/model*.pth.tar*"

# The first line of config.yaml has the fingerprint behind this, and the second the states of the files that count.
_FIRST_LINE = "# identity "
_SECOND_LINE = "# files "

# Keys that `load_run` needs in every config.yaml.
_NEEDED = {
    **dict.fromkeys(("DATASET.NAME", "DATASET.ROOT", "TRAINER.NAME", "MODEL.BACKBONE.NAME"), str),
    **dict.fromkeys(("DATASET.NUM_SHOTS", "SEED"), int),
}

# Keys in which a config may differ from that of its folder: none of them matters for the result or the epochs done.
_FREE = ("TRAIN.CHECKPOINT_FREQ", "TRAIN.PRINT_FREQ")

# Differences of equal configs with different fingerprints.
_FILE = "a file that it names"
_NO_RECORD = "the images, of which an older version kept no record"
_LONGEST_NAME = 110  # of a backbone; file systems allow 255 bytes
_MOST_KEYS = 8  # in an error message


class RunDir:
    """The folder of a run. ``config.yaml`` is written first and ``done`` last.

    The first line of ``done`` is the config's fingerprint; the others are the names of the files that the run wrote.

    Args:
        path: the folder, which need not exist; that of a config is its ``OUTPUT_DIR``.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.json"
        self.predictions = self.path / "predictions.safetensors"
        self.model = self.path / MODEL_FILE
        self.prior = self.path / "prior.csv"
        self.history = self.path / history.NAME
        self.log = self.path / "log.txt"
        self.done = self.path / "done"

    @property
    def _results(self) -> tuple[Path, ...]:
        return self.metrics, self.predictions, self.model

    @property
    def is_finished(self) -> bool:
        """True if the folder holds a finished run, whose files are whole."""
        return self.done.is_file() and not self.damage()

    def damage(self) -> str:
        """Return what is wrong with a folder that has the file ``done``, so that its run counts as unfinished; else "".

        A power cut leaves empty files on some disks. Reading takes little: of the predictions, only the header is read.
        """
        fingerprint_line, *written = self._done_lines() or [""]
        if not self.done.is_file():
            return ""
        unknown = set(written) - {file.name for file in self._results}
        if unknown or not re.fullmatch("[0-9a-f]{16}", fingerprint_line):
            return f"'{self.done}' is damaged"
        if not written:  # of an older version, which did not list files
            expected = [self.metrics] if self.log.is_file() else []  # the members of a run have neither
            written = [file.name for file in (*expected, self.predictions) if file in expected or file.is_file()]
        return next(filter(None, (_file_damage(self.path / name) for name in written)), "")

    def is_finished_run_of(self, cfg: CfgNode) -> bool:
        """Return whether the folder holds a finished run of this config."""
        if not self.is_finished:
            return False
        done = self._fingerprint()
        try:
            return done == fingerprint.config_hash(cfg) or done == fingerprint.config_hash(self._with_saved(cfg, _FREE))
        except ValueError:  # config.yaml is damaged
            return False

    def _with_saved(self, cfg: CfgNode, keys: Sequence[str]) -> CfgNode:
        """Return ``cfg`` with the folder's own values of some keys."""
        saved = dict(config.flatten(self._read_config()))
        return config.derive(cfg, {key: saved[key] for key in keys if key in saved})

    def _done_lines(self) -> list[str]:
        return self.done.read_text(encoding="utf-8", errors="replace").split() if self.done.is_file() else []

    def _fingerprint(self) -> str:
        return next(iter(self._done_lines()), "")

    def read_config(self) -> dict:
        """Return the tree in ``config.yaml`` of a finished run.

        Raises:
            FileNotFoundError: the folder holds no finished run.
            ValueError: the file is damaged.
        """
        if not self.is_finished:
            unfinished = "it has no file 'done'" if self.path.is_dir() else "there is no such folder"
            reason = self.damage() or unfinished
            raise FileNotFoundError(
                f"'{self.path}' is not the folder of a finished run ({reason}): give the folder of one, or run it again"
            )
        return self._read_config()

    def _read_config(self) -> dict:
        try:
            tree = config.read_yaml(self.config)
            leaves = dict(config.flatten(tree))
            wrong = [key for key, kind in _NEEDED.items() if not isinstance(leaves.get(key), kind)]
            if wrong:
                raise ValueError(f"'{self.config}' is damaged: {wrong[0]} is {leaves.get(wrong[0])!r}")
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(f"{error}; delete the folder '{self.path}' and run again") from error
        return tree

    def check_same(self, cfg: CfgNode) -> None:
        """Raise ``ValueError``, with the keys that differ, if the folder holds a finished run of another config."""
        if self.is_finished_run_of(cfg) or not self.is_finished:
            return
        difference = self._difference(cfg) or _FILE
        raise ValueError(
            f"'{self.path}' holds a finished run with another config (it differs in {difference}); choose another "
            "output folder or delete this one"
        )

    def check_resumable(self, cfg: CfgNode) -> None:
        """Raise ``ValueError`` unless the folder holds checkpoints of this config, perhaps for fewer epochs.

        A folder of CoOp has no ``config.yaml`` to compare.
        """
        if not self.has_checkpoints:
            raise ValueError(f"--resume '{self.path}' holds no checkpoints: pass the folder of an interrupted run")
        if not self.config.is_file():
            return
        # The scheduler's state is loaded, so MAX_EPOCH may grow, as CoOp's users do.
        earlier = self._with_saved(cfg, ["OPTIM.MAX_EPOCH"])
        difference = self._difference(cfg if earlier.OPTIM.MAX_EPOCH > cfg.OPTIM.MAX_EPOCH else earlier)
        if difference:
            raise ValueError(
                f"--resume '{self.path}' holds a run with another config (it differs in {difference}); resume with "
                "the same config, in which only OPTIM.MAX_EPOCH may be larger"
            )

    def start_log(self) -> Path:
        """Delete the log of a run that has nothing to resume from; return the folder for the new lines."""
        if not self.has_checkpoints:
            with contextlib.suppress(OSError):  # opening the log reports the error
                self.log.unlink(missing_ok=True)
        return self.path

    def prepare(self, cfg: CfgNode) -> None:
        """Create the folder and save the config; delete the checkpoints of an unfinished run of another config.

        Raises:
            ValueError: the folder cannot be created or cleared.
            OSError: the config cannot be written, for instance because the disk is full.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.clear()
            self._drop_other_checkpoints(cfg)
        except OSError as error:
            raise ValueError(
                f"the output folder '{self.path}' cannot be written ({error.strerror}); choose another"
            ) from error
        states = fingerprint.files(cfg)
        lines = [
            f"{_FIRST_LINE}{fingerprint.config_hash(cfg, states)}",
            f"{_SECOND_LINE}{json.dumps(states)}",
            config.dump(cfg),
        ]
        write_atomically(self.config, "\n".join(lines))

    def _drop_other_checkpoints(self, cfg: CfgNode) -> None:
        """Delete the checkpoints of another config."""
        try:
            difference = self._difference(cfg) if self.config.is_file() else ""
        except ValueError as error:
            difference = f"its config ({error})"
        if difference and self.has_checkpoints:
            logger.warning(f"'{self.path}' holds an unfinished run that differs in {difference}: starting again")
            self.drop_checkpoints()

    def clear(self) -> None:
        """Delete the results of an unfinished run and the temporary files of killed processes."""
        if damage := self.damage():
            logger.warning(f"{damage}, so the run in '{self.path}' counts as unfinished: running it again")
        for file in (self.done, *self._results, self.prior):
            file.unlink(missing_ok=True)
        if not self.has_checkpoints:  # else the run may resume, and its history with it
            self.history.unlink(missing_ok=True)
        for folder in (self.path, *(entry for entry in self.path.iterdir() if entry.is_dir())):
            remove_leftovers(folder)

    def _difference(self, cfg: CfgNode) -> str:
        """Return the keys in which the saved config or the states of its files differ."""
        saved, (first, second) = self._read_config(), self._first_lines()
        states = _parse_states(second)
        cfg = self._with_saved(cfg, _FREE)
        try:
            keys = fingerprint.differing_keys(cfg, saved, states)
        except (TypeError, AttributeError) as error:  # values of other types than a run writes
            reason = f"'{self.config}' is damaged: {error}; delete the folder '{self.path}' and run again"
            raise ValueError(reason) from error
        same = first == f"{_FIRST_LINE}{fingerprint.config_hash(cfg)}" or not first.startswith(_FIRST_LINE)
        if len(keys) > _MOST_KEYS:
            keys = [*keys[:_MOST_KEYS], f"{len(keys) - _MOST_KEYS} more"]
        unknown = _NO_RECORD if states is None and cfg.DATASET.NAME in USER_DATASETS else _FILE
        return ", ".join(keys) or ("" if same else unknown)

    def _first_lines(self) -> tuple[str, str]:
        first, second, *_ = [*self.config.read_text(encoding="utf-8").split("\n", 2), ""]
        return first, second

    @property
    def has_checkpoints(self) -> bool:
        """True if the folder holds the checkpoint of a model."""
        return any(self.path.glob(_CHECKPOINTS))

    def drop_checkpoints(self) -> None:
        """Delete the checkpoints and their history so that the next run starts from scratch."""
        self.history.unlink(missing_ok=True)
        for checkpoint in self.path.glob(_CHECKPOINTS):
            checkpoint.unlink()

    def finish(self, cfg: CfgNode) -> None:
        """Mark the run as finished, with the fingerprint that `prepare` saved (files may have changed since).

        The other lines are the names of the files that the run wrote.
        """
        first = self._first_lines()[0] if self.config.is_file() else ""
        begun = first.removeprefix(_FIRST_LINE) if first.startswith(_FIRST_LINE) else fingerprint.config_hash(cfg)
        written = [file.name for file in self._results if file.is_file()]
        write_atomically(self.done, "\n".join([begun, *written, ""]))

    @classmethod
    def find(cls, root: str | Path, cfg: CfgNode) -> "RunDir | None":
        """Return the first folder below ``root``, by path, with a finished run of this config and its checkpoints."""
        wanted = fingerprint.config_hash(cfg)
        folders = (cls(done.parent) for done in sorted(Path(root).rglob("done")))
        return next((f for f in folders if f.has_checkpoints and f._fingerprint() == wanted and f.is_finished), None)

    def copy_checkpoints(self, target: "RunDir") -> None:
        """Copy checkpoints and history into another run's folder; each file is copied completely or not at all."""
        if self.history.is_file():
            write_atomically(target.history, self.history.read_bytes())
        for note in self.path.glob("*/checkpoint"):
            folder = target.path / note.parent.name
            folder.mkdir(parents=True, exist_ok=True)
            for file in note.parent.iterdir():
                write_atomically(folder / file.name, file.read_bytes())


def _parse_states(line: str) -> dict[str, str] | None:
    """Return the states of files that a run has recorded; ``None`` if it has none."""
    try:
        states = json.loads(line.removeprefix(_SECOND_LINE)) if line.startswith(_SECOND_LINE) else None
    except ValueError:
        return None
    return states if isinstance(states, dict) else None


def _file_damage(file: Path) -> str:
    """Return what is wrong with a JSON or safetensors file, or ""."""
    try:
        size = file.stat().st_size
        whole = size and (_is_json(file) if file.suffix == ".json" else _is_whole(file, size))
    except OSError:
        return f"'{file}' is missing"
    return "" if whole else f"'{file}' is {'damaged' if size else 'empty'}"


def _is_json(file: Path) -> bool:
    try:
        return isinstance(read_json(file), dict)
    except ValueError:
        return False


def _is_whole(file: Path, size: int) -> bool:
    """Return whether a file of safetensors has all bytes that its header lists; the header follows its length."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > size - 8:
            return False
        try:
            header = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return False
    return size == 8 + length + max(ends, default=0)


# --- names ------------------------------------------------------------------------------------------


def path_safe(backbone: str) -> str:
    """Return a backbone's name as the name of a folder; a hash replaces the beginning of a long one."""
    name = re.sub(r"[/\\@:]", "-", backbone)
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{hashlib.sha256(backbone.encode()).hexdigest()[:8]}-{name[-40:]}"


def dataset_label(cfg: CfgNode) -> str:
    """Return a dataset's name on disk and in tables; a user's own images at .../birds are "folder-birds"."""
    name = cfg.DATASET.NAME
    if name not in USER_DATASETS:
        return name
    root = expand(cfg.DATASET.ROOT).resolve()
    return f"{name}-{root.name if root.is_dir() else root.stem}"


def trainer_label(cfg: CfgNode) -> str:
    """Return the trainer config's name; over another base than its default, `GLA-CoOp`."""
    name, base = cfg.TRAINER.NAME, _node(cfg).get("BASE")
    return name if not base or base == config.read_base(name) else f"{name}-{base}"


def backbone_label(cfg: CfgNode) -> str:
    """Return the backbone's name; the members of a trainer (`TRAINER.BACKDOOR.MEMBERS`) are joined by `+`."""
    return "+".join(backbones_of(cfg))


def backbones_of(cfg: CfgNode) -> list[str]:
    """Return the names of a run's backbones: the members of a trainer that has some, else the backbone of the run."""
    return list(_node(cfg).get("MEMBERS") or [cfg.MODEL.BACKBONE.NAME])


def _node(cfg: CfgNode) -> dict:
    return cfg.TRAINER.get(config.trainer_node(cfg.TRAINER.CLASS or cfg.TRAINER.NAME, cfg.TRAINER), {})


def run_folder(cfg: CfgNode, output: str | Path) -> Path:
    """Return `output/<dataset>/<Trainer>/<backbone>_<K>shots/seed<S>`; a whole long-tailed set is `<backbone>_lt`."""
    backbone = path_safe(backbone_label(cfg))
    if cfg.DATASET.NUM_SHOTS > 0:
        images = f"{cfg.DATASET.NUM_SHOTS}shots"
    else:
        images = "lt" if cfg.DATASET.LONGTAIL else "allshots"
    return Path(output) / dataset_label(cfg) / trainer_label(cfg) / f"{backbone}_{images}" / f"seed{cfg.SEED}"


def shots_label(shots: int, longtail: bool = False) -> str:
    """Return "1 shot", "16 shots" or "all images" ("long-tailed" for a long-tailed dataset)."""
    if shots < 0:
        return "long-tailed" if longtail else "all images"
    return f"{shots} shot{'s' if shots > 1 else ''}"
