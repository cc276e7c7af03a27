"""Batch normalisation for several domains: DSBN (arXiv 1906.03950) and TransNorm (NeurIPS 2019)."""

import torch
from torch import Tensor, nn

__all__ = ["DSBN1d", "DSBN2d", "TransNorm1d", "TransNorm2d"]


class _DSBN(nn.Module):
    """Domain-specific batch normalisation: one batch norm per domain.

    Args:
        num_features: width C of the features.
        n_domain: the number of domains.
        bn_type: "1d" or "2d".
    """

    def __init__(self, num_features: int, n_domain: int, bn_type: str) -> None:
        super().__init__()
        kinds = {"1d": nn.BatchNorm1d, "2d": nn.BatchNorm2d}
        if bn_type not in kinds:
            raise ValueError(f"bn_type must be '1d' or '2d', got '{bn_type}'")
        self.bn = nn.ModuleList(kinds[bn_type](num_features) for _ in range(n_domain))
        self.n_domain, self.valid_domain_idxs = n_domain, list(range(n_domain))
        self.domain_idx = 0

    def select_bn(self, domain_idx: int = 0) -> None:
        """Use the batch norm of a domain from now on."""
        if domain_idx not in self.valid_domain_idxs:
            raise ValueError(f"domain_idx must be from 0 to {self.n_domain - 1}, got {domain_idx}")
        self.domain_idx = domain_idx

    def forward(self, x: Tensor) -> Tensor:
        """Return features, normalised by the selected domain."""
        return self.bn[self.domain_idx](x)


class DSBN1d(_DSBN):
    """Domain-specific batch normalisation of features [B, C]."""

    def __init__(self, num_features: int, n_domain: int) -> None:
        super().__init__(num_features, n_domain, "1d")


class DSBN2d(_DSBN):
    """Domain-specific batch normalisation of features [B, C, H, W]."""

    def __init__(self, num_features: int, n_domain: int) -> None:
        super().__init__(num_features, n_domain, "2d")


class _TransNorm(nn.Module):
    """Transferable normalisation (Wang et al., NeurIPS 2019): source and target have statistics of their own.

    In training the first half of a batch is the source and the second half the target. Weight and bias are shared. In
    evaluation the target's statistics are used.

    Args:
        num_features: width C of the features.
        eps: added to variances.
        momentum: share of the old value in the running statistics, as in Dassl: ``m * old + (1 - m) * new``.
        adaptive_alpha: whether outputs are multiplied by ``1 + alpha`` (eq. 5 and 6).
    """

    dim = 0

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, adaptive_alpha: bool = True
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum, self.adaptive_alpha = num_features, eps, momentum, adaptive_alpha
        for domain in "st":
            self.register_buffer(f"running_mean_{domain}", torch.zeros(num_features))
            self.register_buffer(f"running_var_{domain}", torch.ones(num_features))
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def resnet_running_stats(self) -> None:
        """Reset the running statistics. The name is Dassl's."""
        for domain in "st":
            getattr(self, f"running_mean_{domain}").zero_()
            getattr(self, f"running_var_{domain}").fill_(1)

    def reset_parameters(self) -> None:
        """Reset weight and bias."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def _check_input(self, x: Tensor) -> None:
        if x.dim() != self.dim:
            raise ValueError(f"{type(self).__name__} needs {self.dim}-D features, got {x.dim()}-D")

    def _compute_alpha(self, mean_s: Tensor, var_s: Tensor, mean_t: Tensor, var_t: Tensor) -> Tensor:
        """Return alpha [C]: ``C / (1 + d_c)``, normalised over channels, for the distance d of mean / deviation."""
        ratio_s, ratio_t = mean_s / (var_s + self.eps).sqrt(), mean_t / (var_t + self.eps).sqrt()
        similarity = 1 / (1 + (ratio_s - ratio_t).abs())
        return self.num_features * similarity / similarity.sum()

    def _running(self, domain: str) -> tuple[Tensor, Tensor]:
        return getattr(self, f"running_mean_{domain}"), getattr(self, f"running_var_{domain}")

    def _update(self, half: Tensor, domain: str) -> tuple[Tensor, Tensor]:
        """Return mean and variance [C] of half a batch, and add them to the running statistics."""
        values = half.transpose(0, 1).flatten(1)  # [C, B * H * W]
        statistics = values.mean(1), values.var(1)
        for running, new in zip(self._running(domain), statistics, strict=True):
            running.mul_(self.momentum).add_((1 - self.momentum) * new.detach())
        return statistics

    def _normalised(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        mean, var, weight, bias = (self._by_channel(v) for v in (mean, var, self.weight, self.bias))
        return (x - mean) / (var + self.eps).sqrt() * weight + bias

    def _by_channel(self, values: Tensor) -> Tensor:
        return values.view(1, -1, *[1] * (self.dim - 2))

    def forward(self, input: Tensor) -> Tensor:
        """Return normalised features, of the input's shape; in training the batch must be even."""
        self._check_input(input)
        if self.training:
            source, target = input.split(len(input) // 2)
            statistics_s, statistics_t = self._update(source, "s"), self._update(target, "t")
            halves = [self._normalised(source, *statistics_s), self._normalised(target, *statistics_t)]
            output = torch.cat(halves)
        else:
            statistics_s, statistics_t = self._running("s"), self._running("t")
            output = self._normalised(input, *statistics_t)
        if self.adaptive_alpha:
            alpha = self._compute_alpha(*statistics_s, *statistics_t).detach()
            output = (1 + self._by_channel(alpha)) * output
        return output


class TransNorm1d(_TransNorm):
    """Transferable normalisation of features [B, C]."""

    dim = 2


class TransNorm2d(_TransNorm):
    """Transferable normalisation of features [B, C, H, W]."""

    dim = 4
