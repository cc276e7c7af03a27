"""`dassl.utils`: files, logs, checkpoints, registries and meters, with Dassl's signatures."""

import difflib
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from unskew.data.images import read_image
from unskew.download.fetch import fetch
from unskew.download.sources import Source
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
    "adjust_learning_rate",
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
    "set_bn_to_eval",
    "set_random_seed",
    "setup_logger",
    "tolist_if_not",
    "write_json",
]


# --- files -------------------------------------------------------------------------------------------


StrPath = str | os.PathLike[str]


def mkdir_if_missing(dirname: StrPath) -> None:
    """Create a folder and its parents if they are missing; "" is the current folder."""
    os.makedirs(dirname or ".", exist_ok=True)


def check_isfile(fpath: StrPath) -> bool:
    """Return whether a file exists; warn if not."""
    exists = os.path.isfile(fpath)
    if not exists:
        warnings.warn(f'No file found at "{fpath}"', stacklevel=2)
    return exists


def listdir_nohidden(path: StrPath, sort: bool = False) -> list[str]:
    """Return the names in a folder that do not start with a dot, in the system's order unless sorted."""
    names = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(names) if sort else names


def read_json(fpath: str | Path) -> Any:
    """Read a JSON file; see `unskew.utils.files.read_json`."""
    return files.read_json(fpath)


def write_json(obj: object, fpath: str | Path) -> None:
    """Write indented JSON atomically, and create its folder if it is missing."""
    mkdir_if_missing(os.path.dirname(fpath))
    files.write_atomically(fpath, json.dumps(obj, indent=4, separators=(",", ": ")))


def download_url(url: str, dst: str | Path) -> None:
    """Download a file unless it exists; an interrupted download resumes.

    Raises:
        ConnectionError: the download fails.
    """
    fetch(Source(name=os.path.basename(dst), urls=(url,)), dst)


def load_checkpoint(fpath: str | Path) -> dict[str, Any]:
    """Load a checkpoint onto the CPU without running code from it; see `unskew.engine.checkpoint.load_checkpoint`."""
    return checkpoint.load_checkpoint(fpath)


# --- logs --------------------------------------------------------------------------------------------


