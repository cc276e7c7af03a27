"""Transforms, samplers and loaders on small images."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from unskew.config import get_cfg_default
from unskew.data import images, loaders, transforms
from unskew.data.dataset import DatasetBase, Datum
from unskew.data.samplers import build_sampler
from unskew.utils.seeds import derive_seed

BACKBONE = SimpleNamespace(size=24, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def make_cfg(*pairs):
    cfg = get_cfg_default()
    cfg.merge_from_list(["INPUT.SIZE", (16, 16), "DATALOADER.NUM_WORKERS", 0, "DATASET.NAME", "toy", "VERBOSE", False])
    cfg.merge_from_list(list(pairs))
    cfg.freeze()
    return cfg


def write_image(path, width=40, height=30, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


@pytest.fixture
def items(tmp_path):
    """30 images: 3 classes in turn, 2 domains in turn."""
    paths = [write_image(tmp_path / f"{i:02d}.png", seed=i) for i in range(30)]
    return [Datum(path, i % 3, i % 2, f"class {i % 3}") for i, path in enumerate(paths)]


# --- transforms --------------------------------------------------------------------------------------


def test_test_transform_by_hand(tmp_path):
    image = Image.open(write_image(tmp_path / "a.png"))  # 40 x 30
    found = transforms.build_transform(make_cfg(), BACKBONE, train=False)(image)
    resized = image.resize((32, 24), Image.BICUBIC)  # the shorter side to 24
    pixels = np.asarray(resized.crop((4, 0, 28, 24)), dtype=np.float32) / 255
    expected = (pixels - np.array(BACKBONE.mean)) / np.array(BACKBONE.std)
    assert found.shape == (3, 24, 24)
    assert np.allclose(found.permute(1, 2, 0).numpy(), expected, atol=1e-5)


def test_size_and_normalisation_without_a_backbone(tmp_path):
    image = Image.open(write_image(tmp_path / "a.png"))
    plain = transforms.build_transform(make_cfg(), train=False)(image)
    assert plain.shape == (3, 16, 16)
    assert plain.min() >= 0 and plain.max() <= 1
    cfg = make_cfg("INPUT.TRANSFORMS", ["normalize"])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD))
    assert torch.allclose(transforms.build_transform(cfg, train=False)(image), (plain - mean) / std, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in transforms.TRANSFORMS if transforms.ON_IMAGE.get(name, True)])
def test_every_training_transform_runs_and_follows_the_seed(tmp_path, name):
    image = Image.open(write_image(tmp_path / "a.png"))
    transform = transforms.build_transform(make_cfg("INPUT.TRANSFORMS", [name], "INPUT.GB_K", 3), BACKBONE)
    draws = []
    for seed in (0, 0, 1, 2, 3, 4, 5):
        torch.manual_seed(seed)
        draws.append(transform(image))
    assert all(draw.shape == (3, 24, 24) and draw.isfinite().all() for draw in draws)
    assert torch.equal(draws[0], draws[1])
    deterministic = name in ("normalize", "center_crop", "instance_norm")
    assert all(torch.equal(draws[0], draw) for draw in draws) == deterministic


def test_transform_repr_names_what_decides_the_output():
    reprs = {
        repr(transforms.build_transform(make_cfg("INPUT.TRANSFORMS", names, *pairs), BACKBONE, train))
        for train in (True, False)
        for names, pairs in [
            (["random_resized_crop"], ()),
            (["random_resized_crop"], ("INPUT.RRCROP_SCALE", (0.5, 1.0))),
            (["random_flip"], ()),
            (["cutout"], ()),
            (["cutout"], ("INPUT.CUTOUT_LEN", 4)),
        ]
    }
    assert len(reprs) == 5 + 1  # five for training, one for testing
    assert not any(" at 0x" in text for text in reprs)


def test_instance_norm_and_cutout():
    image = torch.rand(3, 20, 20) + 0.1
    normalised = transforms.InstanceNorm()(image)
    assert torch.allclose(normalised.mean((1, 2)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(normalised.std((1, 2)), torch.ones(3), atol=1e-5)
    torch.manual_seed(0)
    hidden = [int((transforms.Cutout(1, 6)(image) == 0).all(0).sum()) for _ in range(50)]
    assert max(hidden) == 36
    assert min(hidden) >= 9  # around a corner


def test_no_transform_and_bad_names():
    assert transforms.build_transform(make_cfg("INPUT.NO_TRANSFORM", True)) is None
    with pytest.raises(ValueError, match=r"random_filp.*random_flip"):
        transforms.build_transform(make_cfg("INPUT.TRANSFORMS", ["random_filp"]))
    with pytest.raises(ValueError, match="bicubik"):
        transforms.build_transform(make_cfg("INPUT.INTERPOLATION", "bicubik"), train=False)


# --- images ------------------------------------------------------------------------------------------


def test_images_are_rgb_and_errors_name_damaged_files(tmp_path):
    Image.new("L", (3, 3)).save(tmp_path / "grey.png")
    assert images.read_image(str(tmp_path / "grey.png")).mode == "RGB"
    with pytest.raises(FileNotFoundError, match=r"nothing\.png.*'pets'"):
        images.read_image(str(tmp_path / "nothing.png"), dataset="pets")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"text\.png"):
        images.read_image(str(tmp_path / "text.png"))
    whole = (tmp_path / "big.jpg", write_image(tmp_path / "big.jpg", 200, 200))[0].read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.jpg.*truncated"):
        images.read_image(str(tmp_path / "cut.jpg"))


def test_wrapper_gives_one_image_per_transform(items):
    cfg = make_cfg()
    train, test = (transforms.build_transform(cfg, train=train) for train in (True, False))
    output = loaders.DatasetWrapper(cfg, items, (train, test), is_train=True)[4]
    assert output.keys() == {"label", "domain", "impath", "index", "img", "img2"}
    assert (output["label"], output["domain"], output["impath"], output["index"]) == (1, 0, items[4].impath, 4)
    assert torch.equal(loaders.DatasetWrapper(cfg, items, test)[4]["img"], output["img2"])
    assert isinstance(loaders.DatasetWrapper(cfg, items)[0]["img"], Image.Image)


@pytest.mark.parametrize(("key", "value"), [("K_TRANSFORMS", 2), ("RETURN_IMG0", True)])
def test_several_views_of_an_image_need_dassls_wrapper(items, key, value):
    cfg = make_cfg(f"DATALOADER.{key}", value)
    with pytest.raises(ValueError, match=f"{key} {value}"):
        loaders.build_data_loader(cfg, "RandomSampler", items)
    assert len(loaders.build_data_loader(cfg, "RandomSampler", items, dataset_wrapper=loaders.DatasetWrapper))


# --- samplers ----------------------------------------------------------------------------------------


def test_random_order_follows_the_generator(items):
    def order(kind, seed):
        return list(build_sampler(kind, data_source=items, generator=torch.Generator().manual_seed(seed)))

    assert order("SequentialSampler", 0) == list(range(30))
    assert sorted(order("RandomSampler", 0)) == list(range(30))
    assert order("RandomSampler", 0) == order("RandomSampler", 0) != order("RandomSampler", 1)
    with pytest.raises(ValueError, match=r"RandomSampeler.*RandomSampler"):
        order("RandomSampeler", 0)


def test_names_of_dassls_api_need_its_room(items):
    """In another process: a test may have imported `unskew.dassl` in this one."""
    script = """
