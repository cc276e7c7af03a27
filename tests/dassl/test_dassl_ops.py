"""Operations of Dassl's trainers against calculations in float64 from their equations."""

import copy
import math
import random

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn
from torch.nn import functional as F

from unskew.dassl import ops

# --- operations --------------------------------------------------------------------------------------


def test_mixup_mixes_images_and_labels_by_one_share_each():
    torch.manual_seed(0)
    x1, x2 = torch.ones(500, 2, 3, 3), torch.zeros(500, 2, 3, 3)
    y1, y2 = F.one_hot(torch.zeros(500, dtype=torch.long), 2).float(), F.one_hot(torch.ones(500).long(), 2).float()
    x, y = ops.mixup(x1, x2, y1, y2, beta=0.75)
    share = x[:, 0, 0, 0]
    assert torch.equal(x, share.view(-1, 1, 1, 1).expand_as(x))
    assert torch.allclose(y, torch.stack([share, 1 - share], 1))
    assert share.mean() == pytest.approx(0.5, abs=0.08)
    assert share.var() == pytest.approx(1 / (4 * (2 * 0.75 + 1)), rel=0.15)  # of Beta(b, b)
    ordered, _ = ops.mixup(x1, x2, y1, y2, 0.75, preserve_order=True)
    assert ordered.min() >= 0.5


def test_reversed_gradient():
    x = torch.randn(3, requires_grad=True)
    y = ops.ReverseGrad()(x, grad_scaling=0.3)
    assert torch.equal(x, y)
    y.sum().backward()
    assert torch.allclose(x.grad, torch.full((3,), -0.3))
    with pytest.raises(ValueError, match="grad_scaling"):
        ops.ReverseGrad()(x, -1)


def test_small_operations():
    logits, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, 2])
    onehot = ops.create_onehot(labels, 3)
    assert onehot.tolist() == torch.eye(3)[labels].tolist()
    smooth = 0.9 * onehot + 0.1 / 3
    losses = -(smooth * logits.log_softmax(1)).sum(1)
    assert torch.allclose(ops.cross_entropy(logits, labels, 0.1, "none"), losses)
    assert torch.allclose(ops.cross_entropy(logits, labels, label_smooth=0.1), losses.mean())
    assert torch.allclose(ops.sharpen_prob(torch.tensor([[0.25, 0.75]])), torch.tensor([[0.1, 0.9]]))
    data, label = ops.reverse_index(logits, labels)
    assert torch.equal(data[0], logits[3]) and label.tolist() == [2, 1, 2, 0]
    data, label = ops.shuffle_index(torch.arange(50), torch.arange(50))
    assert torch.equal(data, label) and sorted(data.tolist()) == list(range(50)) != data.tolist()


def test_rampups():
    assert [ops.linear_rampup(step, 4) for step in (-1, 0, 1, 4, 9)] == [0, 0, 0.25, 1, 1]
    assert [ops.sigmoid_rampup(step, 4) for step in (0, 2, 9)] == pytest.approx([math.exp(-5), math.exp(-1.25), 1])
    with pytest.raises(ValueError, match="rampup_length"):
        ops.sigmoid_rampup(1, 0)


def test_moving_average_of_a_model():
    model = torch.nn.Linear(2, 2)
    average = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    expected = [0.9 * a + 0.1 * p for a, p in zip(average.parameters(), model.parameters(), strict=True)]
    ops.ema_model_update(model, average, 0.9)
    assert all(torch.allclose(a, e) for a, e in zip(average.parameters(), expected, strict=True))


# --- MixStyle and EFDMix -------------------------------------------------------------------------------


