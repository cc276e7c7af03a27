"""Distances between two batches of features: maximum mean discrepancy, Sinkhorn divergence and energy distance."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from unskew.dassl.metrics import euclidean_squared_distance
from unskew.utils.registry import unknown_name

__all__ = ["MaximumMeanDiscrepancy", "MinibatchEnergyDistance", "OptimalTransport", "SinkhornDivergence"]

_KERNELS = ("linear", "poly", "rbf")


def _without_diagonal(matrix: Tensor) -> Tensor:
    """Return a square matrix [N, N] without its diagonal [N, N - 1]."""
    size = len(matrix)
    return matrix[~torch.eye(size, dtype=torch.bool, device=matrix.device)].view(size, size - 1)


class MaximumMeanDiscrepancy(nn.Module):
    """The unbiased estimate of MMD^2 (Gretton et al., JMLR 2012, eq. 3): ``E k(x, x') + E k(y, y') - 2 E k(x, y)``.

    Args:
        kernel_type: "linear", "poly" or "rbf".
        normalize: divide features by their length first.
    """

    def __init__(self, kernel_type: str = "rbf", normalize: bool = False) -> None:
        super().__init__()
        if kernel_type not in _KERNELS:
            raise ValueError(unknown_name("kernel_type", kernel_type, _KERNELS))
        self.kernel_type, self.normalize = kernel_type, normalize

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the estimate for features [M, D] and [N, D]; M and N are 2 or more."""
        if self.normalize:
            x, y = normalize(x, dim=1), normalize(y, dim=1)
        return getattr(self, f"{self.kernel_type}_mmd")(x, y)

    def linear_mmd(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the estimate for the kernel ``x . y``."""
        within = _without_diagonal(x @ x.T).mean() + _without_diagonal(y @ y.T).mean()
        return within - 2 * (x @ y.T).mean()

    def poly_mmd(self, x: Tensor, y: Tensor, alpha: float = 1.0, c: float = 2.0, d: int = 2) -> Tensor:
        """Return the estimate for the kernel ``(alpha x . y + c) ** d``."""
        k_xx, k_yy, k_xy = (
            (alpha * products + c).pow(d)
            for products in (_without_diagonal(x @ x.T), _without_diagonal(y @ y.T), x @ y.T)
        )
        return k_xx.mean() + k_yy.mean() - 2 * k_xy.mean()

    def rbf_mmd(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the estimate for a sum of Gaussian kernels."""
        k_xx, k_yy, k_xy = (
            self.rbf_kernel_mixture(distances)
            for distances in (
                _without_diagonal(euclidean_squared_distance(x, x)),
                _without_diagonal(euclidean_squared_distance(y, y)),
                euclidean_squared_distance(x, y),
            )
        )
        return k_xx.mean() + k_yy.mean() - 2 * k_xy.mean()

    @staticmethod
    def rbf_kernel_mixture(exponent: Tensor, sigmas: Sequence[float] = (1, 5, 10)) -> Tensor:
        """Return ``sum_s exp(-exponent / (2 s^2))``."""
        return sum((torch.exp(-(1 / (2 * s**2)) * exponent) for s in sigmas), torch.zeros_like(exponent))

    remove_self_distance = staticmethod(_without_diagonal)
    euclidean_squared_distance = staticmethod(euclidean_squared_distance)


class OptimalTransport(nn.Module):
    """Base class of distances by optimal transport."""

    @staticmethod
    def distance(batch1: Tensor, batch2: Tensor, dist_metric: str = "cosine") -> Tensor:
        """Return the cost matrix [M, N] of features [M, D] and [N, D].

        Args:
            batch1: features.
            batch2: features.
            dist_metric: "cosine"; "euclidean" and "fast_euclidean" are squared, the latter from all differences.

        Raises:
            ValueError: the metric is unknown.
        """
        if dist_metric == "cosine":
            return 1 - normalize(batch1, dim=1) @ normalize(batch2, dim=1).T
        if dist_metric == "euclidean":
            return euclidean_squared_distance(batch1, batch2)
        if dist_metric == "fast_euclidean":
            return (batch1.unsqueeze(-2) - batch2.unsqueeze(-3)).square().sum(-1)
        raise ValueError(unknown_name("dist_metric", dist_metric, ("cosine", "euclidean", "fast_euclidean")))


class SinkhornDivergence(OptimalTransport):
    """The Sinkhorn divergence (Genevay et al., arXiv 1706.00292, eq. 2): ``2 W(x, y) - W(x, x) - W(y, y)``.

    W is the cost of the entropy-regularised transport plan, from Sinkhorn's iterations in the log domain.

    Args:
        dist_metric: the cost: "cosine", "euclidean" or "fast_euclidean".
        eps: strength of the regularisation.
        max_iter: the largest number of iterations.
        bp_to_sinkhorn: whether gradients pass through the plan; otherwise it is a constant.
    """

    thre = 1e-3

    def __init__(
        self, dist_metric: str = "cosine", eps: float = 0.01, max_iter: int = 5, bp_to_sinkhorn: bool = False
    ) -> None:
        super().__init__()
        self.dist_metric, self.eps, self.max_iter, self.bp_to_sinkhorn = dist_metric, eps, max_iter, bp_to_sinkhorn

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the divergence of features [M, D] and [N, D]."""
        return 2 * self._cost(x, y) - self._cost(x, x) - self._cost(y, y)

    def transport_cost(self, x: Tensor, y: Tensor, return_pi: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Return the cost of the plan, and with ``return_pi`` the plan [M, N]."""
        costs = self.distance(x, y, self.dist_metric)
        plan = self.sinkhorn_iterate(costs, self.eps, self.max_iter, self.thre)
        if not self.bp_to_sinkhorn:
            plan = plan.detach()
        cost = (plan * costs).sum()
        return (cost, plan) if return_pi else cost

    def _cost(self, x: Tensor, y: Tensor) -> Tensor:
        cost = self.transport_cost(x, y)
        return cost if isinstance(cost, Tensor) else cost[0]

    @staticmethod
    def sinkhorn_iterate(C: Tensor, eps: float, max_iter: int, thre: float) -> Tensor:
        """Return the plan [M, N] of a cost matrix with uniform marginals.

        The dual potentials are ``u = eps (log(1 / M) - logsumexp_j((v_j - C_ij) / eps))`` and v alike (Peyre and
        Cuturi, arXiv 1803.00567, section 4.4), until the sum of the changes of u is below ``thre``.
        """
        rows, columns = (torch.full((size,), 1 / size, dtype=C.dtype, device=C.device) for size in C.shape)
        u, v = torch.zeros_like(rows), torch.zeros_like(columns)

        def exponent() -> Tensor:
            return (-C + u.unsqueeze(1) + v) / eps

        for _ in range(max_iter):
            before = u
            u = eps * (torch.log(rows + 1e-8) - torch.logsumexp(exponent(), dim=1)) + u
            v = eps * (torch.log(columns + 1e-8) - torch.logsumexp(exponent().T, dim=1)) + v
            if (u - before).abs().sum().item() < thre:
                break
        return torch.exp(exponent())


class MinibatchEnergyDistance(SinkhornDivergence):
    """The minibatch energy distance of OT-GAN (arXiv 1803.05573, eq. 5), from two halves of each batch."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``W(x1, y1) + W(x1, y2) + W(x2, y1) + W(x2, y2) - 2 W(x1, x2) - 2 W(y1, y2)``."""
        (x1, x2), (y1, y2) = (batch.split(len(batch) // 2) for batch in (x, y))
        cost = self._cost
        between = cost(x1, y1) + cost(x1, y2) + cost(x2, y1) + cost(x2, y2)
        return between - 2 * cost(x1, x2) - 2 * cost(y1, y2)
