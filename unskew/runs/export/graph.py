"""ONNX files: a linear head on features, or a whole prediction from crops of images."""

import contextlib
import io
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unskew.engine.image_models import ImageModel, linear_logits
from unskew.runs.export import check
from unskew.utils.errors import format_error
from unskew.utils.files import move_into_place, remove_leftovers, temporary_path, write_error

if TYPE_CHECKING:
    from unskew.engine.trainer import SimpleTrainer

# Protocol buffers end at 2 GiB; larger weights are in a file of their own beside the graph.
MOST_BYTES = 2**31 - 2**27


class Outputs(nn.Module):
    """Logits [B, C] and calibrated probabilities [B, C] of a model whose input has an axis of V crops.

    Args:
        model: the model.
        crops: V; for 1, the input of this module has no axis of crops.
        temperature: the temperature of the probabilities.
        tested: the classes of the model to keep; ``None`` for all.
    """

    def __init__(self, model: nn.Module, crops: int, temperature: float, tested: Sequence[int] | None = None) -> None:
        super().__init__()
        self.model, self.crops, self.temperature, self.tested = model, crops, temperature, tested

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and probabilities."""
        logits = self.model(inputs[:, None] if self.crops == 1 else inputs)
        logits = logits if self.tested is None else logits[:, self.tested]
        return logits, (logits / self.temperature).softmax(1)


class FeatureHead(nn.Module):
    """The logits [B, C] of a linear head on the features [B, V, D] of V crops, which need not be normalised."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits."""
        return linear_logits(self.weight, self.bias, features).mean(1)


def write_head(trainer: "SimpleTrainer", weight: Tensor, bias: Tensor, out: Path, facts: Mapping[str, str]) -> None:
    """Write a linear head with the input ``features``, [B, D] or [B, crops, D], see `FeatureHead`."""
    crops = len(trainer.dm.tfm_crops)
    shape = (weight.shape[1],) if crops == 1 else (crops, weight.shape[1])
    rows = torch.randn(len(check.SIZES), *shape, generator=torch.Generator().manual_seed(0))
    expected = FeatureHead(weight, bias)(rows if crops > 1 else rows[:, None])
    module = Outputs(FeatureHead(weight, bias), crops, float(facts["temperature"]))
    _write(trainer, module, "features", rows, expected, out, facts)


def write_model(trainer: "SimpleTrainer", tested: Sequence[int] | None, out: Path, facts: Mapping[str, str]) -> None:
    """Write image tower and head with the input ``images``, [B, 3, H, W] or [B, crops, 3, H, W], RGB in [0, 1].

    Raises:
        ValueError: the prediction depends on all images, its models read other crops, or PyTorch cannot export it.
    """
    model = trainer.image_model()
    towers = [module for module in model.modules() if isinstance(module, ImageModel)]
    first = towers[0]
    for tower in towers:
        if tower.crops != first.crops:
            raise ValueError(
                f"the models of {trainer.cfg.TRAINER.NAME} read images of other sizes or resize them in another way, "
                f"and one graph has one input: choose models that agree ('{first.crops[0]}' and '{tower.crops[0]}')"
            )
    pictures, crops = check.pictures(), len(first.prepare)
    images = torch.stack([torch.stack([prepare(image) for prepare in first.prepare]) for image in pictures])
    images = images[:, 0] if crops == 1 else images
    expected = check.predicted(trainer, pictures, tested)
    module = Outputs(model, crops, float(facts["temperature"]), tested)
    _write(trainer, module, "images", images.to(trainer.device), expected, out, facts)


def _write(
    trainer: "SimpleTrainer",
    module: nn.Module,
    name: str,
    inputs: Tensor,
    expected: Tensor,
    out: Path,
    facts: Mapping[str, str],
) -> None:
    """Write a module as ONNX, after a comparison of its logits with the expected ones in ONNX Runtime."""
    with torch.no_grad():
        module.eval()(inputs[:2])  # trainers compute some numbers at their first use, and these must not be traced
    program = _export(trainer, module, name, inputs[:2])
    program.model.metadata_props.update(facts)
    size = sum(value.const_value.nbytes for value in program.model.graph.initializers.values() if value.const_value)
    remove_leftovers(out.parent)
    folder = temporary_path(out)
    folder.mkdir()
    try:
        try:
            program.save(folder / out.name, external_data=size > MOST_BYTES)
        except OSError as error:
            raise write_error(out, error) from error
        logits = _run(folder / out.name, name, inputs)
        check.compare(logits, expected, trainer, exact=trainer.device.type == "cpu")
        for file in sorted(folder.iterdir(), key=lambda file: file.name == out.name):  # the graph follows its weights
            move_into_place(file, out.parent / file.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _export(trainer: "SimpleTrainer", module: nn.Module, name: str, example: Tensor) -> Any:
    """Return the ONNX program of a module with a free batch size."""
    names: dict[str, Any] = {"input_names": [name], "output_names": ["logits", "probabilities"]}
    try:
        with _quiet():
            captured = _capture(module, example)
            program: Any = torch.onnx.export(captured, dynamo=True, verbose=False, **names)
    except Exception as error:  # PyTorch's exporter raises errors of many kinds
        cause = error
        while cause.__cause__ is not None:
            cause = cause.__cause__  # type: ignore[assignment]
        reason = format_error(cause)[:200]
        raise ValueError(
            f"PyTorch cannot export {trainer.cfg.TRAINER.NAME} to ONNX ({type(cause).__name__}: {reason}): write its "
            "image_model() with operations that torch.export knows"
        ) from error
    for node in program.model.graph.all_nodes():  # their notes hold paths of this machine
        node.metadata_props.clear()
    return program


def _capture(module: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """Return a module's graph. The strict way reads the code, and so follows some that tracing does not, as len(x)."""
    shapes = ({0: torch.export.Dim("batch")},)
    try:
        return torch.export.export(module, (example,), dynamic_shapes=shapes, strict=False)
    except Exception:  # PyTorch's exporter raises errors of many kinds
        return torch.export.export(module, (example,), dynamic_shapes=shapes, strict=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drop the lines of the exporter, which prints whole graphs if it fails."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _run(file: Path, name: str, inputs: Tensor) -> Tensor:
    """Return the logits [N, C] that ONNX Runtime computes on the CPU."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        return torch.from_numpy(session.run(["logits"], {name: inputs.cpu().numpy()})[0])
    except Exception as error:  # ONNX Runtime has errors of its own
        raise ValueError(f"ONNX Runtime cannot run the export: {format_error(error)[:200]}") from error