def features(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def drawn_share_and_order(layer, size, seed):
    """Return what a layer draws after a seed: the shares of the images and the order of the other images."""
    random.seed(seed)
    torch.manual_seed(seed)
    assert random.random() <= layer.p
    share = torch.distributions.Beta(layer.alpha, layer.alpha).sample((size, 1, 1, 1)).double()
    return share, layer._others(size)


def run(layer, x, seed):
    random.seed(seed)
    torch.manual_seed(seed)
    return layer(x)


@pytest.mark.parametrize("mix", ["random", "crossdomain"])
def test_mixstyle_is_its_equations(mix):
    x = features(4, 3, 5, 6)
    layer = ops.MixStyle(p=1.0, alpha=0.3, mix=mix)
    for seed in range(5):
        share, order = drawn_share_and_order(layer, 4, seed)
        found = run(layer, x.clone(), seed)
        for i in range(4):
            for c in range(3):
                mine, other, keep = x[i, c], x[order[i], c], share[i].item()
                sigma, sigma2 = (math.sqrt(v.var().item() + 1e-6) for v in (mine, other))
                mean = keep * mine.mean() + (1 - keep) * other.mean()
                expected = (keep * sigma + (1 - keep) * sigma2) * (mine - mine.mean()) / sigma + mean
                assert torch.allclose(found[i, c], expected)


@pytest.mark.parametrize("mix", ["random", "crossdomain"])
def test_efdmix_moves_sorted_values(mix):
    x = features(4, 3, 5, 6)
    layer = ops.EFDMix(p=1.0, alpha=0.3, mix=mix)
    for seed in range(5):
        share, order = drawn_share_and_order(layer, 4, seed)
        found = run(layer, x.clone(), seed)
        for i in range(4):
            for c in range(3):
                mine, other = x[i, c].flatten().tolist(), sorted(x[order[i], c].flatten().tolist())
                matched = [other[sorted(mine).index(value)] for value in mine]
                keep = share[i].item()
                expected = [keep * a + (1 - keep) * b for a, b in zip(mine, matched, strict=True)]
                assert found[i, c].flatten().tolist() == pytest.approx(expected, abs=1e-6)  # shares are float32


def test_gradients_of_mixing():
    x = features(4, 3, 5, 6).requires_grad_()
    layer = ops.MixStyle(p=1.0)
    weights = features(4, 3, 5, 6, seed=1)
    share, order = drawn_share_and_order(layer, 4, 3)
    (run(layer, x, 3) * weights).sum().backward()
    sigma = (x.detach().var((2, 3), keepdim=True) + 1e-6).sqrt()
    mixed = share * sigma + (1 - share) * sigma[order]
    assert torch.allclose(x.grad, weights * mixed / sigma)  # the statistics are constants
    y = features(4, 3, 5, 6).requires_grad_()
    layer = ops.EFDMix(p=1.0)
    share, order = drawn_share_and_order(layer, 4, 3)
    (run(layer, y, 3) * weights).sum().backward()
    ranks = y.detach().flatten(2).argsort(-1).argsort(-1)  # [B, C, H * W]
    expected = weights.clone().flatten(2)
    places = y.detach().flatten(2).argsort(-1)
    for i in range(4):
        for c in range(3):
            for place in range(30):
                target = places[order[i], c, ranks[i, c, place]]
                expected[order[i], c, target] += (1 - share[i].item()) * weights.flatten(2)[i, c, place]
    assert torch.allclose(y.grad.flatten(2), expected)


@pytest.mark.parametrize("kind", [ops.MixStyle, ops.EFDMix])
def test_batches_are_mixed_with_probability_p_in_training_only(kind):
    x = features(4, 3, 2, 2).float()
    layer = kind(p=0.3, alpha=2.0)
    random.seed(0)
    torch.manual_seed(0)
    mixed = sum(not torch.equal(layer(x), x) for _ in range(400))
    assert abs(mixed / 400 - 0.3) < 5 * math.sqrt(0.21 / 400) + 0.05  # an order may be the identity
    assert mixed > 0
    assert torch.equal(layer.eval()(x), x)
    assert "p=0.3, alpha=2.0" in repr(layer)
    with pytest.raises(ValueError, match="'diagonal'"):
        kind(p=1.0, mix="diagonal")(x)


@pytest.mark.parametrize("size", [4, 5, 6])
def test_crossdomain_takes_the_other_half(size):
    layer = ops.MixStyle(mix="crossdomain")
    orders = set()
    for seed in range(60):
        torch.manual_seed(seed)
        order = layer._others(size).tolist()
        assert sorted(order) == list(range(size))
        half = size // 2
        first = size - half  # chunk gives the longer part to the first half
        assert all(other >= half for other in order[:first])
        orders.add(tuple(order))
    assert len(orders) > 3


@pytest.mark.parametrize("name", ["mixstyle", "efdmix"])
def test_switches(name):
    kind = {"mixstyle": ops.MixStyle, "efdmix": ops.EFDMix}[name]
    model = nn.Sequential(kind(p=1.0, alpha=2.0), nn.Sequential(nn.Identity(), kind(p=1.0, alpha=2.0)))
    x = features(6, 2, 3, 3).float()

    def mixes():
        torch.manual_seed(1)
        return not torch.equal(model(x), x)

    assert mixes()
    model.apply(getattr(ops, f"deactivate_{name}"))
    assert not mixes()
    with getattr(ops, f"run_with_{name}")(model, mix="crossdomain"):
        assert mixes()
        assert [model[0].mix, model[1][1].mix] == ["crossdomain"] * 2
    assert not mixes()
    model.apply(getattr(ops, f"random_{name}"))
    assert model[1][1].mix == "random"
    model.apply(getattr(ops, f"activate_{name}"))
    model.apply(getattr(ops, f"crossdomain_{name}"))
    assert model[0].mix == "crossdomain"
    with pytest.raises(KeyError), getattr(ops, f"run_without_{name}")(model):
        assert not mixes()
        raise KeyError
    assert mixes()
    other = {"mixstyle": "efdmix", "efdmix": "mixstyle"}[name]
    model.apply(getattr(ops, f"deactivate_{other}"))
    assert mixes()


# --- normalisation of several domains --------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "shape"), [(ops.DSBN1d, (8, 3)), (ops.DSBN2d, (8, 3, 2, 2))])
def test_dsbn_keeps_the_domains_apart(kind, shape):
    layer = kind(3, n_domain=2).double()
    x, y = features(*shape), features(*shape, seed=1) * 3 + 1
    for domain, batch in ((0, x), (1, y)):
        layer.select_bn(domain)
        found = layer(batch)
        values = batch.transpose(0, 1).flatten(1)
        mean, var = values.mean(1), values.var(1, unbiased=False)
        expected = (values - mean[:, None]) / (var[:, None] + 1e-5).sqrt()
        assert torch.allclose(found.transpose(0, 1).flatten(1), expected)
        assert torch.allclose(layer.bn[domain].running_mean, 0.1 * mean)
    with pytest.raises(ValueError, match="domain_idx"):
        layer.select_bn(2)


@pytest.mark.parametrize(("kind", "shape"), [(ops.TransNorm1d, (8, 3)), (ops.TransNorm2d, (8, 3, 2, 2))])
@pytest.mark.parametrize("adaptive", [True, False])
def test_transnorm_is_its_equations(kind, shape, adaptive):
    layer = kind(3, eps=1e-3, momentum=0.2, adaptive_alpha=adaptive).double()
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    x = features(*shape)
    halves = [half.transpose(0, 1).flatten(1).detach() for half in (x[:4], x[4:])]  # [C, N]
    means, variances = [half.mean(1) for half in halves], [half.var(1) for half in halves]

    def scale(statistics):
        (mean_s, var_s), (mean_t, var_t) = statistics
        if not adaptive:
            return torch.ones(3, dtype=torch.float64)
        distance = [
            abs(a / math.sqrt(b + 1e-3) - c / math.sqrt(d + 1e-3))
            for a, b, c, d in zip(mean_s.tolist(), var_s.tolist(), mean_t.tolist(), var_t.tolist(), strict=True)
        ]
        total = sum(1 / (1 + d) for d in distance)
        return torch.tensor([1 + 3 / (1 + d) / total for d in distance], dtype=torch.float64)

    def normalised(values, mean, var, factor):
        standard = (values - mean[:, None]) / (var[:, None] + 1e-3).sqrt()
        return (standard * layer.weight[:, None] + layer.bias[:, None]) * factor[:, None]

    factor = scale(list(zip(means, variances, strict=True)))
    expected = [normalised(h, m, v, factor) for h, m, v in zip(halves, means, variances, strict=True)]
    found = layer(x)
    for half, values in zip((found[:4], found[4:]), expected, strict=True):
        assert torch.allclose(half.transpose(0, 1).flatten(1), values)
    running = [(0.8 * mean, 0.2 + 0.8 * var) for mean, var in zip(means, variances, strict=True)]
    assert torch.allclose(layer.running_mean_s, running[0][0]) and torch.allclose(layer.running_var_t, running[1][1])
    y = features(*shape, seed=2)
    expected = normalised(y.transpose(0, 1).flatten(1), *running[1], scale(running))
    assert torch.allclose(layer.eval()(y).transpose(0, 1).flatten(1), expected)
    layer.resnet_running_stats()
    layer.reset_parameters()
    assert not layer.running_mean_s.any() and layer.running_var_t.tolist() == [1] * 3 == layer.weight.tolist()
    with pytest.raises(ValueError, match="-D"):
        layer(torch.zeros(2, 3, 4))


# --- distances -----------------------------------------------------------------------------------------


def kernel(kind, a, b):
    if kind == "linear":
        return float(a @ b)
    if kind == "poly":
        return float(a @ b + 2) ** 2
    return sum(math.exp(-float((a - b) @ (a - b)) / (2 * s * s)) for s in (1, 5, 10))


@pytest.mark.parametrize("kind", ["linear", "poly", "rbf"])
@pytest.mark.parametrize("normalize", [False, True])
def test_mmd_is_the_mean_over_pairs(kind, normalize):
    x, y = features(5, 4), features(6, 4, seed=1) + 0.5
    a, b = ((v / v.norm(dim=1, keepdim=True) if normalize else v).numpy() for v in (x, y))
    within = [
        np.mean([kernel(kind, p[i], p[j]) for i in range(len(p)) for j in range(len(p)) if i != j]) for p in (a, b)
    ]
    expected = sum(within) - 2 * np.mean([kernel(kind, i, j) for i in a for j in b])
    assert ops.MaximumMeanDiscrepancy(kind, normalize)(x, y).item() == pytest.approx(expected)


def test_mmd_of_one_distribution_is_0_in_the_mean():
    found = [
        ops.MaximumMeanDiscrepancy()(features(20, 2, seed=s), features(20, 2, seed=s + 1000)).item() for s in range(200)
    ]
    assert abs(np.mean(found)) < 5 * np.std(found) / math.sqrt(200)
    with pytest.raises(ValueError, match="'gauss'"):
        ops.MaximumMeanDiscrepancy("gauss")


def sinkhorn(costs, eps, steps):
    """Return the plan from Sinkhorn's scaling of the kernel ``exp(-C / eps)``."""
    gibbs = np.exp(-costs / eps)
    rows, columns = np.ones(len(costs)) / len(costs), np.ones(costs.shape[1]) / costs.shape[1]
    scale = np.ones(costs.shape[1])
    for _ in range(steps):
        left = rows / (gibbs @ scale)
        scale = columns / (gibbs.T @ left)
    return left[:, None] * gibbs * scale


def costs_of(metric, x, y):
    if metric == "cosine":
        return np.array([[1 - a @ b / math.sqrt(a @ a * (b @ b)) for b in y] for a in x])
    return np.array([[(a - b) @ (a - b) for b in y] for a in x])


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "fast_euclidean"])
def test_sinkhorn_divergence(metric):
    x, y = features(5, 3), features(7, 3, seed=1)
    layer = ops.SinkhornDivergence(metric, eps=0.5, max_iter=9)
    layer.thre = 0.0

    def cost(a, b):
        costs = costs_of(metric, a.numpy(), b.numpy())
        return float((sinkhorn(costs, 0.5, 9) * costs).sum())

    assert layer(x, y).item() == pytest.approx(2 * cost(x, y) - cost(x, x) - cost(y, y), rel=1e-6)
    value, plan = layer.transport_cost(x, y, return_pi=True)
    assert value.item() == pytest.approx(cost(x, y), rel=1e-6)
    assert plan.sum(0).tolist() == pytest.approx([1 / 7] * 7, rel=1e-6)
    with pytest.raises(ValueError, match="'manhattan'"):
        ops.OptimalTransport.distance(x, y, "manhattan")


