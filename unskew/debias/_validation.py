"""Checks of logits and labels."""

import torch


def check_logits(
    logits, labels=None, dtype: torch.dtype | None = torch.float64
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Finite logits ``[N, C]`` and their labels ``[N]``, on one device; else a ``ValueError``.

    Args:
        dtype: of the logits that are returned; None leaves them as they are.
    """
    logits = torch.as_tensor(logits).detach()
    if logits.ndim != 2 or 0 in logits.shape:
        raise ValueError(f"logits must be [N, C] with N and C of at least 1, not {list(logits.shape)}")
    device = "cpu" if logits.device.type == "mps" else logits.device  # mps has no float64
    logits = logits.to(device, dtype)
    if not all(end.isfinite() for end in logits.aminmax()):  # NaN is both ends; twenty times faster than each logit
        finite = logits.isfinite()
        row, column = (~finite).nonzero()[0].tolist()
        raise ValueError(
            f"{int((~finite).sum())} of {logits.numel()} logits are NaN or infinite, the first in row {row}, "
            f"column {column}"
        )
    if labels is None:
        return logits, None
    labels = torch.as_tensor(labels, device=device)
    if labels.shape != logits.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(
            f"labels must be {len(logits)} integers, one for each row of logits, "
            f"not {labels.dtype} of shape {list(labels.shape)}"
        )
    low, high, classes = int(labels.min()), int(labels.max()), logits.shape[1]
    if low < 0 or high >= classes:
        raise ValueError(f"labels must be in 0..{classes - 1}, the columns of logits, not {low}..{high}")
    return logits, labels.long()
