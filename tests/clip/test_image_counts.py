"""Counts of the image features that a run encodes and of those that it finds in the cache."""

import numpy as np
import pytest
import torch
from pictures import noise
from torchvision import transforms as T

from unskew.clip import features, image_counts
from unskew.clip.image_counts import counting

PLAIN = T.Compose([T.ToTensor()])


class Tower:
    """Encodes by a fixed matrix."""

    id, dtype, device = "tower of counts", torch.float32, torch.device("cpu")

    def encode_image(self, images):
        return images.flatten(1)[:, :4]


@pytest.fixture
def paths(tmp_path):
    return noise(tmp_path / "images", 12, 8, ".bmp")


def counts(count):
    return count.encoded, count.cached


def test_an_image_counts_once_however_often_it_is_requested(paths, cache):
    with counting() as first:
        features.extract(Tower(), [*paths[:4], paths[0]], PLAIN)
        features.extract(Tower(), paths[:6], PLAIN)
        assert counts(first) == (6, 0)
    with counting() as second:
        features.extract(Tower(), paths[:3], PLAIN)
        features.extract(Tower(), paths[:8], PLAIN)
        features.extract(Tower(), paths[:8], PLAIN)
    assert counts(second) == (2, 6)
    assert counts(first) == (6, 0)


def test_views_count_like_images(paths, cache):
    with counting() as count:
        features.extract(Tower(), paths, PLAIN, views=range(2))
        features.extract(Tower(), paths, PLAIN, views=range(3))
    assert counts(count) == (36, 0)
    with counting() as count:
        features.extract(Tower(), paths, PLAIN, views=range(4))
    assert counts(count) == (12, 36)


def test_features_that_are_not_kept_are_encoded_each_time(paths, cache):
    with counting() as count:
        for _ in range(2):
            features.extract(Tower(), paths, PLAIN, keep=False)
    assert counts(count) == (24, 0)


def test_nothing_is_counted_outside(paths, cache):
    with counting() as count:
        pass
    features.extract(Tower(), paths, PLAIN)
    assert count.is_empty
    with pytest.raises(RuntimeError), counting() as failed:
        raise RuntimeError
    features.extract(Tower(), paths, PLAIN, views=[0])
    assert failed.is_empty


def test_the_counts_equal_those_of_sets():
    rng = np.random.default_rng(0)
    found, seen, encoded, cached = image_counts.ImageCount(), {}, 0, 0
    for _ in range(50):
        store, keys = int(rng.integers(3)), rng.permutation(40)[: rng.integers(1, 20)]
        missing = rng.random(len(keys)) < 0.3
        known = seen.setdefault(store, set())
        for key, is_missing in zip(keys.tolist(), missing.tolist(), strict=True):
            if key not in known:
                encoded, cached = encoded + is_missing, cached + (not is_missing)
                known.add(key)
        found.add(store, keys, missing)
    assert counts(found) == (encoded, cached)