from unskew.config import get_cfg_default
from unskew.data.samplers import build_sampler
from unskew.data.transforms import build_transform
for build in (lambda: build_sampler("SeqDomainSampler"),
              lambda: build_transform(get_cfg_default(), choices=["randaugment2"])):
    try:
        build()
    except ValueError as error:
        print(error)
"""
    lines = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["SeqDomainSampler", "randaugment2"]
    assert all("unskew.dassl" in line for line in lines)


# --- loaders -----------------------------------------------------------------------------------------


class Toy(DatasetBase):
    def __init__(self, items):
        super().__init__(train_x=items[:20], train_u=items[:10], val=items[20:24], test=items[20:])


def test_data_manager(items):
    cfg = make_cfg("DATALOADER.TRAIN_X.BATCH_SIZE", 8, "DATALOADER.TEST.BATCH_SIZE", 4)
    dm = loaders.DataManager(cfg, dataset=Toy(items))
    assert (dm.num_classes, dm.num_source_domains, dm.lab2cname[2]) == (3, 0, "class 2")
    assert [len(loader) for loader in (dm.train_loader_x, dm.train_loader_u, dm.val_loader, dm.test_loader)] == [
        2,
        1,
        1,
        3,
    ]
    assert [i for batch in dm.test_loader for i in batch["index"].tolist()] == list(range(10))
    batch = next(iter(dm.train_loader_x))
    assert batch["img"].shape == (8, 3, 16, 16)
    assert batch["label"].tolist() == [items[i].label for i in batch["index"]]
    hidden = next(iter(dm.path_loader([item.impath for item in items])))
    assert hidden["label"].tolist() == [-1] * 4
    assert hidden["impath"] == [item.impath for item in items[:4]]


def test_a_small_training_set_still_has_a_batch(items):
    cfg = make_cfg()
    for count, batches in ((5, 1), (8, 1), (9, 1), (16, 2)):
        loader = loaders.build_data_loader(cfg, "RandomSampler", items[:count], 8, tfm=transforms.build_transform(cfg))
        assert len(list(loader)) == batches
    with pytest.raises(ValueError, match="'toy'"):
        loaders.build_data_loader(cfg, "RandomSampler", [], 8)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_depends_on_seed_and_epoch_alone(items, workers, monkeypatch):
    monkeypatch.setattr(loaders, "WORKERS_FROM", 1)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    cfg = make_cfg("INPUT.TRANSFORMS", ["random_resized_crop"], "DATALOADER.NUM_WORKERS", workers)

    def epoch(loader, seed, number):
        loaders.seed_loader(loader, seed, number)
        torch.manual_seed(number)  # what the trainer does for draws in its own process
        return torch.cat([batch["img"] for batch in loader])

    def fresh():
        return loaders.build_data_loader(cfg, "RandomSampler", items, 8, tfm=transforms.build_transform(cfg))

    one = fresh()
    assert one.num_workers == workers
    first, second = epoch(one, 1, 0), epoch(one, 1, 1)
    assert torch.equal(second, epoch(fresh(), 1, 1))
    assert not torch.equal(first, second)
    assert not torch.equal(first, epoch(fresh(), 2, 0))


def test_few_images_need_no_workers(items):
    cfg = make_cfg("DATALOADER.NUM_WORKERS", 4)
    assert loaders.build_data_loader(cfg, "RandomSampler", items, 8).num_workers == 0


def test_derived_seeds_differ_and_repeat():
    seeds = {derive_seed(seed, epoch) for seed in range(20) for epoch in range(20)}
    assert len(seeds) == 400
    assert derive_seed(0, 1) == derive_seed(0, 1)
    assert derive_seed(-1, 1) != derive_seed(-1, 1)


def test_test_images_neither_train_nor_select(warned):
    """CoOp's ImageNet repeats its test images as val, ImageNet-A as train_x too."""
    items = [Datum(name, label, 0, f"class {label}") for label, name in enumerate("abc")]
    others = [Datum(item.impath * 2, item.label, 0, item.classname) for item in items]
    as_val = loaders.keep_test_apart(DatasetBase(train_x=others, val=items, test=items), "one")
    assert (as_val.train_x, as_val.val, as_val.test) == (others, [], items)
    as_train = loaders.keep_test_apart(DatasetBase(train_x=items, val=others, test=items[:1]), "two")
    assert (as_train.train_x, as_train.val, as_train.num_classes) == ([], others, 3)
    assert [line.split(" has ")[0] for line in warned()] == ["val of 'one'", "train_x of 'two'"]
