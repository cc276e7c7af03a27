"""The numbers of a fitted GLA as buffers of a module: storage, checks, and the state of a checkpoint."""

import copy
import math
from typing import Any

import torch
from torch import Tensor

from unskew.debias._validation import log_probabilities, recognise
from unskew.debias.combination import SUM, Combination
from unskew.debias.prior import PriorEstimate

_LEAST = ("zs_least_", "ft_least_")


class FittedGLA(torch.nn.Module):
    """Temperatures, priors and combination of a fit; see `unskew.debias.GLA` for the attributes."""

    zs_temperature_: Tensor
    ft_temperature_: Tensor
    log_q_: Tensor
    log_p_: Tensor
    rho_: Tensor
    ft_weight_: Tensor
    zs_weight_: Tensor
    offset_: Tensor
    zs_least_: Tensor  # smallest probability of a half that was fitted on probabilities; 0 for logits
    ft_least_: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.log_q_deviation_: Tensor | None = None
        self.prediction_prior_: PriorEstimate[Tensor] | None = None
        self.log_evidence_, self.no_bias_ = math.nan, 0.0
        for name in ("zs_temperature_", "ft_temperature_"):
            self.register_buffer(name, torch.ones((), dtype=torch.float64))
        self.register_buffer("log_q_", None)
        self.register_buffer("log_p_", None)
        for name, value in SUM._asdict().items():
            self.register_buffer(f"{name}_", torch.tensor(value, dtype=torch.float64))
        for name in _LEAST:
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))

    @property
    def n_classes_(self) -> int:
        """Number of classes."""
        self._check_fitted()
        return len(self.log_q_)

    def bias_summary(self) -> str:
        """Return the ratio of the largest to the smallest q and, if known, the evidence for a bias."""
        self._check_fitted()
        ratio = f"max/min {float((self.log_q_.max() - self.log_q_.min()).exp()):.3g}"
        if not math.isfinite(self.log_evidence_):
            return ratio
        return f"{ratio}, evidence for a bias e^{self.log_evidence_:.3g}"

    def _check_fitted(self) -> None:
        if self._buffers["log_q_"] is None:
            from sklearn.exceptions import NotFittedError  # a ValueError; scikit-learn is slow to import

            raise NotFittedError("this GLA is not fitted: call fit first")

    def _store(self, name: str, value: float | Tensor) -> None:
        """Set a number or an array, in the precision and on the device of its buffer."""
        buffer = getattr(self, name)
        setattr(self, name, value.to(buffer) if isinstance(value, Tensor) else torch.full_like(buffer, value))

    def _store_combination(self, ft_temperature: float, combination: Combination) -> None:
        self._store("ft_temperature_", ft_temperature)
        for name, value in combination._asdict().items():
            self._store(f"{name}_", value)

    @property
    def _combination(self) -> Combination:
        return Combination(*(getattr(self, f"{name}_") for name in Combination._fields))

    def _number(self, name: str, like: Tensor) -> Tensor:
        number = getattr(self, name)
        return number if number.device.type == "cpu" else number.to(like.device)

    def _recognised(self, cosines: bool = False, **halves: Tensor) -> dict[str, Tensor]:
        """Return arrays to fit on by name, with the logarithm of probabilities; predictions treat each half alike.

        Args:
            cosines: Warn of cosines too.
            **halves: ``[N, C]`` each; the names start with "zs" or "ft".
        """
        least = recognise({name: [half] for name, half in halves.items()}, cosines)
        for buffer in _LEAST:
            values = [value for name, (value,) in least.items() if name[:2] == buffer[:2]]
            if values:
                self._store(buffer, min(filter(None, values), default=0.0))
        found = {name: value for name, (value,) in least.items() if value}
        return halves | {name: log_probabilities(halves[name], value) for name, value in found.items()}

    def _least_of(self, logits: Tensor, name: str) -> float:
        """Return the number for zeros among probabilities to predict from, and 0 for logits.

        A row of probabilities that alone could be a vote is recognised if the fit was on probabilities.
        """
        least = float(getattr(self, f"{name}_least_"))
        if least:
            low, high = logits.aminmax()
            if bool(low >= 0) and bool(high <= 1):
                return least
        return recognise({name: [logits]})[name][0]

    def __copy__(self) -> "FittedGLA":
        return copy.deepcopy(self)  # a module's shallow copy would share its fitted numbers

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # The state may have any number of classes, and the estimator need not be fitted. Older states lack numbers.
        for name in ("offset_", *_LEAST):
            state_dict.setdefault(f"{prefix}{name}", torch.zeros((), dtype=torch.float64))
        self.log_q_deviation_, self.log_evidence_, self.no_bias_ = None, math.nan, 0.0  # the state has none
        for name in ("log_q_", "log_p_", "offset_"):
            saved = state_dict.get(prefix + name)
            if saved is not None:
                current = self._buffers[name]
                self._buffers[name] = torch.empty_like(saved, device=None if current is None else current.device)
        super()._load_from_state_dict(state_dict, prefix, *args)