def test_sinkhorns_plan_approaches_the_cheapest_plan():
    x, y = features(4, 2), features(5, 2, seed=1)
    costs = costs_of("euclidean", x.numpy(), y.numpy())
    sums = np.vstack([np.kron(np.eye(4), np.ones(5)), np.kron(np.ones(4), np.eye(5))])
    cheapest = linprog(costs.ravel(), A_eq=sums, b_eq=[1 / 4] * 4 + [1 / 5] * 5).fun
    layer = ops.SinkhornDivergence("euclidean", eps=0.02, max_iter=5000)
    layer.thre = 1e-12
    assert layer.transport_cost(x, y).item() == pytest.approx(cheapest, rel=0.02)


def test_gradients_of_transport():
    x, y = features(4, 3).requires_grad_(), features(5, 3, seed=1)
    layer = ops.SinkhornDivergence("euclidean", eps=0.5)
    cost, plan = layer.transport_cost(x, y, return_pi=True)
    cost.backward()
    constant = 2 * ((x[:, None] - y) * plan[..., None]).sum(1).detach()
    assert torch.allclose(x.grad, constant)
    whole = torch.autograd.grad(
        ops.SinkhornDivergence("euclidean", eps=0.5, bp_to_sinkhorn=True).transport_cost(x, y), x
    )
    step = torch.zeros_like(x)
    step[1, 2] = 1e-6
    with torch.no_grad():
        slope = (layer.transport_cost(x + step, y) - layer.transport_cost(x - step, y)) / 2e-6
    assert whole[0][1, 2].item() == pytest.approx(slope.item(), rel=1e-4)
    assert not torch.allclose(whole[0], constant)


