"""WiSE-FT (Wortsman et al., CVPR 2022, arXiv 2109.01903): the model between two checkpoints, to compare with."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from unskew import config
from unskew.engine.evaluator import labels_of

INIT = "init"  # in place of a run's folder: the model as the other run's trainer starts

# What two runs must share so that a model between them means something.
_SHARED = ("DATASET.NAME", "DATASET.SUBSAMPLE_CLASSES", "MODEL.BACKBONE.NAME", "TRAINER.NAME")


def interpolate(state_a: Mapping[str, Tensor], state_b: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """``(1 - alpha) * a + alpha * b`` for each floating-point tensor of two state dicts (Section 3 of the paper).

    Other tensors must be equal, but for the counters of batch norm, on which no prediction depends.

    Args:
        alpha: in [0, 1]; 0 gives ``state_a`` and 1 ``state_b``, to the bit.

    Raises:
        ValueError: alpha out of range; other keys, shapes or types; integers that differ.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in 0..1, got {alpha}")
    if state_a.keys() != state_b.keys():
        odd = sorted(state_a.keys() ^ state_b.keys())
        raise ValueError(f"the two checkpoints hold different tensors; only one of them has '{odd[0]}'")
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
    """Logits ``[N, C]`` of the interpolated model on the test images of its dataset, and their labels ``[N]``.

    Nothing is written into the runs' folders.

    Args:
        start, end: folders of finished runs, at alpha 0 and 1; ``start`` may be "init": the model as the trainer of
            ``end`` starts, which is zero-shot CLIP for the residual prompt, TaskRes and a full fine-tuning.

    Raises:
        FileNotFoundError: a folder is missing or its run is not finished.
        ValueError: the runs differ in dataset, backbone or trainer; nothing is trained; see `interpolate`.
    """
    saved = _read_run(end)
    if start != INIT:
        other = _read_run(start)
        for key in _SHARED:
            if other[key] != saved[key]:
                raise ValueError(f"{key} is {other[key]} in '{start}' and {saved[key]} in '{end}'; it must be the same")
    names = (saved[key] for key in ("DATASET.NAME", "MODEL.BACKBONE.NAME", "TRAINER.NAME"))
    cfg = config.load(*names, config_file=str(Path(end) / "config.yaml"))

    from unskew.engine.trainer import build_trainer, set_random_seed

    set_random_seed(cfg.SEED)
    trainer = build_trainer(cfg)
    if hasattr(trainer, "base") or hasattr(trainer, "members"):
        raise ValueError(f"{cfg.TRAINER.NAME} is made of several models; give runs of one of them")
    if start != INIT:
        trainer.load_model(start)
    first = trainer.state_dict()
    if not first:
        raise ValueError(f"{cfg.TRAINER.NAME} trains nothing, so there is nothing to interpolate")
    trainer.load_model(end)
    last = trainer.state_dict()
    trainer.load_state_dict({name: interpolate(first[name], last[name], alpha) for name in last})
    items = trainer.dm.dataset.test
    with torch.no_grad():
        return trainer.predict([item.impath for item in items]).cpu(), labels_of(items)


def _read_run(folder: str) -> dict[str, object]:
    """The leaves of a finished run's config."""
    if not (Path(folder) / "done").is_file():
        raise FileNotFoundError(f"'{folder}' is not the folder of a finished run (it has no file 'done')")
    return dict(config.flatten(config.read_yaml(Path(folder) / "config.yaml")))
