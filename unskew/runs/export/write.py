"""`export_run`: a finished run as a linear head or as a whole model, with a model card."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from unskew.data.saved_run import read_model
from unskew.engine.run_dir import RunDir
from unskew.runs.export.card import card_of, metadata_of
from unskew.runs.model import load_trainer
from unskew.runs.run import load_run
from unskew.utils.files import unwritable, write_atomically

if TYPE_CHECKING:
    from torch import Tensor

    from unskew.engine.trainer import SimpleTrainer

HEAD, MODEL = "head", "model"
SAFETENSORS, ONNX = ".safetensors", ".onnx"

_CARD_MARK = "<!-- model card of unskew export -->"


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
    if out.suffix == ONNX:
        from unskew.runs.export import graph

        graph.check_installed()
    run, content = load_run(folder), read_model(folder)
    from unskew.engine.image_models import check_not_transductive

    trainer = load_trainer(folder)
    head = trainer.linear_head()
    kind = kind or (MODEL if head is None and out.suffix == ONNX else HEAD)
    if kind == HEAD and head is None:
        check_not_transductive(trainer)
        raise ValueError(
            f"{trainer.cfg.TRAINER.NAME} in '{folder}' is not linear in the image feature, so it has no head: "
            f"use --kind {MODEL} --out {out.with_suffix(ONNX)}"
        )
    facts = metadata_of(content, kind)
    if kind == HEAD and head is not None:
        _write_head(trainer, head, out, facts)
    else:
        if trainer.cfg.TRAINER.get("PREC", "fp32") != "fp32":  # a graph computes in one precision
            trainer = load_trainer(folder, precision="fp32")
        graph.write_model(trainer, out, facts)
    card = out.with_suffix(".md")
    write_atomically(card, f"{_CARD_MARK}\n{card_of(run, content, kind, out)}")
    return Exported(kind, out, card)


def _check_out(out: Path, folder: Path, kind: str) -> None:
    """Raise ``ValueError`` for a file that cannot be written, before anything is loaded."""
    if kind not in ("", HEAD, MODEL):
        raise ValueError(f"--kind must be {HEAD} or {MODEL} (got '{kind}')")
    if out.suffix not in (SAFETENSORS, ONNX):
        raise ValueError(f"--out must end in {SAFETENSORS} or {ONNX} (got '{out}')")
    if kind == MODEL and out.suffix != ONNX:
        raise ValueError(f"--kind {MODEL} is written as {ONNX} (got --out '{out}'): change one of them")
    if not out.parent.is_dir():
        raise ValueError(f"--out '{out}': there is no folder '{out.parent}'; create it, or choose another")
    card = out.with_suffix(".md")
    problem = unwritable(out.parent) or next((f"'{path}' is a folder" for path in (out, card) if path.is_dir()), "")
    if problem:
        raise ValueError(f"--out '{out}' cannot be written ({problem}): choose another place")
    if os.path.realpath(out) == os.path.realpath(RunDir(folder).predictions):
        raise ValueError(f"--out '{out}' is a file of the run: choose another name")
    if card.exists() and not card.read_bytes().startswith(_CARD_MARK.encode()):
        raise ValueError(f"the model card would overwrite '{card}', which is no card: choose another --out")


def _write_head(trainer: "SimpleTrainer", head: "tuple[Tensor, Tensor]", out: Path, facts: Mapping[str, str]) -> None:
    from unskew.runs.export import check

    weights, bias = (tensor.cpu().contiguous() for tensor in head)
    with check.pictures() as paths:
        features, expected = check.features_of(trainer, paths), trainer.predict_parts(paths).logits.cpu()
    check.compare(features @ weights.T + bias, expected, trainer)
    if out.suffix == ONNX:
        from unskew.runs.export import graph

        graph.write_head(trainer, weights, bias, out, facts)
        return
    from unskew.utils.tensor_files import write_safetensors

    tensors = {"weight": weights, "bias": bias}
    write_atomically(out, lambda file: write_safetensors(file, tensors, facts))
