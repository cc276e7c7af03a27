"""`export_run`: a finished run as a linear head or as a whole model, with a model card."""

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from unskew.data.saved_run import read_model
from unskew.engine.run_dir import RunDir
from unskew.runs import libraries
from unskew.runs.export.card import card_of, metadata_of
from unskew.runs.model import load_trainer
from unskew.runs.run import number_of_threads
from unskew.utils import threads
from unskew.utils.files import unwritable, write_atomically

if TYPE_CHECKING:
    from torch import Tensor

    from unskew.engine.trainer import SimpleTrainer

HEAD, MODEL = "head", "model"
SAFETENSORS, ONNX = ".safetensors", ".onnx"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # the extra ``export``

_CARD_MARK = "<!-- model card of unskew export: {} -->"  # the kind


class Exported(NamedTuple):
    """The result of an export: its kind, ``head`` or ``model``, the file, and its model card."""

    kind: str
    file: Path
    card: Path


def export_run(folder: str | Path, out: str | Path, kind: str = "") -> Exported:
    """Write a finished run as one file, with a model card beside it.

    The file is compared with the run's predictions before it gets its name.

    Args:
        folder: the run's folder.
        out: the file to write, ``.safetensors`` or ``.onnx``; the card has its name with ``.md``.
        kind: ``head`` for a linear layer on the backbone's image features, ``model`` for image tower and head; by
            default ``head`` if the run is linear.

    Raises:
        FileNotFoundError: the folder holds no finished run or no ``model.json``.
        ValueError: the run cannot be written to such a file, a package is missing, or ``out`` cannot be written.
    """
    out = Path(out)
    _check_out(out, Path(folder), kind)
    RunDir(folder).read_config()  # a line for a folder without a finished run
    content = read_model(folder)
    if out.suffix == ONNX:
        check_installed()
    libraries.freeze()
    import torch

    trainer = load_trainer(folder)
    with threads.limit(number_of_threads(trainer.cfg)), torch.random.fork_rng(devices=[]):  # members draw weights
        head = trainer.linear_head()
        kind = kind or (MODEL if head is None and out.suffix == ONNX else HEAD)
        _check_replaced(out, kind)
        out.parent.mkdir(parents=True, exist_ok=True)
        if kind == MODEL:
            _write_model(trainer, content, folder, out)
        else:
            _write_head(trainer, head, content, out)
    card = out.with_suffix(".md")
    write_atomically(card, f"{_CARD_MARK.format(kind)}\n{card_of(folder, content, kind, out)}")
    return Exported(kind, out, card)


def check_installed() -> None:
    """Raise ``ValueError`` if a package of the extra ``export`` is missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"an export to {ONNX} needs {', '.join(missing)}: run pip install 'unskew[export]'")


def _check_out(out: Path, folder: Path, kind: str) -> None:
    """Raise ``ValueError`` for a file that cannot be written, before anything is loaded."""
    if kind not in ("", HEAD, MODEL):
        raise ValueError(f"--kind must be {HEAD} or {MODEL} (got '{kind}')")
    if out.suffix not in (SAFETENSORS, ONNX):
        raise ValueError(f"--out must end in {SAFETENSORS} or {ONNX} (got '{out}')")
    if kind == MODEL and out.suffix != ONNX:
        raise ValueError(f"--kind {MODEL} is written as {ONNX} (got --out '{out}'): change one of them")
    card = out.with_suffix(".md")
    problem = unwritable(out.parent) or next((f"'{path}' is a folder" for path in (out, card) if path.is_dir()), "")
    if problem:
        raise ValueError(f"--out '{out}' cannot be written ({problem}): choose another place")
    if os.path.realpath(out) == os.path.realpath(RunDir(folder).predictions):
        raise ValueError(f"--out '{out}' is a file of the run: choose another name")
    if kind:
        _check_replaced(out, kind)


def _check_replaced(out: Path, kind: str) -> None:
    """Raise ``ValueError`` if a file to replace is no earlier export of this kind, which its card tells."""
    card, twin = out.with_suffix(".md"), out.with_suffix(ONNX if out.suffix == SAFETENSORS else SAFETENSORS)
    if card.exists() and twin.exists() and not out.exists():
        raise ValueError(f"'{card}' describes '{twin.name}': choose another name for --out")
    first = card.read_bytes().split(b"\n", 1)[0] if card.exists() else b""
    if first == _CARD_MARK.format(kind).encode() or not (card.exists() or out.exists()):
        return
    other = MODEL if kind == HEAD else HEAD
    if first == _CARD_MARK.format(other).encode():
        raise ValueError(
            f"'{card}' describes a {other}, but this export is a {kind}: set --kind {other}, or choose another --out"
        )
    name = card if card.exists() else out
    raise ValueError(f"--out would overwrite '{name}', which is not an earlier export: choose another name")


def _write_model(trainer: "SimpleTrainer", content: Mapping[str, Any], folder: str | Path, out: Path) -> None:
    from unskew.runs.export import graph

    if trainer.cfg.TRAINER.get("PREC", "fp32") != "fp32":  # a graph computes in one precision
        trainer = load_trainer(folder, precision="fp32")
    graph.write_model(trainer, content.get("test_classes"), out, metadata_of(content, MODEL))


def _write_head(
    trainer: "SimpleTrainer", head: "tuple[Tensor, Tensor] | None", content: Mapping[str, Any], out: Path
) -> None:
    from unskew.engine.image_models import check_not_transductive
    from unskew.runs.export import check

    if head is None:
        check_not_transductive(trainer)
        raise ValueError(
            f"{trainer.cfg.TRAINER.NAME} is not linear in the image feature, so it has no head: use --kind {MODEL} "
            f"--out {out.with_suffix(ONNX)}"
        )
    tested = content.get("test_classes")
    weights, bias = ((part if tested is None else part[tested]).cpu().contiguous() for part in head)
    images, facts = check.pictures(), metadata_of(content, HEAD)
    logits = check.features_of(trainer, images) @ weights.T + bias
    check.compare(logits, check.predicted(trainer, images, tested), trainer)
    if out.suffix == ONNX:
        from unskew.runs.export import graph

        graph.write_head(trainer, weights, bias, out, facts)
        return
    from unskew.utils.tensor_files import write_safetensors

    tensors = {"weight": weights, "bias": bias}
    write_atomically(out, lambda file: write_safetensors(file, tensors, facts))
