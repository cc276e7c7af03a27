"""Tip-Adapter's cache and search against a product with one-hot labels; their checkpoints and memory."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from building import build, some_paths

from unskew.engine import checkpoint
from unskew.trainers import tipadapter
from unskew.trainers.tipadapter import Block, Cache, correct_by_alpha, search_scales

GRID = [0.1 + i * 0.35 for i in range(20)], [0.1 + i * 0.29 for i in range(10)]  # betas and alphas


def world(seed, classes=12, keys=50, images=60, noise=1.5):
    """Return features of keys, their labels, features of images, their labels and their zero-shot logits."""
    draws = torch.Generator().manual_seed(seed)
    means = torch.randn(classes, 8, generator=draws)
    support = torch.randint(classes - 1, (keys,), generator=draws)  # in any order; the last class has no key
    labels = torch.randint(classes, (images,), generator=draws)
    first, second = (
        F.normalize(means[of] + noise * torch.randn(len(of), 8, generator=draws), dim=1) for of in (support, labels)
    )
    return first, support, second, labels, 3 * torch.randn(images, classes, generator=draws)


def dense(cosines, support, classes, beta):
    """Return the cache's logits by the paper's formula, with one-hot labels."""
    return (beta * (cosines - 1)).exp() @ F.one_hot(support, classes).to(cosines)


def slow_search(zeroshot, cosines, support, labels, alphas, betas):
    """Return the best pair by trying all of them in turn."""
    best, best_score = None, (-1, -torch.inf)
    for beta in betas:
        for alpha in alphas:
            logits = zeroshot + alpha * dense(cosines, support, zeroshot.shape[1], beta)
            score = (int((logits.argmax(1) == labels).sum()), -F.cross_entropy(logits, labels).item())
            if score > best_score:
                best, best_score = (alpha, beta), score
    return best


def blocks_of(zeroshot, cosines, labels, rows=1000):
    parts = zip(zeroshot.split(rows), cosines.T.split(rows, 1), labels.split(rows), strict=True)
    return lambda: (Block(zeroshot, cosines, labels) for zeroshot, cosines, labels in list(parts))


def searched(seed, rows=1000, alphas=GRID[1]):
    keys, support, images, labels, zeroshot = world(seed)
    arguments = (zeroshot, images @ keys.T)

    def blocks():
        return blocks_of(*arguments, labels, rows)()

    return search_scales(blocks, support, alphas, GRID[0]), slow_search(*arguments, support, labels, alphas, GRID[0])


# --- the cache --------------------------------------------------------------------------------------


def test_the_cache_and_its_gradients_equal_those_with_one_hot_labels():
    keys, support, images, labels, _ = world(0)
    cache = Cache(support, 12, 8, 1.3, 4.0)
    cache.keys.data = keys.clone()
    reference = keys.clone().requires_grad_()
    expected = 1.3 * dense(images @ reference.T, support, 12, 4.0)
    logits = cache(images)
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-7)
    for loss in (F.cross_entropy(logits, labels), F.cross_entropy(expected, labels)):
        loss.backward()
    torch.testing.assert_close(cache.keys.grad, reference.grad, rtol=1e-5, atol=1e-8)
    assert not logits[:, -1].any()  # a class without keys


def test_logits_do_not_depend_on_the_block(monkeypatch):
    keys, support, images, *_ = world(1)
    cache = Cache(support, 12, 8, 1.3, 4.0).requires_grad_(False)
    cache.keys.copy_(keys)
    with torch.no_grad():
        whole = cache(images)
        monkeypatch.setattr(tipadapter, "BLOCK", 7 * len(keys))
        sizes, old = [], Cache._affinities
        monkeypatch.setattr(
            Cache, "_affinities", lambda self, images: (sizes.append(len(images)), old(self, images))[1]
        )
        torch.testing.assert_close(cache(images), whole, rtol=1e-6, atol=1e-7)
        assert sum(sizes) == 60 and max(sizes) == 7
        assert cache(images[:0]).shape == (0, 12)


@pytest.mark.parametrize("name", ["TipAdapter", "TipAdapterF"])
def test_checkpoints_hold_labels_and_older_ones_with_one_hot_labels_load(name, data_root, tmp_path):
    opts = (f"TRAINER.{name.upper()}.SEARCH_STEP", [4, 2], "OPTIM.MAX_EPOCH", 1)
    trainer = build(name, data_root, tmp_path, *opts)
    trainer.train()
    path = tmp_path / "cache" / ("model.pth.tar-1" if name == "TipAdapter" else checkpoint.BEST)
    state = checkpoint.load_checkpoint(path)
    weights = state["state_dict"]
    assert {key: tuple(value.shape) for key, value in weights.items()} == {
        **{"keys": (20, 64), "labels": (20,)},
        **{"alpha": (), "beta": (), "classes": ()},
    }
    labels = weights.pop("labels")
    checkpoint.save({**state, "state_dict": {**weights, "values": F.one_hot(labels, 10).float()}}, path)
    older = build(name, data_root, tmp_path / "other", *opts, seed=2)
    older.load_model(str(tmp_path))
    assert torch.equal(older.predict(some_paths(older)), trainer.predict(some_paths(trainer)))


@pytest.mark.parametrize("change", [{"values": torch.eye(10)[:, :9]}, {"labels": torch.full((10,), 10)}])
def test_labels_of_other_classes_are_refused(change):
    cache = Cache(torch.arange(10), 10, 8, 1.0, 1.0)
    weights = cache.state_dict()
    if "values" in change:
        del weights["labels"]
    with pytest.raises(ValueError, match="labels"):
        checkpoint.load_weights(cache, {**weights, **change})


MEASURE = """
import resource, sys, torch
from unskew.trainers.tipadapter import Block, Cache, search_scales
torch.set_num_threads(1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
labels = torch.arange(5000).repeat_interleave(2)  # 10,000 keys, whose one-hot labels have 200 MB
cache, features = Cache(labels, 5000, 4, 1.0, 1.0), torch.randn(1000, 4)
cache(features[:10]).sum().backward()
before = peak()
cache(features[:100]).sum().backward()
with torch.no_grad():
    cache(features)  # affinities of 40 MB, logits of 20 MB
    blocks = lambda: (Block(torch.zeros(50, 5000), cache.keys @ x.T, labels[:50]) for x in features[:100].split(50))
    search_scales(blocks, labels, [1.0, 2.0], [1.0, 2.0])
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
def test_memory_does_not_grow_with_keys_times_classes():
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, env=environment, check=True)
    assert float(run.stdout) < 250


