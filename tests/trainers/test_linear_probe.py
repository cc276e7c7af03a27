"""LinearProbe against scikit-learn and SciPy, and its choice of C on val."""

import warnings

import numpy as np
import pytest
import scipy
import torch
import torch.nn.functional as F
from building import build, some_paths
from sklearn.linear_model import LogisticRegression

from unskew import config
from unskew.data.transfer import saved_config
from unskew.runs.run import Run, execute, load_run
from unskew.trainers import linearprobe

ZEROS = ("TRAINER.LINEARPROBE.INIT", "zeros")


def features_of(trainer, items):
    paths, labels = trainer.labelled(items)
    return F.normalize(trainer.encode(paths), dim=-1).double().numpy(), labels.numpy()


@pytest.mark.parametrize("strength", [0.1, 10.0, 1e4])
def test_linear_probe_equals_scikit_learns_logistic_regression(strength, data_root, tmp_path):
    trainer = build("LinearProbe", data_root, tmp_path, *ZEROS, "TRAINER.LINEARPROBE.C", strength, shots=4)
    trainer.train()
    model = LogisticRegression(C=strength, tol=1e-12, max_iter=10**6, solver="newton-cg")
    model.fit(*features_of(trainer, trainer.dataset.train_x))
    expected = torch.from_numpy(model.predict_proba(features_of(trainer, trainer.dataset.test[:40])[0]))
    found = trainer.predict(some_paths(trainer)).double().softmax(1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("start", linearprobe.CANDIDATES)
def test_linear_probe_handles_two_classes(start, data_root, tmp_path):
    opts = ("TRAINER.LINEARPROBE.INIT", start, "TRAINER.LINEARPROBE.C", 100.0)
    trainer = build("LinearProbe", data_root, tmp_path, "DATASET.SUBSAMPLE_CLASSES", "base", *opts)
    keep = [item for item in trainer.dataset.train_x if item.label < 2]  # three classes have no image
    trainer.dataset.train_x[:], trainer.dataset.val[:] = keep, []
    trainer.train()
    predicted = trainer.predict([item.impath for item in keep]).argmax(1)
    assert torch.equal(predicted, torch.tensor([item.label for item in keep]))


def test_the_strength_with_the_best_accuracy_on_val_wins_and_then_the_smaller(data_root, tmp_path, monkeypatch):
    trainer = build("LinearProbe", data_root, tmp_path, *ZEROS, shots=4)
    accuracies, (inputs, labels) = [], features_of(trainer, trainer.dataset.val)
    for strength in linearprobe.CANDIDATES["zeros"]:
        model = LogisticRegression(C=strength, tol=1e-12, max_iter=10**6, solver="newton-cg")
        model.fit(*features_of(trainer, trainer.dataset.train_x))
        accuracies.append((model.score(inputs, labels), model.coef_))
    scores = [score for score, _ in accuracies]
    best = scores.index(max(scores))
    assert min(scores) < max(scores)
    monkeypatch.setattr("unskew.utils.blocks.MOST_NUMBERS", 70)
    trainer.train()
    np.testing.assert_allclose(trainer.head.weight, accuracies[best][1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("start", linearprobe.CANDIDATES)
def test_one_image_a_class_gives_no_warning(start, data_root, tmp_path):
    trainer = build("LinearProbe", data_root, tmp_path, "TRAINER.LINEARPROBE.INIT", start, shots=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.train()


# --- the start from the text features ---------------------------------------------------------------


def closest_to_text(features, labels, texts, strength):
    """Minimise C times the cross entropies + |W - texts|^2 / 2 + |b|^2 / 2 by SciPy, in float64."""
    classes, width = texts.shape
    own = np.eye(classes)[labels]

    def objective(values):
        change = values.reshape(classes, width + 1)
        logits = features @ (texts + change[:, :-1]).T + change[:, -1]
        logs = logits - scipy.special.logsumexp(logits, axis=1, keepdims=True)
        slope = strength * (np.exp(logs) - own).T @ np.c_[features, np.ones(len(features))] + change
        return -strength * (own * logs).sum() + (change**2).sum() / 2, slope.ravel()

    found = scipy.optimize.minimize(objective, np.zeros(classes * (width + 1)), jac=True, method="L-BFGS-B",
                                    options={"maxiter": 10**4, "maxfun": 10**5, "ftol": 0, "gtol": 1e-9})  # fmt: skip
    change = found.x.reshape(classes, width + 1)
    return texts + change[:, :-1], change[:, -1]


@pytest.mark.parametrize("strength", [0.1, 10.0])
@pytest.mark.parametrize("absent", [(), (3, 7)])
def test_the_penalty_pulls_to_the_zero_shot_classifier(strength, absent, data_root, tmp_path):
    trainer = build("ZSLinearProbe", data_root, tmp_path, "TRAINER.LINEARPROBE.C", strength, shots=4)
    trainer.dataset.train_x[:] = [item for item in trainer.dataset.train_x if item.label not in absent]
    trainer.train()
    texts = trainer.backbone.logit_scale.exp().item() * trainer.zeroshot_weights.double().numpy()
    weight, bias = closest_to_text(*features_of(trainer, trainer.dataset.train_x), texts, strength)
    inputs, _ = features_of(trainer, trainer.dataset.test[:40])
    expected = torch.from_numpy(inputs @ weight.T + bias).softmax(1)
    torch.testing.assert_close(trainer.predict(some_paths(trainer)).double().softmax(1), expected, rtol=0, atol=1e-5)


def test_a_strong_penalty_gives_the_zero_shot_model(data_root, tmp_path):
    trainer = build("LinearProbe", data_root, tmp_path, "TRAINER.LINEARPROBE.C", 1e-7, shots=4)
    trainer.train()
    paths = some_paths(trainer)
    torch.testing.assert_close(trainer.predict(paths), trainer.zeroshot_logits(paths), rtol=0, atol=1e-4)


def test_the_default_starts_from_the_text_features(data_root, tmp_path):
    default, named = (build(name, data_root, tmp_path / name) for name in ("LinearProbe", "ZSLinearProbe"))
    for trainer in (default, named):
        trainer.train()
    assert torch.equal(default.predict(some_paths(default)), named.predict(some_paths(default)))


@pytest.mark.parametrize("strength", [-1.0, float("inf"), float("nan")])
def test_a_strength_of_no_problem_is_an_error(strength, data_root, tmp_path):
    with pytest.raises(ValueError, match=r"LINEARPROBE\.C"):
        build("LinearProbe", data_root, tmp_path, "TRAINER.LINEARPROBE.C", strength)


def test_an_unknown_start_is_an_error(data_root, tmp_path):
    with pytest.raises(ValueError, match=r"LINEARPROBE\.INIT"):
        build("LinearProbe", data_root, tmp_path, "TRAINER.LINEARPROBE.INIT", "random")
    assert config.load("digits", "", "ZSLinearProbe", ()).TRAINER.CLASS == "LinearProbe"


def test_a_run_from_before_the_start_existed_keeps_zeros(data_root, tmp_path):
    """Its config.yaml lacks the key, whose default is another one today."""
    opts = (*ZEROS, "TRAINER.LINEARPROBE.C", 1.0)
    for name, values in (("old", opts), ("new", opts[2:])):
        run = Run("digits", "LinearProbe", shots=1, seed=1, root=data_root, folder=str(tmp_path / name), opts=values)
        execute(run, console=False)
    file = tmp_path / "old" / "config.yaml"
    file.write_text(file.read_text().replace("    INIT: zeros\n", ""))
    for name, start in (("old", "zeros"), ("new", "text")):
        folder = tmp_path / name
        assert load_run(folder).config.TRAINER.LINEARPROBE.INIT == start
        assert config.restore(folder / "config.yaml").TRAINER.LINEARPROBE.INIT == start
        assert saved_config(folder)["TRAINER.LINEARPROBE.INIT"] == start
    assert saved_config(tmp_path) == {}
