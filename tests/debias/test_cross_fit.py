"""Cross-fitting of arrays that some folds alone would read otherwise."""

import pytest
import torch

from unskew.debias.cross_fit import cross_fit, cross_scores
from unskew.debias.gla import GLA


@pytest.fixture
def arrays():
    """Probabilities of both halves [60, 4] and labels."""
    noise = torch.randn(2, 60, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(60) % 4
    zs, ft = (noise + 2 * torch.eye(4)[labels]).softmax(2)
    return zs, ft, labels


def test_folds_without_the_odd_row_read_logits_like_the_others(arrays):
    zs, ft, labels = arrays
    zs[7] *= 3  # these are no probabilities
    plan = cross_fit(GLA(), zs, ft.log(), labels)
    assert [fitted.zs_least_.item() for _, fitted in plan] == [0] * 5
    for rows, fitted in plan:
        alone = GLA()._fit_zeroshot(zs[~rows], labels[~rows])  # the numbers as they are
        assert torch.equal(fitted.zs_temperature_, alone.zs_temperature_)


def test_folds_of_probabilities_are_those_of_their_logarithms(arrays):
    zs, ft, labels = arrays
    found = []
    for pair in ((zs, ft), (zs.log(), ft.log())):
        ((_, parts),) = cross_scores(cross_fit(GLA(), *pair, labels), *pair)
        found.append(parts["gla"])
    assert torch.equal(*found)