# --- the search -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_the_search_finds_the_pair_of_a_search_over_all_pairs(seed):
    found, expected = searched(seed)
    assert found == expected


def test_blocks_and_the_order_of_the_alphas_do_not_matter():
    assert searched(5, rows=7) == (searched(5)[1],) * 2
    assert searched(5, alphas=[2.0, 0.3, 1.0])[0] == searched(5, alphas=[0.3, 1.0, 2.0])[0]
    assert searched(5, alphas=[0.3])[0] == searched(5, alphas=[0.3])[1]


@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_correct_predictions_are_counted_for_each_alpha(count):
    keys, support, images, labels, zeroshot = world(6)
    cache = dense(images @ keys.T, support, 12, 3.0)
    alphas = torch.linspace(-1, 5, count).tolist()
    expected = [int(((zeroshot + alpha * cache).argmax(1) == labels).sum()) for alpha in alphas]
    assert correct_by_alpha(zeroshot, cache, labels, alphas).tolist() == expected
    assert correct_by_alpha(zeroshot, cache, labels, alphas[::-1]).tolist() == expected[::-1]
    assert count < 20 or len(set(expected)) > 4


def test_an_alpha_between_two_with_equal_predictions_costs_nothing(monkeypatch):
    keys, support, images, labels, zeroshot = world(7)
    cache = dense(images @ keys.T, support, 12, 3.0)
    predictions, argmax = [], torch.Tensor.argmax
    monkeypatch.setattr(torch.Tensor, "argmax", lambda self, dim: (predictions.append(len(self)), argmax(self, dim))[1])
    correct_by_alpha(100 * zeroshot, cache, labels, GRID[1])
    assert sum(predictions) < 3 * len(labels)  # of 10 alphas


def test_search_scales_prefers_accuracy_then_the_lower_loss():
    # One image of class 0 with one key of its class at cosine 1: the cache adds alpha to the true class.
    labels, needs_two = torch.tensor([0]), torch.tensor([[0.0, 1.5]])

    def search(zeroshot, key, alphas, betas, cosine=1.0):
        block = Block(zeroshot, torch.tensor([[cosine]]), labels)
        return search_scales(lambda: [block], torch.tensor([key]), alphas, betas)

    assert search(needs_two, 0, [1.0, 2.0], [1.0]) == (2.0, 1.0)
    assert search(-needs_two, 0, [1.0, 3.0, 2.0], [1.0]) == (3.0, 1.0)
    # Now the key has the wrong class and does harm, so the smallest alpha is best.
    assert search(-needs_two, 1, [1.0, 0.5, 2.0], [1.0, 2.0]) == (0.5, 1.0)
    assert search(-needs_two, 1, [1.0], [1.0, 2.0], cosine=0.0) == (1.0, 2.0)
