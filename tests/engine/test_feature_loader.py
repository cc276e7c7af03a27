"""Views are encoded when an epoch first needs them."""

import pytest
import torch
from building import build

from unskew.clip import image_counts
from unskew.data.dataset import Datum
from unskew.engine.feature_loader import FeatureLoader
from unskew.utils import row_store


@pytest.fixture
def encoded():
    return []


@pytest.fixture
def loader(encoded):
    """A loader of 3 views of 5 images; a feature is (image, view)."""

    def encode(paths, views, keep):
        encoded.append((list(views), keep))
        return torch.tensor([[[float(path), float(view)] for view in views] for path in paths])

    items = [Datum(impath=str(number), label=number % 2) for number in range(5)]
    return FeatureLoader(items, encode, 5, 3, 1)


def rows_of(loader, epoch):
    loader.set_epoch(epoch)
    (batch,) = loader
    return batch["features"], batch["label"]


def test_an_epoch_encodes_its_own_view_once(loader, encoded):
    for epoch in range(7):
        features, labels = rows_of(loader, epoch)
        assert features[:, 1].tolist() == [epoch % 3] * 5
        assert sorted(features[:, 0].tolist()) == [0, 1, 2, 3, 4]
        assert torch.equal(labels, features[:, 0].long() % 2)
    assert encoded == [([0], True), ([1], True), ([2], True)]


def test_a_resumed_run_encodes_only_the_views_of_its_epochs(loader, encoded):
    for epoch in (199, 200):
        rows_of(loader, epoch)
    assert encoded == [([1], True), ([2], True)]


def test_a_run_of_two_epochs_encodes_two_views(data_root, tmp_path, monkeypatch):
    monkeypatch.setenv("UNSKEW_CACHE", str(tmp_path / "cache"))
    row_store.open_folder.cache_clear()
    for epochs, new in ((2, 2), (3, 1), (1, 0)):
        opts = ("INPUT.VIEWS", 8, "OPTIM.MAX_EPOCH", epochs, "TEST.NO_TEST", True)
        trainer = build("CoOp", data_root, tmp_path / str(epochs), *opts)
        with image_counts.counting() as count:
            trainer.train()
        assert count.encoded == new * len(trainer.dataset.train_x)
    row_store.open_folder.cache_clear()
