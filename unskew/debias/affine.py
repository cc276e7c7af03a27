"""GLA as an affine function of its two halves, and of the features if both halves are linear in them."""

from typing import NamedTuple

import torch
from torch import Tensor

from unskew.debias._validation import to_prior
from unskew.debias.gla import GLA


class AffineForm(NamedTuple):
    """The function ``ft_factor * ft + zs_factor * zs + bias`` of logits ``[N, C]``.

    Attributes:
        zs_factor: Factor of the zero-shot logits.
        ft_factor: Factor of the fine-tuned logits; 0 without them.
        bias: ``[C]``, float64.
    """

    zs_factor: float
    ft_factor: float
    bias: Tensor

    def of_heads(self, zs: tuple[Tensor, Tensor], ft: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Return the weights ``[C, D]`` and bias ``[C]`` of this function of two linear heads, in float32.

        Args:
            zs: Weights and bias of the zero-shot head.
            ft: Weights and bias of the fine-tuned head; None for the zero-shot half alone.
        """
        bias = self.bias.to(zs[0].device)
        weights, bias = self.zs_factor * zs[0].double(), bias + self.zs_factor * zs[1].double()
        if ft is not None:
            weights, bias = weights + self.ft_factor * ft[0].double(), bias + self.ft_factor * ft[1].double()
        return weights.float(), bias.float()


def affine_form(gla: GLA, log_target: Tensor | None = None, *, zs_only: bool = False) -> AffineForm:
    """Return the affine form of a fitted GLA's `decision_function` (arXiv 2310.08106, f_gla, with fitted weights).

    With temperatures T, weights a of ``ft`` and b of ``zs``, and offset d, the factors are a/T_ft and b/T_zs, and the
    bias is ``-a log p - (a rho + b) log q - d + log target``.

    Args:
        gla: A fitted estimator.
        log_target: ``[C]``, as in `decision_function`.
        zs_only: Return the form without ``ft``: the factor is 1/T_zs, and the bias ``-log q + log target``.

    Raises:
        ValueError: Not fitted, fitted on probabilities, or transductive.
    """
    gla._check_fitted()
    if gla.transductive:
        raise ValueError("with 'unlabelled' or 'otter' a prediction depends on all images: it has no affine form")
    if gla.zs_least_ or gla.ft_least_:
        raise ValueError("this GLA was fitted on probabilities: fit it on logits, of which it is an affine function")
    log_q, zs_temperature = gla.log_q_.double(), float(gla.zs_temperature_)
    target = torch.zeros_like(log_q) if log_target is None else to_prior(log_target, "log_target", len(log_q), log_q)
    if gla.ft_temperature_.isnan() and not zs_only:
        raise ValueError("only the zero-shot half is fitted: pass ft to fit, or zs_only=True here")
    if zs_only:
        return AffineForm(1 / zs_temperature, 0.0, target - log_q)
    a, b, rho = float(gla.ft_weight_), float(gla.zs_weight_), float(gla.rho_)
    bias = target - a * gla.log_p_.to(log_q) - (a * rho + b) * log_q - gla.offset_.to(log_q)
    return AffineForm(b / zs_temperature, a / float(gla.ft_temperature_), bias)
