"""Features: each image is encoded once for all callers, and stored features equal encoded ones."""

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import noise
from PIL import Image
from torchvision import transforms as T

from unskew import config
from unskew.clip import backbones, features
from unskew.config.defaults import get_cfg_default
from unskew.data.images import read_image
from unskew.data.transforms import build_transform
from unskew.utils import row_store

WIDTH = 64
PLAIN, CROPS = T.Compose([T.ToTensor()]), T.Compose([T.RandomCrop(6), T.ToTensor()])


class Tower:
    """Encodes by a fixed matrix, and remembers how many images it has seen; at most ``room`` of them at a time."""

    def __init__(self, name="tower", dtype=torch.float32, room=10**6):
        self.id, self.dtype, self.device, self.room = name, dtype, torch.device("cpu"), room
        self.seen, self.sizes = 0, []

    def encode_image(self, images):
        self.sizes.append(len(images))
        if len(images) > self.room:
            raise torch.OutOfMemoryError("no room")
        flat = images.flatten(1)
        self.seen += int(flat.any(1).sum())  # batches are padded with zeros
        weights = torch.randn(flat.shape[1], WIDTH, generator=torch.Generator().manual_seed(0))
        return (flat @ weights).to(self.dtype)


@pytest.fixture
def paths(tmp_path):
    return noise(tmp_path / "images", 60, 8, ".png")


def forget_loaded():
    """As another process that starts now."""
    row_store.open_folder.cache_clear()


def test_an_image_is_encoded_once_for_all_callers(cache, paths):
    tower = Tower()
    first = features.extract(tower, paths[:40], PLAIN)
    second = features.extract(tower, paths[20:], PLAIN)  # another sample: half of it is known
    assert tower.seen == 60
    forget_loaded()
    other = Tower()
    again = features.extract(other, [*paths[:5], *paths[::-1]], PLAIN)
    assert other.seen == 0
    torch.testing.assert_close(again[5:].flip(0), torch.cat([first, second[20:]]), rtol=0, atol=0)
    torch.testing.assert_close(again[:5], first[:5], rtol=0, atol=0)
    assert features.extract(other, [paths[0], paths[0]], PLAIN).shape == (2, WIDTH)


def test_views_are_those_of_their_numbers(cache, paths):
    tower = Tower()
    rows = features.extract(tower, paths, CROPS, views=range(3))
    assert rows.shape == (60, 3, WIDTH) and tower.seen == 180
    for view in range(3):
        alone = features.extract(Tower(), paths, CROPS, views=[view], keep=False)[:, 0]
        torch.testing.assert_close(rows[:, view], alone)
    assert not torch.equal(rows[:, 0], rows[:, 1])
    state = torch.get_rng_state()
    features.extract(Tower("another"), paths, CROPS, views=[7])
    assert torch.equal(torch.get_rng_state(), state)  # drawing views leaves the global generator alone


class Pixels(Tower):
    """Its features are the pixels."""

    def encode_image(self, images):
        return images.flatten(1)


@pytest.mark.parametrize("last", [T.Normalize((0.4, 0.5, 0.6), (0.3, 0.2, 0.1)), T.RandomErasing(p=1.0)])
def test_pixels_are_those_of_the_transform_bit_for_bit(last, cache, paths):
    """The transform of a batch (one that ends in Normalize) equals the transform of single images."""
    transform = T.Compose([T.RandomResizedCrop((9, 7)), T.ToTensor(), last])
    rows = features.extract(Pixels(), paths, transform, views=[0, 3])
    for path, found in zip(paths, rows, strict=True):
        for view, row in zip((0, 3), found, strict=True):
            torch.manual_seed(features._view_seed("images/" + os.path.basename(path), view))
            assert torch.equal(row, transform(read_image(path)).flatten())


def test_pixels_without_views_are_those_of_the_transform(cache, paths):
    transform = T.Compose([T.Resize(7), T.ToTensor(), T.Normalize((0.4, 0.5, 0.6), (0.3, 0.2, 0.1))])
    expected = torch.stack([transform(read_image(path)).flatten() for path in paths])
    assert torch.equal(features.extract(Pixels(), paths, transform), expected)


@pytest.mark.parametrize("other", ["tower", "precision", "transform", "views"])
def test_what_decides_a_feature_keeps_its_own_rows(other, cache, paths):
    features.extract(Tower(), paths, CROPS, views=[0])
    tower = Tower("tower 2" if other == "tower" else "tower", torch.float16 if other == "precision" else torch.float32)
    transform = T.Compose([T.RandomCrop(7), T.ToTensor()]) if other == "transform" else CROPS
    rows = features.extract(tower, paths, transform, views=[1] if other == "views" else [0])
    assert tower.seen == 60 and rows.dtype == torch.float32
    assert len(list(cache.glob("*/settings.json"))) == 2


