"""Tests of few-shot samples (compared with the published ones), long tails and random splits."""

import random

import numpy as np
import pytest
from items import PUBLISHED, make, paths, published_sample, published_split

from unskew.data.dataset import Datum
from unskew.data.sampling import longtail_counts, sample_fewshot, split_in_three, split_off

# --- few-shot samples --------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=PUBLISHED)
def published(request):
    """The name of a dataset, its train and its val."""
    content = published_split(request.param)
    return request.param, [[Datum(path, label, 0, name) for path, label, name in content[s]] for s in ("train", "val")]


@pytest.mark.parametrize("shots", [1, 16])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_published_few_shot_files(published, shots, seed):
    dataset, (train, val) = published
    expected = published_sample(dataset, shots, seed)
    rng = random.Random(seed)
    for split, items, k in (("train", train, shots), ("val", val, min(shots, 4))):
        sample = sample_fewshot(items, k, rng)
        assert [[i.impath, i.label, i.classname] for i in sample] == expected[split]


def test_more_shots_than_a_class_has(warned):
    items = make("r", 2, 5) + make("r", 1, 3, first=5)  # 8 of class 0, 5 of class 1
    sample = sample_fewshot(items, 7, random.Random(0))
    assert [item.label for item in sample].count(0) == 7 and [item.label for item in sample].count(1) == 5
    (message,) = warned()
    assert "7 images" in message and "'class 1' has 5" in message


def test_repeat_fills_classes_with_too_few_images(warned):
    sample = sample_fewshot(make("r", 1, 2), 7, random.Random(0), repeat=True)
    assert len(sample) == 7 and len(set(sample)) == 2
    assert "drawn repeatedly" in warned()[0]


@pytest.mark.parametrize("shots", [0, -1])
def test_sample_fewshot_refuses(shots):
    with pytest.raises(ValueError, match=rf"shots .*{shots}"):
        sample_fewshot(make("r", 2, 5), shots, random.Random(0))


# --- long tails --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("most", "classes", "imbalance", "total"),
    [
        (5000, 10, 100, 12406),
        (5000, 10, 50, 13996),
        (5000, 10, 10, 20431),
        (500, 100, 100, 10847),
        (500, 100, 50, 12608),
        (500, 100, 10, 19573),
    ],
)
def test_the_published_sizes_of_cifar_lt(most, classes, imbalance, total):
    counts = longtail_counts(most, classes, imbalance)
    assert sum(counts) == total
    assert (counts[0], counts[-1]) == (most, most / imbalance)


def test_a_long_tail_has_an_image_of_each_class():
    assert longtail_counts(5, 4, 1000) == [5, 1, 1, 1]
    assert longtail_counts(7, 1, 10) == [7]
    assert longtail_counts(7, 3, 1) == [7, 7, 7]


def counts_of(items, classes):
    return np.bincount([item.label for item in items], minlength=classes).tolist()


# --- splits ------------------------------------------------------------------------------------------


def test_split_off_takes_a_part_of_each_class():
    items = make("r", 3, 20) + make("r", 1, 5, first=20)  # 25 of class 0
    before = list(items)
    kept, taken = split_off(items, 0.2, random.Random(0))
    assert items == before
    assert counts_of(taken, 3) == [5, 4, 4] and [item.label for item in taken] == [2] * 4 + [1] * 4 + [0] * 5
    assert kept == [item for item in items if item not in taken] and len(kept) == 52
    assert split_off(items, 0.2, random.Random(0))[1] == taken != split_off(items, 0.2, random.Random(1))[1]


def test_split_off_rounds_but_takes_at_least_one_image():
    sizes = {n: len(split_off(make("r", 1, n), 0.05, random.Random(0))[1]) for n in (1, 9, 31, 49, 100)}
    assert sizes == {1: 1, 9: 1, 31: 2, 49: 2, 100: 5}


def test_split_off_leaves_small_classes_whole():
    items = make("r", 2, 19) + make("r", 1, 1, first=19)  # 20 of class 0
    assert counts_of(split_off(items, 0.1, random.Random(0), least=20)[1], 2) == [2, 0]


def test_split_in_three_by_class():
    items = make("r", 2, 10) + make("r", 1, 7, first=10)  # 17 of class 0
    splits = split_in_three(items, random.Random(0))
    assert [counts_of(split, 2) for split in splits] == [[8, 5], [3, 2], [6, 3]]
    assert sorted(path for split in splits for path in paths(split)) == sorted(paths(items))
    assert splits == split_in_three(items, random.Random(0)) != split_in_three(items, random.Random(1))


@pytest.mark.parametrize("images", [4, 5, 6, 7])
def test_split_in_three_gives_each_split_an_image_of_a_small_class(images):
    assert all(split_in_three(make("r", 2, images), random.Random(0)))
    with pytest.raises(ValueError, match=r"'class 0' has 3 image.* 4 "):
        split_in_three(make("r", 1, 3), random.Random(0))
