"""Augmented views: each is encoded once for runs of any number of epochs, and an image is decoded once for several."""

import multiprocessing
import os

import pytest
import torch
from pictures import noise
from torchvision import transforms as T

from unskew.clip import features
from unskew.utils import row_store
from unskew.utils.row_store import RowStore

CROPS = T.Compose([T.RandomCrop(6), T.ToTensor()])


class Tower:
    """Encodes by a fixed matrix and counts the views."""

    id, dtype, device = "tower", torch.float32, torch.device("cpu")

    def __init__(self):
        self.seen = 0

    def encode_image(self, images):
        flat = images.flatten(1)
        self.seen += int(flat.any(1).sum())  # batches are padded with zeros
        return flat @ torch.randn(flat.shape[1], 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def paths(tmp_path):
    return noise(tmp_path / "images", 40, 8, ".png")


@pytest.fixture
def opened(monkeypatch):
    """The paths of the images that are decoded."""
    names, read = [], features.read_image
    monkeypatch.setattr(features, "read_image", lambda path, **options: names.append(path) or read(path, **options))
    return names


def test_a_run_with_more_views_encodes_only_the_new_ones(cache, paths, opened):
    expected = features.extract(Tower(), paths, CROPS, views=range(5), keep=False)
    opened.clear()
    for views, new in ((range(1), 1), (range(2), 1), (range(5), 3), (range(3), 0), ([4, 2, 4], 0)):
        row_store.open_folder.cache_clear()  # as another process
        tower = Tower()
        rows = features.extract(tower, paths, CROPS, views=views)
        assert torch.equal(rows, expected[:, list(views)])
        assert tower.seen == new * len(paths)
        assert sorted(opened) == (sorted(paths) if new else [])
        opened.clear()


def test_an_image_is_decoded_once_for_all_views_that_it_lacks(cache, paths, opened):
    expected = features.extract(Tower(), paths, CROPS, views=range(4), keep=False)
    features.extract(Tower(), paths[:10], CROPS, views=[0])
    features.extract(Tower(), paths[5:20], CROPS, views=[1, 3])
    opened.clear()
    tower = Tower()
    rows = features.extract(tower, [*paths, paths[0]], CROPS, views=range(4))
    assert torch.equal(rows, expected[[*range(40), 0]])
    assert tower.seen == 4 * 40 - 10 - 2 * 15 and sorted(opened) == sorted(paths)


def test_a_damaged_view_is_encoded_again_without_the_others(cache, paths, warned):
    expected = features.extract(Tower(), paths, CROPS, views=range(3))
    file = sorted(cache.rglob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:-8])
    row_store.open_folder.cache_clear()
    tower = Tower()
    assert torch.equal(features.extract(tower, paths, CROPS, views=range(3)), expected)
    assert tower.seen == len(paths) and len(warned()) == 1 and file.name in warned()[0]


def test_the_locks_of_the_views_have_one_order(cache, paths, monkeypatch):
    """Two processes would otherwise wait for each other."""
    locked, lock = [], RowStore.exclusive_lock
    monkeypatch.setattr(RowStore, "exclusive_lock", lambda store: locked.append(store.folder) or lock(store))
    features.extract(Tower(), paths[:1], CROPS, views=[0, 1, 2, 3])
    features.extract(Tower(), paths[1:2], CROPS, views=[3, 1, 0, 2])
    assert len(set(locked[:4])) == 4 and locked[:4] == locked[4:]


def extract_in_process(paths, folder, views, counts):
    os.environ["UNSKEW_CACHE"] = folder
    torch.set_num_threads(1)
    tower = Tower()
    rows = features.extract(tower, paths, CROPS, views=views)
    counts.put((tower.seen, rows.double().sum((0, 2)).tolist()))


def test_processes_with_overlapping_views_share_the_work(cache, paths):
    context = multiprocessing.get_context("spawn")
    counts, wanted = context.Queue(), [[0, 1, 2, 3], [3, 2, 1, 0]]
    processes = [
        context.Process(target=extract_in_process, args=(paths, str(cache.parent), views, counts)) for views in wanted
    ]
    for process in processes:
        process.start()
    results = [counts.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    assert sum(seen for seen, _ in results) == 4 * len(paths)
    assert {tuple(sorted(sums)) for _, sums in results} == {tuple(sorted(results[0][1]))}
    tower = Tower()
    features.extract(tower, paths, CROPS, views=range(4))
    assert tower.seen == 0
