"""Stored features are checked when they are read, and a damaged file is encoded again."""

import os
import pathlib
import shutil

import pytest
import torch
from pictures import noise
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torchvision import transforms as T

from unskew.clip import features
from unskew.utils import row_store

PLAIN = T.Compose([T.ToTensor()])


class Tower:
    """Encodes by a fixed matrix and counts the images."""

    id, dtype, device = "tower", torch.float32, torch.device("cpu")

    def __init__(self):
        self.seen = []

    def encode_image(self, images):
        self.seen.append(len(images))
        flat = images.flatten(1)
        return flat @ torch.randn(flat.shape[1], 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def paths(tmp_path):
    return noise(tmp_path / "images", 12, 8, ".bmp")


def rewrite(change):
    """Change the tensors of a file, as a damaged disk or a wrong program would; its metadata stay."""

    def damage(file):
        with safe_open(file, "pt") as content:
            metadata = content.metadata()
        save_file(change({k: v.clone() for k, v in load_file(file).items()}), file, metadata)

    return damage


def flip_one_bit(file):
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "zeroed rows": rewrite(lambda t: {**t, "rows": torch.zeros_like(t["rows"])}),
    "permuted keys": rewrite(lambda t: {**t, "keys": t["keys"].roll(1)}),
    "wrong width": rewrite(lambda t: {**t, "rows": t["rows"][..., :8].contiguous()}),
    "fewer rows": rewrite(lambda t: {**t, "rows": t["rows"][:6].contiguous()}),
    "other views": rewrite(lambda t: {**t, "rows": t["rows"].view(12, 2, 8)}),
    "not a number": rewrite(lambda t: {**t, "rows": t["rows"] * float("nan")}),
    "other dtype": rewrite(lambda t: {**t, "rows": t["rows"].half()}),
    "other keys": rewrite(lambda t: {**t, "keys": t["keys"].double()}),
    "no rows": rewrite(lambda t: {"keys": t["keys"]}),
    "no checksum": lambda file: save_file(load_file(file), file),
    "one bit": flip_one_bit,
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-100]),
    "empty": lambda file: file.write_bytes(b""),
    "text": lambda file: file.write_bytes(b"\xff" * 2000),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_dropped_and_encoded_again(damage, cache, paths, warned):
    expected = features.extract(Tower(), paths, PLAIN)
    (file,) = cache.rglob("*.safetensors")
    DAMAGES[damage](file)
    row_store.open_folder.cache_clear()
    tower = Tower()
    assert torch.equal(features.extract(tower, paths, PLAIN), expected) and tower.seen
    assert len(warned()) == 1 and file.name in warned()[0]
    assert not file.exists() and len(list(cache.rglob("*.safetensors"))) == 1
    row_store.open_folder.cache_clear()
    again = Tower()
    assert torch.equal(features.extract(again, paths, PLAIN), expected)
    assert again.seen == [] and len(warned()) == 1


def test_a_file_from_the_folder_of_other_settings_is_dropped(cache, paths, warned):
    expected = features.extract(Tower(), paths, PLAIN)
    (file,) = cache.rglob("*.safetensors")
    darker = T.Compose([T.ToTensor(), T.Normalize((0.5,) * 3, (0.5,) * 3)])
    features.extract(Tower(), paths[:1], darker)
    (other,) = {path.parent for path in cache.rglob("*.safetensors")} - {file.parent}
    shutil.copy(file, other / "000001-copied.safetensors")
    row_store.open_folder.cache_clear()
    rows = features.extract(Tower(), paths, darker)
    assert not torch.equal(rows, expected) and "000001-copied" in warned()[0]
    assert torch.equal(rows, features.extract(Tower(), paths, darker, keep=False))


def test_a_damaged_file_on_a_read_only_disk_is_skipped(cache, paths, warned, monkeypatch):
    expected = features.extract(Tower(), paths, PLAIN)
    (file,) = cache.rglob("*.safetensors")
    flip_one_bit(file)
    row_store.open_folder.cache_clear()

    unlink = pathlib.Path.unlink

    def refuse(self, missing_ok=False):
        if self == file:
            raise PermissionError(13, "read-only")
        unlink(self, missing_ok)

    monkeypatch.setattr(pathlib.Path, "unlink", refuse)
    assert torch.equal(features.extract(Tower(), paths, PLAIN), expected)
    assert len(warned()) == 1 and file.exists()


def test_an_image_replaced_under_its_name_size_and_time_is_encoded_again(cache, paths):
    """As `cp -p` and `rsync --times` write it; only the time of the inode's last change differs."""
    before = features.extract(Tower(), paths, PLAIN)
    state = os.stat(paths[3])
    Image.new("RGB", (8, 8), (1, 2, 3)).save(paths[3])
    os.utime(paths[3], ns=(state.st_atime_ns, state.st_mtime_ns))
    now = os.stat(paths[3])
    assert (now.st_size, now.st_mtime_ns) == (state.st_size, state.st_mtime_ns)
    rows = features.extract(Tower(), paths, PLAIN)
    assert not torch.equal(rows[3], before[3])
    assert torch.equal(rows, features.extract(Tower(), paths, PLAIN, keep=False))


def test_features_of_another_version_of_the_encoder_are_not_read(cache, paths, monkeypatch):
    features.extract(Tower(), paths, PLAIN)
    monkeypatch.setattr(features, "VERSION", features.VERSION + 1)
    tower = Tower()
    features.extract(tower, paths, PLAIN)
    assert tower.seen and len(list(cache.iterdir())) == 2
