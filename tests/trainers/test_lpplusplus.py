"""LP++ against a slow reference in float64: autograd and PyTorch's SGD, as in the release."""

import pytest
import torch
import torch.nn.functional as F
from building import build, some_paths

from unskew.trainers import linearprobe, lpplusplus


def reference(features, labels, texts, iterations):
    """Yield w + alpha t and the bias after each iteration, with the formulas written out."""
    classes, count = len(texts), len(features)
    w = torch.zeros_like(texts)
    cosines = [[] for _ in range(classes)]
    for x, y in zip(features, labels.tolist(), strict=True):
        w[y] += x
        cosines[y].append(float(x @ texts[y]))
    means = [sum(own) / len(own) for own in cosines if own]
    alpha = torch.full((classes,), 250 * sum(means) / len(means), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    w.requires_grad_()
    w_step = 4 * count / float(torch.linalg.svdvals(features)[0] ** 2)
    alpha_step = count / (4 * max(sum(float(x @ t) ** 2 for x in features) for t in texts))
    optimizer = torch.optim.SGD([w, bias], lr=w_step, momentum=0.9)
    for iteration in range(iterations):
        logits = features @ w.T + bias + alpha * (features @ texts.T)
        optimizer.zero_grad()
        F.cross_entropy(logits, labels).backward()  # the gradient of alpha accumulates
        optimizer.step()
        if iteration % 10 == 9:
            alpha.data -= alpha_step * alpha.grad
        yield (w + alpha[:, None] * texts).detach(), bias.detach().clone()


@pytest.mark.parametrize("counts", [[4] * 6, [30, 9, 3, 1, 1], [6, 0, 5]])
def test_each_iteration_equals_the_reference(counts, monkeypatch):
    draws = torch.Generator().manual_seed(1)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    means = torch.randn(len(counts), 16, generator=draws)
    features = F.normalize(means[labels] + torch.randn(len(labels), 16, generator=draws), dim=1)
    texts = F.normalize(0.3 * means + torch.randn(means.shape, generator=draws), dim=1)
    monkeypatch.setattr("unskew.utils.blocks.MOST_NUMBERS", 70)
    exact = reference(features.double(), labels, texts.double(), 45)
    for found, expected in zip(lpplusplus.iterate(features, labels, texts, 45), exact, strict=True):
        assert float((found[0] - expected[0]).norm() / expected[0].norm()) < 1e-5
        torch.testing.assert_close(found[1].double(), expected[1], rtol=1e-5, atol=1e-5)


def test_the_last_of_the_best_iterations_on_val_is_kept(data_root, tmp_path):
    trainer = build("LPPlusPlus", data_root, tmp_path, "OPTIM.MAX_EPOCH", 30, "INPUT.VIEWS", 1, shots=4)
    trainer.train()
    paths, labels = trainer.labelled(trainer.dataset.train_x)
    features = F.normalize(trainer._encode_views(paths, [0])[:, 0], dim=-1)
    val = trainer._inputs(trainer.dataset.val)
    heads = list(reference(features.double(), labels, trainer.zeroshot_weights.double(), 30))
    correct = [linearprobe.correct_of(weight.float(), bias.float(), *val) for weight, bias in heads]
    assert min(correct) < max(correct)
    weight, bias = heads[max(range(30), key=lambda i: (correct[i], i))]
    inputs = F.normalize(trainer.encode(some_paths(trainer)), dim=-1).double()
    expected = inputs @ weight.T + bias
    assert float((trainer.predict(some_paths(trainer)) - expected).norm() / expected.norm()) < 1e-5
    assert trainer.uses_val and not trainer.logit_adjusted
    assert trainer.trained_parameters() == 64 * 10 + 10 + 10


def test_without_val_the_last_iteration_is_kept(data_root, tmp_path):
    opts = ("OPTIM.MAX_EPOCH", 12, "INPUT.VIEWS", 0, "DATASET.NUM_VAL_SHOTS", 0)
    trainer = build("LPPlusPlus", data_root, tmp_path, *opts)
    trainer.train()
    features, labels = trainer._inputs(trainer.dataset.train_x)
    *_, (weight, _) = reference(features.double(), labels, trainer.zeroshot_weights.double(), 12)
    torch.testing.assert_close(trainer.linear_head()[0].double(), weight, rtol=1e-4, atol=1e-4)


def test_no_iterations_are_an_error(data_root, tmp_path):
    with pytest.raises(ValueError, match="MAX_EPOCH"):
        build("LPPlusPlus", data_root, tmp_path, "OPTIM.MAX_EPOCH", 0)
