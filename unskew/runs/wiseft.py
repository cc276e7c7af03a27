"""WiSE-FT, interpolation of two checkpoints (Wortsman et al., CVPR 2022, arXiv 2109.01903), as a baseline."""

from collections.abc import Mapping

import torch
from torch import Tensor

from unskew import config
from unskew.engine.evaluator import labels_of
from unskew.engine.run_dir import RunDir

INIT = "init"  # instead of a run's folder: the model before the other run's training

# Keys in which two runs must agree before their weights may be averaged.
_SHARED = ("DATASET.NAME", "DATASET.SUBSAMPLE_CLASSES", "MODEL.BACKBONE.NAME", "TRAINER.NAME")


def interpolate(state_a: Mapping[str, Tensor], state_b: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Return ``(1 - alpha) * a + alpha * b`` for each floating-point tensor (Section 3 of the paper).

    Other tensors must be equal, except for the counters of batch norm, which no prediction uses.

    Args:
        state_a: a state dict.
        state_b: a state dict with the same keys, shapes and types.
        alpha: in [0, 1]; 0 gives ``state_a`` and 1 ``state_b``, to the bit.

    Raises:
        ValueError: alpha is out of range; keys, shapes or types differ; integer tensors differ.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be between 0 and 1, got {alpha}")
    if state_a.keys() != state_b.keys():
        odd = sorted(state_a.keys() ^ state_b.keys())
        raise ValueError(
            f"only one of the two checkpoints has the tensor '{odd[0]}'; interpolate two runs of the same trainer"
        )
    return {key: _between(key, a, state_b[key], alpha) for key, a in state_a.items()}


def _between(key: str, a: Tensor, b: Tensor, alpha: float) -> Tensor:
    if a.shape != b.shape or a.dtype != b.dtype:
        raise ValueError(
            f"'{key}' is {a.dtype} of shape {list(a.shape)} in one checkpoint and {b.dtype} of {list(b.shape)} in "
            "the other; interpolate two runs of the same trainer, backbone and classes"
        )
    if a.is_floating_point() and 0 < alpha < 1:  # at an end lerp would turn -0.0 into 0.0
        return torch.lerp(a, b, alpha)
    if not (a.is_floating_point() or torch.equal(a, b) or key.endswith("num_batches_tracked")):
        raise ValueError(f"'{key}' holds integers that differ between the checkpoints and cannot be interpolated")
    return (a if alpha < 0.5 else b).clone()


def predict_test(start: str, end: str, alpha: float) -> tuple[Tensor, Tensor]:
    """Return the logits [N, C] of the interpolated model on the test images of its dataset, and their labels [N].

    Nothing is written into the runs' folders.

    Args:
        start: the folder of the finished run at alpha 0, or "init" for the model before the training of ``end``:
            zero-shot CLIP for the residual prompt, TaskRes and full fine-tuning.
        end: the folder of the finished run at alpha 1.
        alpha: the weight of ``end``.

    Raises:
        FileNotFoundError: a folder is missing or its run is not finished.
        ValueError: the runs differ in dataset, backbone or trainer; the trainer trains nothing; see `interpolate`.
    """
    saved = dict(config.flatten(RunDir(end).read_config()))
    if start != INIT:
        other = dict(config.flatten(RunDir(start).read_config()))
        for key in _SHARED:
            if other[key] != saved[key]:
                raise ValueError(
                    f"{key} is {other[key]} in '{start}' and {saved[key]} in '{end}'; choose runs that agree in it"
                )
    cfg = config.restore(RunDir(end).config)

    from unskew.engine.trainer import build_trainer
    from unskew.utils.seeds import set_random_seed

    set_random_seed(cfg.SEED)
    trainer = build_trainer(cfg)
    if hasattr(trainer, "base") or hasattr(trainer, "members"):
        raise ValueError(f"{cfg.TRAINER.NAME} combines several models; give runs of a single model")
    if start != INIT:
        trainer.load_model(start)
    first = trainer.state_dict()
    if not first:
        raise ValueError(f"{cfg.TRAINER.NAME} trains nothing that could be interpolated; choose another trainer")
    trainer.load_model(end)
    last = trainer.state_dict()
    trainer.load_state_dict({name: interpolate(first[name], last[name], alpha) for name in last})
    items = trainer.dm.dataset.test
    with torch.no_grad():
        return trainer.predict([item.impath for item in items]).cpu(), labels_of(items)