class Logger:
    """Standard output that is copied to a file line by line; used as ``sys.stdout = Logger(path)``.

    Args:
        fpath: the file to append to; ``None`` for no file.

    Raises:
        ValueError: the file cannot be written.
    """

    def __init__(self, fpath: StrPath | None = None) -> None:
        self.console: IO[str] = sys.stdout.console if isinstance(sys.stdout, Logger) else sys.stdout
        self.file: IO[str] | None = None
        if fpath is not None:
            try:
                mkdir_if_missing(os.path.dirname(fpath))
                self.file = open(fpath, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - stays open
            except OSError as error:
                raise ValueError(
                    f"the log '{fpath}' cannot be written ({error.strerror}); choose another path"
                ) from error

    def write(self, text: str) -> int:
        """Write to the console and the file."""
        if self.file is not None:
            self.file.write(text)
        return self.console.write(text)

    def flush(self) -> None:
        """Flush the console and the file."""
        self.console.flush()
        if self.file is not None:
            self.file.flush()

    def close(self) -> None:
        """Close the file; the console stays open."""
        if self.file is not None:
            self.file.close()
            self.file = None

    def __enter__(self) -> "Logger":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        if name == "console":  # before __init__, where self.console would recurse
            raise AttributeError(name)
        return getattr(self.console, name)


def show_log_lines() -> None:
    """Print the engine's log lines without a prefix, as Dassl does, unless the logger already has handlers."""
    logger = logging.getLogger("unskew")
    if logger.handlers:
        return
    handler = LinesOnStream("stdout")
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def setup_logger(output: StrPath | None = None) -> None:
    """Copy standard output to ``output/log.txt``, appending to the log of an interrupted run.

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
    """Return the string in ``b`` most similar to ``a`` (the last of several), or ``None`` if ``b`` is empty."""
    chosen, highest = None, 0.0
    for candidate in b:
        similarity = difflib.SequenceMatcher(None, a, candidate).ratio()
        if similarity >= highest:
            chosen, highest = candidate, similarity
    return chosen


def check_availability(requested: str, available: Iterable[str]) -> None:
    """Raise ``ValueError`` with a suggestion unless ``requested`` is in ``available``."""
    if requested not in available:
        near = get_most_similar_str_to_a_from_b(requested, available)
        raise ValueError(f"'{requested}' is not one of {', '.join(available)}; did you mean '{near}'?")


def tolist_if_not(x: Any) -> list[Any]:
    """Return ``x`` if it is a list, else ``[x]``."""
    return x if isinstance(x, list) else [x]


# --- models ------------------------------------------------------------------------------------------


def count_num_param(model: nn.Module | None = None, params: Iterable | None = None) -> int:
    """Count the parameters of a model, or of an iterable of parameters or of optimizer groups with one parameter each.

    Raises:
        ValueError: neither argument is given.
    """
    if model is not None:
        return sum(parameter.numel() for parameter in model.parameters())
    if params is None:
        raise ValueError("count_num_param needs a model or params")
    return sum((entry["params"] if isinstance(entry, Mapping) else entry).numel() for entry in params)


def adjust_learning_rate(
    optimizer: Optimizer,
    base_lr: float,
    epoch: int,
    stepsize: int = 20,
    gamma: float = 0.1,
    linear_decay: bool = False,
    final_lr: float = 0,
    max_epoch: int = 100,
) -> None:
    """Set the learning rate of an epoch: ``base_lr * gamma ** (epoch // stepsize)``, or linear to ``final_lr``."""
    if linear_decay:
        lr = base_lr + (final_lr - base_lr) * epoch / max_epoch
    else:
        lr = base_lr * gamma ** (epoch // stepsize)
    for group in optimizer.param_groups:
        group["lr"] = lr


def set_bn_to_eval(m: nn.Module) -> None:
    """Set a batch norm to evaluation mode, for ``model.apply``; its weights still learn."""
    if "BatchNorm" in type(m).__name__:
        m.eval()


def open_all_layers(model: nn.Module) -> None:
    """Set training mode, with gradients for all parameters."""
    model.train()
    model.requires_grad_(True)


def open_specified_layers(model: nn.Module, open_layers: str | Iterable[str]) -> None:
    """Train the named children with gradients; set all others to evaluation mode without gradients.

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
    """Initialise convolutions and linear layers at random; biases to 0, weights of normalisation layers to 1.

    ``init_type`` is normal (with standard deviation ``gain``), xavier, kaiming or orthogonal.

    Raises:
        ValueError: ``init_type`` is unknown.
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


def resume_from_checkpoint(
    fdir: str | Path, model: nn.Module, optimizer: Optimizer | None = None, scheduler: LRScheduler | None = None
) -> int:
    """Load the last checkpoint of a folder into a model and, if given, its optimizer and scheduler.

    Returns:
        The epoch to resume from.

    Raises:
        FileNotFoundError: the folder has no checkpoint.
        ValueError: the checkpoint is damaged or does not fit the model.
    """
    path = checkpoint.last_checkpoint(fdir)
    if path is None:
        raise FileNotFoundError(f"'{fdir}' has no checkpoint to resume from")
    epoch = checkpoint.restore(checkpoint.load_checkpoint(path), model, optimizer, scheduler, source=path)
    logger.info(f"Loaded checkpoint {path} (previous epoch: {epoch})")
    return epoch


def load_pretrained_weights(model: nn.Module, weight_path: str | Path) -> None:
    """Load the weights that fit a model by name and shape, and log the others.

    Raises:
        ValueError: no weight fits.
    """
    content = checkpoint.load_checkpoint(weight_path)
    weights = content.get("state_dict", content)
    weights = {key.removeprefix("module."): value for key, value in weights.items()}
    state = model.state_dict()
    fitting = {k: v for k, v in weights.items() if isinstance(v, Tensor) and k in state and state[k].shape == v.shape}
    if not fitting:
        raise ValueError(f"no weight in '{weight_path}' fits the model by name and shape; choose another file")
    model.load_state_dict({**state, **fitting})
    logger.info(f"Loaded pretrained weights from {weight_path}")
    discarded = sorted(weights.keys() - fitting.keys())
    if discarded:
        logger.warning(f"'{weight_path}': skipped because of their name or shape: {discarded}")
