"""Dassl's small tools, with its signatures: files, logs, checkpoints, registries, meters."""

import difflib
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO

from PIL import Image
from torch import Tensor, nn

from unskew.data import images
from unskew.engine import checkpoint
from unskew.engine.accelerator import collect_env_info
from unskew.engine.checkpoint import save_checkpoint
from unskew.engine.meters import AverageMeter, MetricMeter
from unskew.utils import files
from unskew.utils.logging import LinesOnStream
from unskew.utils.registry import Registry
from unskew.utils.seeds import set_random_seed

logger = logging.getLogger("unskew")

__all__ = [
    "AverageMeter",
    "Logger",
    "MetricMeter",
    "Registry",
    "check_availability",
    "check_isfile",
    "collect_env_info",
    "count_num_param",
    "download_url",
    "get_most_similar_str_to_a_from_b",
    "init_network_weights",
    "listdir_nohidden",
    "load_checkpoint",
    "load_pretrained_weights",
    "mkdir_if_missing",
    "open_all_layers",
    "open_specified_layers",
    "read_image",
    "read_json",
    "resume_from_checkpoint",
    "save_checkpoint",
    "set_random_seed",
    "setup_logger",
    "tolist_if_not",
    "write_json",
]


# --- files -------------------------------------------------------------------------------------------


def mkdir_if_missing(dirname) -> None:
    """Make a folder and those above it, unless it is there; "" is the current one."""
    os.makedirs(dirname or ".", exist_ok=True)


def check_isfile(fpath) -> bool:
    """Whether it is a file; warns if not."""
    found = os.path.isfile(fpath)
    if not found:
        warnings.warn(f'No file found at "{fpath}"', stacklevel=2)
    return found


def listdir_nohidden(path, sort: bool = False) -> list[str]:
    """The names in a folder that do not start with a dot; in the system's order unless sorted."""
    names = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(names) if sort else names


def read_json(fpath):
    """See `unskew.utils.files.read_json`."""
    return files.read_json(fpath)


def write_json(obj, fpath) -> None:
    """Write indented JSON, and its folder if need be; a reader sees the old file or the new one, never a part."""
    mkdir_if_missing(os.path.dirname(fpath))
    files.write_atomically(fpath, json.dumps(obj, indent=4, separators=(",", ": ")))


def read_image(path) -> Image.Image:
    """See `unskew.data.images.read_image`."""
    return images.read_image(path)


def download_url(url: str, dst) -> None:
    """Download a file, unless it is there; what came before a break is kept and gone on from.

    Raises:
        ConnectionError: it could not be downloaded; says why.
    """
    from unskew.download.fetch import fetch
    from unskew.download.sources import Source

    fetch(Source(name=os.path.basename(dst), urls=(url,)), dst)


def load_checkpoint(fpath) -> dict:
    """See `unskew.engine.checkpoint.load_checkpoint`: onto the CPU, and nothing in the file is run."""
    return checkpoint.load_checkpoint(fpath)


# --- logs --------------------------------------------------------------------------------------------