def test_minibatch_energy_distance():
    x, y = features(6, 3), features(6, 3, seed=1)
    layer = ops.MinibatchEnergyDistance("fast_euclidean", eps=0.5)

    def cost(a, b):
        costs = costs_of("euclidean", a.numpy(), b.numpy())
        return float((sinkhorn(costs, 0.5, 5) * costs).sum())

    layer.thre = 0.0
    x1, x2, y1, y2 = x[:3], x[3:], y[:3], y[3:]
    expected = sum(cost(a, b) for a in (x1, x2) for b in (y1, y2)) - 2 * cost(x1, x2) - 2 * cost(y1, y2)
    assert layer(x, y).item() == pytest.approx(expected, rel=1e-6)


# --- dynamic convolutions and sequences ------------------------------------------------------------------


def test_attention_is_a_softmax_of_two_layers():
    layer = ops.Attention(32, 4).double()
    x = features(3, 32, 2, 2)
    hidden = np.maximum(
        x.mean((2, 3)).numpy() @ layer.fc1.weight.detach().numpy().T + layer.fc1.bias.detach().numpy(), 0
    )
    scores = np.exp(hidden @ layer.fc2.weight.detach().numpy().T + layer.fc2.bias.detach().numpy())
    assert np.allclose(layer(x).detach().numpy(), scores / scores.sum(1, keepdims=True))
    assert layer.squeeze == 2
    with pytest.raises(ValueError, match="squeeze"):
        ops.Attention(8, 4)


