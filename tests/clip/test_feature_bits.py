"""A feature's bits do not depend on which other images were encoded before or with it."""

import pytest
import torch
from pictures import noise
from torchvision import transforms as T

from unskew.clip import backbones, features
from unskew.config.defaults import get_cfg_default
from unskew.data.images import read_image
from unskew.data.transforms import build_transform
from unskew.utils import row_store

CROPS = T.Compose([T.RandomResizedCrop(32, (0.5, 1.0)), T.ToTensor(), T.Normalize((0.4,) * 3, (0.3,) * 3)])


@pytest.fixture
def paths(tmp_path):
    return noise(tmp_path / "images", 80, 36, ".png")


@pytest.fixture
def fresh_cache(tmp_path, monkeypatch):
    """A function that starts a new process's view of a cache: a new one, or that of an earlier name."""

    def start(name):
        monkeypatch.setenv("UNSKEW_CACHE", str(tmp_path / "caches" / name))
        row_store.open_folder.cache_clear()

    yield start
    row_store.open_folder.cache_clear()


@pytest.mark.parametrize("name", ["micro", "micro-vit"])
@pytest.mark.parametrize("views", [None, [0, 1, 2]])
def test_cold_warm_and_partly_warm_caches_give_equal_bits(name, views, paths, fresh_cache):
    backbone = backbones.load_backbone(name)
    transform = CROPS if views else build_transform(get_cfg_default(), backbone, train=False)
    options = {"transform": transform, "views": views}
    fresh_cache("cold")
    cold = features.extract(backbone, paths, **options)
    for first in (1, 7, 33):  # images that another run has encoded before
        fresh_cache(f"partly warm {first}")
        features.extract(backbone, paths[40 : 40 + first], **options)
        assert torch.equal(features.extract(backbone, paths, **options), cold)
    fresh_cache("cold")
    assert torch.equal(features.extract(backbone, paths[::-1], **options).flip(0), cold)
    for index in (0, 79):  # alone
        assert torch.equal(features.extract(backbone, [paths[index]], keep=False, **options)[0], cold[index])


@pytest.mark.parametrize("name", ["micro", "micro-vit"])
def test_views_do_not_depend_on_the_other_views(name, paths, fresh_cache):
    backbone = backbones.load_backbone(name)
    fresh_cache("views")
    together = features.extract(backbone, paths[:20], CROPS, views=range(5))
    for view in range(5):
        alone = features.extract(backbone, paths[:20], CROPS, views=[view])[:, 0]
        assert torch.equal(together[:, view], alone)


@pytest.mark.parametrize("name", ["micro", "micro-vit"])
def test_files_pil_images_and_pixels_give_equal_bits(name, paths, fresh_cache):
    backbone = backbones.load_backbone(name)
    fresh_cache("files")
    transform = build_transform(get_cfg_default(), backbone, train=False)
    opened = [read_image(path) for path in paths]
    pixels = torch.stack([transform(image) for image in opened])
    expected = features.encode_images(backbone, paths)
    for images in (opened, [*paths[:3], *opened[3:]], pixels):
        assert torch.equal(features.encode_images(backbone, images), expected)
        assert torch.equal(features.encode_images(backbone, images[:7]), expected[:7])


def test_each_batch_has_the_same_shape_and_few_images_cost_little(paths):
    shapes = []

    class Tower:
        id, dtype, device = "tower", torch.float32, torch.device("cpu")

        def encode_image(self, images):
            shapes.append(tuple(images.shape))
            return images.flatten(1)[:, :8]

    for count, size in ((80, 32), (1, 32), (3, 224)):
        transform = T.Compose([T.Resize((size, size)), T.ToTensor()])
        features.extract(Tower(), paths[:count], transform, keep=False)
    assert shapes == [(64, 3, 32, 32)] * 3 + [(16, 3, 224, 224)]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_an_error_and_are_not_stored(value, paths, fresh_cache, tmp_path):
    class Broken:
        id, dtype, device = "broken weights", torch.float32, torch.device("cpu")

        def encode_image(self, images):
            rows = images.flatten(1)[:, :8].clone()
            rows[3, 2] = value
            return rows

    fresh_cache("broken")
    plain = T.Compose([T.ToTensor()])
    with pytest.raises(ValueError, match="broken weights") as error:
        features.extract(Broken(), paths, plain)
    assert paths[3] in str(error.value) and "\n" not in str(error.value)
    assert not list((tmp_path / "caches").rglob("*.safetensors"))
    with pytest.raises(ValueError, match="broken weights"):
        features.encode_images(Broken(), torch.zeros(5, 3, 8, 8))