class Logger:
    """Standard output that goes into a file too, line by line; used as ``sys.stdout = Logger(path)``.

    Args:
        fpath: the file, appended to; ``None`` for none.

    Raises:
        ValueError: it cannot be written.
    """

    def __init__(self, fpath=None) -> None:
        self.console: IO[str] = sys.stdout.console if isinstance(sys.stdout, Logger) else sys.stdout
        self.file: IO[str] | None = None
        if fpath is not None:
            try:
                mkdir_if_missing(os.path.dirname(fpath))
                self.file = open(fpath, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - as long as the process
            except OSError as error:
                raise ValueError(f"the log '{fpath}' cannot be written ({error.strerror}); choose another") from error

    def write(self, text: str) -> int:
        if self.file is not None:
            self.file.write(text)
        return self.console.write(text)

    def flush(self) -> None:
        self.console.flush()
        if self.file is not None:
            self.file.flush()

    def close(self) -> None:
        """Close the file; the console stays."""
        if self.file is not None:
            self.file.close()
            self.file = None

    def __enter__(self) -> "Logger":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def __getattr__(self, name: str):
        if name == "console":  # not made yet
            raise AttributeError(name)
        return getattr(self.console, name)


def show_log_lines() -> None:
    """Print the engine's log lines, bare as Dassl prints its own, unless somebody has set up their logger."""
    logger = logging.getLogger("unskew")
    if logger.handlers:
        return
    handler = LinesOnStream("stdout")
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def setup_logger(output=None) -> None:
    """Send all that is printed to ``output/log.txt`` too, behind what an interrupted run left there.

    Args:
        output: a folder, or the path of a .txt or .log file; ``None`` for no file.
    """
    show_log_lines()
    if output is None:
        return
    path = Path(output)
    sys.stdout = Logger(path if path.suffix in (".txt", ".log") else path / "log.txt")


# --- names -------------------------------------------------------------------------------------------


def get_most_similar_str_to_a_from_b(a: str, b: Iterable[str]) -> str | None:
    """The string in ``b`` that is the most like ``a``; the last of several, ``None`` of none."""
    chosen, highest = None, 0.0
    for candidate in b:
        similarity = difflib.SequenceMatcher(None, a, candidate).ratio()
        if similarity >= highest:
            chosen, highest = candidate, similarity
    return chosen


def check_availability(requested: str, available: Iterable[str]) -> None:
    """Raise ``ValueError`` unless ``requested`` is one of ``available``; the nearest is named."""
    if requested not in available:
        near = get_most_similar_str_to_a_from_b(requested, available)
        raise ValueError(f"'{requested}' is none of {', '.join(available)}; did you mean '{near}'?")


def tolist_if_not(x) -> list:
    """``x`` if it is a list, else a list of it alone."""
    return x if isinstance(x, list) else [x]


# --- models ------------------------------------------------------------------------------------------


def count_num_param(model: nn.Module | None = None, params: Iterable | None = None) -> int:
    """How many numbers a model, or an iterable of parameters or of optimiser groups of one each, has.

    Raises:
        ValueError: neither was given.
    """
    if model is not None:
        return sum(parameter.numel() for parameter in model.parameters())
    if params is None:
        raise ValueError("count_num_param needs a model or params")
    return sum((entry["params"] if isinstance(entry, Mapping) else entry).numel() for entry in params)


def open_all_layers(model: nn.Module) -> None:
    """Training mode, with gradients for all parameters."""
    model.train()
    model.requires_grad_(True)


def open_specified_layers(model: nn.Module, open_layers: str | Iterable[str]) -> None:
    """Training mode with gradients for the children named, evaluation mode without for all others.

    Raises:
        ValueError: the model has no such child.
    """
    model = model.module if isinstance(model, nn.DataParallel) else model
    open_layers = [open_layers] if isinstance(open_layers, str) else list(open_layers)
    for layer in open_layers:
        if not hasattr(model, layer):
            raise ValueError(f"{type(model).__name__} has no layer '{layer}'")
    for name, child in model.named_children():
        child.train(name in open_layers).requires_grad_(name in open_layers)


_INITS = {
    "normal": lambda weight, gain: nn.init.normal_(weight, 0.0, gain),
    "xavier": lambda weight, gain: nn.init.xavier_normal_(weight, gain=gain),
    "kaiming": lambda weight, gain: nn.init.kaiming_normal_(weight, a=0, mode="fan_in"),
    "orthogonal": lambda weight, gain: nn.init.orthogonal_(weight, gain=gain),
}


def init_network_weights(model: nn.Module, init_type: str = "normal", gain: float = 0.02) -> None:
    """Draw the weights of convolutions and linear layers anew; biases 0, normalisation layers' weights 1.

    Args:
        init_type: normal (of standard deviation ``gain``), xavier, kaiming or orthogonal.

    Raises:
        ValueError: another ``init_type``.
    """
    check_availability(init_type, list(_INITS))
    for module in model.modules():
        kind, weight, bias = type(module).__name__, getattr(module, "weight", None), getattr(module, "bias", None)
        if weight is None:
            continue
        if "Conv" in kind or "Linear" in kind:
            _INITS[init_type](weight, gain)
        elif "BatchNorm" in kind or "InstanceNorm" in kind:
            nn.init.ones_(weight)
        else:
            continue
        if bias is not None:
            nn.init.zeros_(bias)


def resume_from_checkpoint(fdir, model: nn.Module, optimizer=None, scheduler=None) -> int:
    """Load the last checkpoint of a folder into a model and, where given, its optimiser and scheduler.

    Returns:
        The epoch to go on from.

    Raises:
        FileNotFoundError: the folder has no checkpoint.
        ValueError: the checkpoint is broken or does not fit.
    """
    path = checkpoint.last_checkpoint(fdir)
    if path is None:
        raise FileNotFoundError(f"'{fdir}' has no checkpoint to resume from")
    epoch = checkpoint.restore(checkpoint.load_checkpoint(path), model, optimizer, scheduler, source=path)
    logger.info(f"Loaded checkpoint {path} (previous epoch: {epoch})")
    return epoch


def load_pretrained_weights(model: nn.Module, weight_path) -> None:
    """Load what fits a model by name and shape; says what was left out."""
    content = checkpoint.load_checkpoint(weight_path)
    weights = content.get("state_dict", content)
    weights = {key.removeprefix("module."): value for key, value in weights.items()}
    own = model.state_dict()
    fitting = {k: v for k, v in weights.items() if isinstance(v, Tensor) and k in own and own[k].shape == v.shape}
    if not fitting:
        raise ValueError(f"nothing in '{weight_path}' fits the model by name and shape")
    model.load_state_dict({**own, **fitting})
    logger.info(f"Loaded pretrained weights from {weight_path}")
    discarded = sorted(weights.keys() - fitting.keys())
    if discarded:
        logger.warning(f"'{weight_path}': left out, as their name or shape differs: {discarded}")