def test_a_changed_image_is_encoded_again(cache, paths):
    features.extract(Tower(), paths, PLAIN)
    Image.new("RGB", (8, 8), (1, 2, 3)).save(paths[3])
    os.utime(paths[5], (1, 1))
    tower = Tower()
    rows = features.extract(tower, paths, PLAIN)
    assert tower.seen == 2
    torch.testing.assert_close(rows[3:4], features.extract(Tower(), [paths[3]], PLAIN, keep=False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_cache_is_as_large_as_its_rows(dtype, cache, paths, tmp_path):
    many = []
    for path in paths * 20:  # other names of the same images
        many.append(str(tmp_path / f"{len(many)}.png"))
        os.link(path, many[-1])
    views = 8
    features.extract(Tower(dtype=dtype), many, PLAIN)
    features.extract(Tower(dtype=dtype), many, CROPS, views=range(views))
    size = sum(file.stat().st_size for file in cache.rglob("*.safetensors"))
    rows = len(many) * (1 + views) * (WIDTH * dtype.itemsize + 8)  # a key of 8 bytes beside each row
    assert rows < size < 1.01 * rows


def test_without_keeping_nothing_is_written(cache, paths):
    features.extract(Tower(), paths, PLAIN, keep=False)
    assert not cache.exists()


def test_a_damaged_file_is_encoded_again(cache, paths, caplog, warned):
    features.extract(Tower(), paths, PLAIN)
    (file,) = cache.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    forget_loaded()
    tower = Tower()
    features.extract(tower, paths, PLAIN)
    assert tower.seen == 60 and file.name in warned()[0]


def test_without_a_place_to_write_features_are_kept_in_memory(cache, paths, warned):
    cache.parent.mkdir()
    cache.write_text("a file where the folder should be")
    tower = Tower()
    rows = [features.extract(tower, paths, PLAIN) for _ in range(2)]
    assert tower.seen == 60 and torch.equal(*rows)
    assert len(warned()) == 1 and "in memory" in warned()[0]


def test_a_batch_that_does_not_fit_is_halved_and_the_next_ones_too(cache, paths, monkeypatch):
    monkeypatch.setattr(features, "_limits", {"cpu": 32})
    tower = Tower(room=10)
    rows = features.extract(tower, paths, PLAIN)
    assert tower.sizes == [32, 16, 8, 8, 8, 8, 8, 8, 8, 8]  # of 60 images; the last batch is padded
    torch.testing.assert_close(rows, features.extract(Tower("roomy"), paths, PLAIN))
    with pytest.raises(torch.OutOfMemoryError):
        features.extract(Tower("none", room=0), paths, PLAIN)


def _extract_in_process(paths, folder, counts):
    os.environ["UNSKEW_CACHE"] = folder
    torch.set_num_threads(1)
    tower = Tower()
    features.extract(tower, paths, PLAIN)
    counts.put(tower.seen)


def test_processes_that_start_together_share_the_work(cache, paths):
    context = multiprocessing.get_context("spawn")
    counts = context.Queue()
    processes = [
        context.Process(target=_extract_in_process, args=(part, str(cache.parent), counts))
        for part in (paths[:40], paths[20:])
    ]
    for process in processes:
        process.start()
    seen = [counts.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sum(seen) == 60
    tower = Tower()
    features.extract(tower, paths, PLAIN)
    assert tower.seen == 0


def test_a_missing_image_is_named_and_the_others_may_go_on(cache, paths):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        features.extract(Tower(), [*paths, "nowhere.png"], PLAIN)
    with pytest.raises(ValueError, match="empty"):
        features.extract(Tower(), [], PLAIN)
    assert features.extract(Tower(), paths, PLAIN).shape == (60, WIDTH)


# --- any images ------------------------------------------------------------------------------------


def test_files_pil_images_and_tensors_give_the_features_of_a_run(cache, paths):
    backbone = backbones.load_backbone("micro")
    transform = build_transform(get_cfg_default(), backbone, train=False)
    opened = [read_image(path) for path in paths]
    pixels = torch.stack([transform(image) for image in opened])
    with torch.no_grad():
        expected = backbone.encode_image(pixels)
    assert expected.shape == (60, 64)
    for images in (paths, opened, [*paths[:1], *opened[1:]], pixels):
        torch.testing.assert_close(features.encode_images(backbone, images), expected, rtol=1e-5, atol=1e-5)
    grey = features.encode_images(backbone, [opened[0].convert("L")])
    torch.testing.assert_close(grey, features.encode_images(backbone, [opened[0].convert("L").convert("RGB")]))
    with pytest.raises(ValueError, match="no images"):
        features.encode_images(backbone, [])


def test_files_share_the_cache_of_a_run(cache, paths):
    backbone = backbones.load_backbone("micro")
    cfg = config.load("digits", "micro", "ZeroshotCLIP")
    features.extract(backbone, paths, build_transform(cfg, backbone, train=False), upright=True)
    features.encode_images(backbone, paths)
    assert len(list(cache.glob("*/settings.json"))) == 1


def test_images_to_encode_are_a_list_of_paths_or_pil_images():
    backbone = backbones.load_backbone("micro")
    for images, fact in (("i.png", "i.png"), (Path("i.png"), "i.png"), ([np.zeros((8, 8, 3))], "ndarray")):
        with pytest.raises(ValueError, match=fact) as error:
            features.encode_images(backbone, images)
        assert "\n" not in str(error.value)
