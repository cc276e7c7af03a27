"""CLAP against a slow reference in float64, with gradients and schedule written out."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from building import build, some_paths

from unskew.clip.prompts import fill
from unskew.clip.text import encode_plain

EPOCHS = 4
OPTS = ("OPTIM.MAX_EPOCH", EPOCHS, "INPUT.VIEWS", 3, "DATALOADER.TRAIN_X.BATCH_SIZE", 16, "TEST.NO_TEST", True)


def softmax(logits):
    p = np.exp(logits - logits.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def reference(trainer):
    """Return the weights [C, D] after the training: SGD with momentum 0.9, cosine schedule after one epoch of 1e-5."""
    scale = trainer.backbone.logit_scale.exp().item()
    texts = encode_plain(trainer.backbone, fill(trainer.dataset.template, trainer.classnames)).double().numpy()
    paths, labels = trainer.labelled(trainer.dataset.train_x)
    views = F.normalize(trainer._encode_views(paths, range(3)), dim=-1).double().numpy()  # [N, V, D]
    unit = texts / np.linalg.norm(texts, axis=1, keepdims=True)
    multipliers = np.ones(len(texts))
    for c in set(labels.tolist()):
        own = [softmax(scale * image @ unit.T)[:, c] for image, y in zip(views, labels, strict=True) if y == c]
        multipliers[c] = np.mean(own)
    weights, velocity = texts.copy(), np.zeros_like(texts)
    for epoch in range(EPOCHS):
        rate = 1e-5 if epoch == 0 else 0.1 * (1 + math.cos(math.pi * (epoch - 1) / EPOCHS)) / 2
        trainer.train_loader_x.set_epoch(epoch)
        for batch in trainer.train_loader_x:
            x = F.normalize(batch["features"], dim=-1).double().numpy()
            lengths = np.linalg.norm(weights, axis=1, keepdims=True)
            unit = weights / lengths
            slope = scale * (softmax(scale * x @ unit.T) - np.eye(len(texts))[batch["label"]]).T @ x / len(x)
            slope = (slope - (slope * unit).sum(1, keepdims=True) * unit) / lengths
            slope += 2 * multipliers[:, None] * (weights - texts) / len(texts)
            velocity = 0.9 * velocity + slope
            weights = weights - rate * velocity
    return torch.from_numpy(weights), torch.from_numpy(texts)


@pytest.mark.parametrize("absent", [(), (3,)])
def test_the_trained_weights_equal_the_reference(absent, data_root, tmp_path):
    trainer = build("CLAP", data_root, tmp_path, *OPTS, shots=4)
    trainer.dataset.train_x[:] = [item for item in trainer.dataset.train_x if item.label not in absent]
    kept = [item.label not in absent for item in build("CLAP", data_root, tmp_path, *OPTS, shots=4).dataset.train_x]
    loader = trainer.train_loader_x
    loader.paths = [path for path, keep in zip(loader.paths, kept, strict=True) if keep]
    loader.labels = loader.labels[torch.tensor(kept)]
    trainer.train()
    expected, start = reference(trainer)
    found = trainer.head.weight.detach().double()
    assert float((found - expected).norm() / expected.norm()) < 1e-5
    assert float((found - expected).norm() / (expected - start).norm()) < 1e-3
    assert float(trainer.multipliers[3]) == 1 if absent else float(trainer.multipliers.max()) < 1


def test_the_start_is_the_zero_shot_model(data_root, tmp_path):
    trainer = build("CLAP", data_root, tmp_path)
    paths = some_paths(trainer)
    torch.testing.assert_close(trainer.predict(paths), trainer.zeroshot_logits(paths), rtol=1e-5, atol=1e-5)
    assert not trainer.uses_val and not trainer.logit_adjusted


def test_an_epoch_draws_from_all_views(data_root, tmp_path):
    trainer = build("CLAP", data_root, tmp_path, *OPTS, shots=4)  # 40 images, 120 views
    loader = trainer.train_loader_x
    batches = list(loader)
    assert len(batches) == len(loader) == 40 // 16
    features, labels = loader.pool()
    rows = torch.cat([batch["features"] for batch in batches])
    places = [int((features == row).all(1).nonzero()) for row in rows]
    assert len(set(places)) == 32
    assert torch.equal(labels[places], torch.cat([batch["label"] for batch in batches]))
    assert {place % 3 for place in places} == {0, 1, 2}
    trainer = build("CLAP", data_root, tmp_path, *OPTS, "DATALOADER.TRAIN_X.BATCH_SIZE", 256, shots=4)
    assert [len(batch["label"]) for batch in trainer.train_loader_x] == [120]


def test_a_new_view_every_epoch_trains(data_root, tmp_path):
    trainer = build("CLAP", data_root, tmp_path, *OPTS, "INPUT.VIEWS", 0, shots=1)
    trainer.train()
    assert not torch.equal(trainer.head.weight, trainer.texts)