def test_dynamic_convolution_is_one_convolution_with_a_mixed_kernel():
    """The kernel of each image is ``W + sum_k a_k T_k``, with the templates embedded in a 3x3 kernel."""
    layer = ops.Conv2dDynamic(4, 8, 3, stride=2, padding=1, squeeze=3, attention_in_channels=6).double()
    x, other = features(2, 4, 7, 7), features(2, 6, 5, 5, seed=1)
    weights = layer.attention(other)
    templates = layer.kernel_templates
    embedded = []
    for name, part in templates.items():
        kernel = torch.zeros(8, 4, 3, 3, dtype=torch.float64)
        weight = part.weight.detach()
        if name == "conv_nn":  # 4 groups: two outputs of each input
            for out in range(8):
                kernel[out, out // 2] = weight[out, 0]
        else:
            rows = slice(0, 3) if weight.shape[2] == 3 else slice(1, 2)
            columns = slice(0, 3) if weight.shape[3] == 3 else slice(1, 2)
            kernel[:, :, rows, columns] = weight
        embedded.append(kernel)
    for i in range(2):
        kernel = layer.conv.weight + sum(w * k for w, k in zip(weights[i], embedded, strict=True))
        bias = layer.conv.bias + sum(w * part.bias for w, part in zip(weights[i], templates.values(), strict=True))
        assert torch.allclose(layer(x, other)[i], F.conv2d(x[i : i + 1], kernel, bias, 2, 1)[0])
    with pytest.raises(ValueError, match="odd"):
        ops.Conv2dDynamic(4, 4, 2, 1, 1)


def test_sequence_of_several_values():
    class Both(nn.Module):
        def forward(self, a, b):
            return a + b, a * b

    assert ops.Sequential2(Both(), Both())(2, 3) == (11, 30)
    assert ops.Sequential2(nn.Flatten(0))(torch.ones(2, 3)).shape == (6,)


def test_an_unknown_reduction_is_an_error():
    with pytest.raises(ValueError, match="'max'"):
        ops.cross_entropy(torch.zeros(1, 2), torch.tensor([0]), reduction="max")
