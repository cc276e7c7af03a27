"""TransCLIP against a slow reference in NumPy loops; its forms, its choice of gamma, and what it cannot do."""

import numpy as np
import pytest
import torch
from building import build, some_paths

from unskew.runs import tables
from unskew.runs.run import Run, execute
from unskew.runs.tables import text_tables
from unskew.trainers.transclip import Labelled, build_graph, nearest, transduce


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def world(seed=0, images=25, classes=4, width=7, labels=(0, 0, 1, 3, 3, 3)):
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(classes, width))
    queries = unit(means[rng.integers(classes, size=images)] + rng.normal(size=(images, width)))
    support = unit(means[list(labels)] + rng.normal(size=(len(labels), width)))
    logits = 4 * queries @ unit(means + rng.normal(size=means.shape)).T
    return queries, support, np.array(labels), logits - np.log(np.exp(logits).sum(1, keepdims=True))


def reference(queries, log_predicted, support, labels, gamma, few_shot):
    """Return log assignments by the formulas of the paper with the release's factors, one number at a time."""
    count, classes = log_predicted.shape
    lam = 0.5 if few_shot else 1.0
    pairs = []  # (i, j, w_ij): j is one of the three nearest images to predict of i, which may be labelled
    for i, row in enumerate([*queries, *support]):
        similar = [(row @ other, j) for j, other in enumerate(queries) if j != i]
        pairs += [(i, j, max(0.0, w)) for w, j in sorted(similar, reverse=True)[:3]]
    y = np.zeros((len(labels), classes))
    for s, label in enumerate(labels):
        y[s, label] = 1
    z = np.exp(log_predicted)
    mu = np.zeros((classes, queries.shape[1]))
    for k in range(classes):
        if few_shot and (labels == k).any():
            mu[k] = support[labels == k].sum(0)
        else:
            mu[k] = sum(z[i, k] * queries[i] for i in np.argsort(-z[:, k])[:8])
    mu, sigma = unit(mu), np.full(queries.shape[1], 1 / queries.shape[1])
    for iteration in range(11):
        for _ in range(5):
            score = np.zeros((count, classes))
            everyone = np.concatenate([z, y])
            for i in range(count):
                for k in range(classes):
                    likelihood = -0.5 * sum((queries[i] - mu[k]) ** 2 / sigma)
                    score[i, k] = lam * log_predicted[i, k] + likelihood / 50
            for i, j, w in pairs:
                score[j] += w * everyone[i] / 6
                if i < count:
                    score[i] += w * everyone[j] / 6
            z = np.exp(score - score.max(1, keepdims=True))
            z /= z.sum(1, keepdims=True)
        if iteration == 10:
            return np.log(z)
        weights = [(f, p / count) for f, p in zip(queries, z, strict=True)]
        weights += [(f, 50 * gamma * p / len(labels)) for f, p in zip(support, y, strict=True)]
        mu = unit(sum(np.outer(p, f) for f, p in weights))
        sigma = sum(p[k] * (f - mu[k]) ** 2 for f, p in weights for k in range(classes))
        sigma = sigma / sum(p.sum() for _, p in weights)
    raise AssertionError


@pytest.mark.parametrize(("few_shot", "gamma"), [(False, 0.0), (True, 0.002), (True, 0.2)])
def test_the_assignments_are_those_of_a_slow_reference(few_shot, gamma):
    queries, support, labels, log_predicted = world()
    used = slice(None) if few_shot else slice(0, 0)
    expected = reference(queries, log_predicted, support[used], labels[used], gamma, few_shot)
    given = Labelled(torch.from_numpy(support), torch.from_numpy(labels)) if few_shot else None
    features = torch.from_numpy(queries)
    graph = build_graph(features, 4, given)
    found = transduce(features, torch.from_numpy(log_predicted), graph, given, gamma)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert np.abs(found.numpy() - log_predicted).max() > 0.1


def test_blocks_find_the_nearest_images(monkeypatch):
    queries = torch.from_numpy(world(1)[0])
    expected = (queries @ queries.T - 2 * torch.eye(25)).topk(3, dim=1)
    monkeypatch.setattr("unskew.trainers.transclip.BLOCK", 60)
    values, places = nearest(queries, queries, 3, itself=True)
    assert torch.equal(places, expected.indices)
    torch.testing.assert_close(values, expected.values)


def test_one_image_alone_keeps_the_zero_shot_prediction():
    queries, _, _, log_predicted = world()
    one, log_p = torch.from_numpy(queries[:1]), torch.from_numpy(log_predicted[:1])
    torch.testing.assert_close(transduce(one, log_p, build_graph(one, 4)), log_p)


def test_gamma_is_the_first_of_the_best_on_val(data_root, tmp_path):
    trainer = build("TransCLIP", data_root, tmp_path, "TEST.NO_TEST", True, shots=4)
    trainer.train()
    paths = [item.impath for item in trainer.dataset.test]
    queries = torch.nn.functional.normalize(trainer.mean_features(paths), dim=1)
    val, labels = trainer.labelled(trainer.dataset.val)
    answers = (torch.nn.functional.normalize(trainer.mean_features(val), dim=1) @ queries.T).argmax(1)
    results = []
    for gamma in trainer.node.GAMMAS:
        opts = ("TRAINER.TRANSCLIP.GAMMAS", [gamma], "TEST.NO_TEST", True)
        single = build("TransCLIP", data_root, tmp_path / str(gamma), *opts, shots=4)
        single.train()
        results.append(single.predict(paths))
    correct = [int((logits[answers].argmax(1) == labels).sum()) for logits in results]
    assert torch.equal(trainer.predict(paths), results[correct.index(max(correct))])
    assert not torch.equal(results[0], results[-1])


def test_the_zero_shot_form_uses_no_label(data_root, tmp_path):
    opts = ("TRAINER.TRANSCLIP.FEW_SHOT", False)
    trainers = [build("TransCLIP", data_root, tmp_path, *opts, seed=seed) for seed in (1, 2)]
    first, second = (trainer.predict(some_paths(trainer)) for trainer in trainers)
    assert torch.equal(first, second)
    assert not trainers[0].get_model_names() and not trainers[0].labelled_items() and not trainers[0].uses_val
    assert not trainers[0].is_class_bound(trainers[0].cfg)
    assert (first - trainers[0].zeroshot_logits(some_paths(trainers[0])).log_softmax(1)).abs().max() > 0.1


def test_tables_mark_it_and_it_is_neither_a_base_nor_exported(data_root, tmp_path):
    run = Run("digits", "TransCLIP", shots=2, seed=1, root=data_root, folder=str(tmp_path / "run"))
    execute(run, console=False)
    text = text_tables.table(tables.collect(str(tmp_path)))
    assert "*" in next(line for line in text.splitlines() if "TransCLIP" in line)
    trainer = build("TransCLIP", data_root, tmp_path / "other")
    assert trainer.linear_head() is None and trainer.is_class_bound(trainer.cfg)
    with pytest.raises(ValueError, match="TransCLIP"):
        trainer.image_model()
    with pytest.raises(ValueError, match=r"TRAINER\.GLA\.BASE.*TransCLIP"):
        build("GLA", data_root, tmp_path / "gla", "TRAINER.GLA.BASE", "TransCLIP")
    with pytest.raises(ValueError, match="GAMMAS"):
        build("TransCLIP", data_root, tmp_path / "none", "TRAINER.TRANSCLIP.GAMMAS", [])
