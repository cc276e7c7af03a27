"""Dassl's samplers and several views of an image."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from unskew.dassl import data
from unskew.dassl.config import get_cfg_default
from unskew.dassl.data import Datum
from unskew.dassl.samplers import build_sampler
from unskew.dassl.transforms import build_transform


@pytest.fixture
def items(tmp_path):
    """30 images: 3 classes in turn, 2 domains in turn."""
    items = []
    for i in range(30):
        pixels = np.random.default_rng(i).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i:02d}.png")
        items.append(Datum(str(tmp_path / f"{i:02d}.png"), i % 3, i % 2, f"class {i % 3}"))
    return items


def draw(kind, items, passes=1, seed=0, **settings):
    sampler = build_sampler(kind, data_source=items, generator=torch.Generator().manual_seed(seed), **settings)
    return [list(sampler) for _ in range(passes)], len(sampler)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("RandomSampler", {}),
        ("SequentialSampler", {}),
        ("RandomDomainSampler", {"batch_size": 4, "n_domain": 1}),
        ("RandomDomainSampler", {"batch_size": 4, "n_domain": 0}),
        ("SeqDomainSampler", {"batch_size": 4}),
        ("RandomClassSampler", {"batch_size": 4, "n_ins": 2}),
    ],
)
def test_samplers_follow_their_generator_and_keep_their_length(items, kind, settings):
    orders, length = draw(kind, items, passes=20, **settings)
    assert {len(order) for order in orders} == {length}
    assert orders == draw(kind, items, passes=20, **settings)[0]
    if kind != "SequentialSampler":
        assert orders != draw(kind, items, passes=20, seed=1, **settings)[0]
        assert orders[0] != orders[1]


def test_domain_batches_are_balanced(items):
    for kind in ("RandomDomainSampler", "SeqDomainSampler"):
        (order,), length = draw(kind, items, batch_size=4)
        assert length == 28  # 7 batches of 2 + 2 from 15 + 15
        assert len(set(order)) == 28
        for start in range(0, length, 4):
            domains = [items[i].domain for i in order[start : start + 4]]
            assert Counter(domains) == {0: 2, 1: 2}
            assert kind == "RandomDomainSampler" or domains == [0, 0, 1, 1]


def test_class_batches_are_balanced_and_short_classes_are_filled(items):
    items = [*items, Datum("one.png", 3, 0, "class 3")]
    (order,), length = draw("RandomClassSampler", items, batch_size=8, n_ins=4)
    for start in range(0, length, 8):
        assert sorted(Counter(items[i].label for i in order[start : start + 8]).values()) == [4, 4]


def test_domain_batches_draw_as_dassls_from_pythons_generator(items):
    for kind, is_random in (("RandomDomainSampler", True), ("SeqDomainSampler", False)):
        random.seed(4)
        sampler = build_sampler(kind, data_source=items, batch_size=6)
        found = [list(sampler), list(sampler), random.random()]
        random.seed(4)
        expected = []
        for _ in range(3):  # the constructor draws a pass, too, to know the length
            pools = {domain: [i for i, item in enumerate(items) if item.domain == domain] for domain in (0, 1)}
            order = []
            while min(map(len, pools.values())) >= 3:
                for domain in random.sample([0, 1], 2) if is_random else (0, 1):
                    drawn = random.sample(pools[domain], 3)
                    order += drawn
                    pools[domain] = [i for i in pools[domain] if i not in drawn]
            expected.append(order)
        assert found == [*expected[1:], random.random()]


def test_class_batches_draw_as_dassls_from_the_global_generators(items):
    items = [*items, Datum("one.png", 3, 0, "class 3")]
    seed = lambda: (random.seed(4), np.random.seed(4))  # noqa: E731, NPY002
    seed()
    sampler = build_sampler("RandomClassSampler", data_source=items, batch_size=8, n_ins=4)
    found = [list(sampler), random.random()]
    seed()
    for _ in range(2):
        pools = {}
        for label in range(4):
            order = [i for i, item in enumerate(items) if item.label == label]
            if len(order) < 4:
                order = list(np.random.choice(order, size=4))  # noqa: NPY002
            random.shuffle(order)
            pools[label] = [order[start : start + 4] for start in range(0, len(order) - 3, 4)]
        order = []
        while sum(map(bool, pools.values())) >= 2:
            for label in random.sample([label for label in pools if pools[label]], 2):
                order += pools[label].pop(0)
    assert found == [order, random.random()]


@pytest.mark.parametrize(
    ("kind", "settings", "fact"),
    [
        ("RandomSampeler", {}, r"RandomSampeler.*RandomSampler"),
        ("RandomDomainSampler", {"batch_size": 5, "n_domain": 2}, "batch of 5"),
        ("RandomDomainSampler", {"batch_size": 40, "n_domain": 2}, "20 images"),
        ("RandomClassSampler", {"batch_size": 4, "n_ins": 8}, "N_INS"),
        ("RandomClassSampler", {"batch_size": 8, "n_ins": 2}, "there are 3"),
    ],
)
def test_bad_settings_are_errors(items, kind, settings, fact):
    with pytest.raises(ValueError, match=fact):
        draw(kind, items, **settings)


# --- views of an image -------------------------------------------------------------------------------


def test_several_views_and_the_plain_image(items):
    cfg = get_cfg_default()
    cfg.merge_from_list(["INPUT.SIZE", (16, 16), "DATALOADER.K_TRANSFORMS", 2, "DATALOADER.RETURN_IMG0", True])
    cfg.merge_from_list(["INPUT.TRANSFORMS", ["random_flip", "normalize"]])
    train, test = (build_transform(cfg, is_train) for is_train in (True, False))
    output = data.DatasetWrapper(cfg, items, (train, test), is_train=True)[4]
    assert output.keys() == {"label", "domain", "impath", "index", "img", "img2", "img0"}
    assert (output["label"], output["domain"], output["impath"], output["index"]) == (1, 0, items[4].impath, 4)
    assert [len(output["img"]), len(output["img2"])] == [2, 2]
    assert torch.equal(*output["img2"])
    assert output["img0"].shape == (3, 16, 16)
    assert output["img0"].min() < 0  # normalised
    single = data.DatasetWrapper(cfg, items, test)[4]  # K augmentations are for training only
    assert torch.equal(single["img"], output["img2"][0])
    batch = next(iter(data.build_data_loader(cfg, data_source=items, batch_size=4, tfm=train)))
    assert [view.shape for view in batch["img"]] == [(4, 3, 16, 16)] * 2
    with pytest.raises(ValueError, match="K_TRANSFORMS"):
        data.DatasetWrapper(cfg, items, None, is_train=True)
