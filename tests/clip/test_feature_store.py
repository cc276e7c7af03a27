"""The store of features drops damaged files, and says whom it waits for."""

import logging
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from pictures import noise
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torchvision import transforms as T

from unskew.clip import _feature_store, features
from unskew.clip._feature_store import FeatureStore

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
    features._open.cache_clear()
    tower = Tower()
    assert torch.equal(features.extract(tower, paths, PLAIN), expected) and tower.seen
    assert len(warned()) == 1 and file.name in warned()[0]
    assert not file.exists() and len(list(cache.rglob("*.safetensors"))) == 1
    features._open.cache_clear()
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
    features._open.cache_clear()
    rows = features.extract(Tower(), paths, darker)
    assert not torch.equal(rows, expected) and "000001-copied" in warned()[0]
    assert torch.equal(rows, features.extract(Tower(), paths, darker, keep=False))


def test_only_files_with_wanted_rows_are_checked(tmp_path, monkeypatch):
    checked = []
    checksum = _feature_store._checksum
    monkeypatch.setattr(_feature_store, "_checksum", lambda *args: checked.append(1) or checksum(*args))
    writer = FeatureStore(tmp_path)
    for number in range(3):
        writer.add(np.array([number]), torch.full((1, 1, 2), float(number)))
    checked.clear()
    reader = FeatureStore(tmp_path)
    reader.refresh()
    for _ in range(2):
        assert not reader.missing(np.array([1])).any() and len(checked) == 1
    assert reader.take(np.array([1])).tolist() == [[[1, 1]]]


def test_a_damaged_file_does_not_hide_the_rows_of_a_good_one(tmp_path, warned):
    good, bad = FeatureStore(tmp_path), FeatureStore(tmp_path)
    bad.add(np.array([1, 2]), torch.zeros(2, 1, 2))
    (file,) = tmp_path.glob("*.safetensors")
    good.add(np.array([2, 3]), torch.ones(2, 1, 2))
    flip_one_bit(file)
    reader = FeatureStore(tmp_path)
    reader.refresh()
    assert reader.missing(np.array([1, 2, 3])).tolist() == [True, False, False]
    assert reader.take(np.array([2, 3])).tolist() == [[[1, 1]], [[1, 1]]]


def test_a_damaged_file_on_a_read_only_disk_is_skipped(cache, paths, warned, monkeypatch):
    expected = features.extract(Tower(), paths, PLAIN)
    (file,) = cache.rglob("*.safetensors")
    flip_one_bit(file)
    features._open.cache_clear()

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


HOLDER = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_process_that_waits_for_the_lock_warns(tmp_path, monkeypatch, warned):
    monkeypatch.setattr(_feature_store, "QUIET_SECONDS", 0.2)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / ".lock")], **pipes) as holder:
        assert holder.stdout.readline() == "locked\n"
        handler = logging.Handler()
        handler.emit = lambda record: holder.stdin.close()  # the holder ends after the message
        logging.getLogger("unskew").addHandler(handler)
        try:
            with FeatureStore(tmp_path).exclusive_lock():
                pass
        finally:
            logging.getLogger("unskew").removeHandler(handler)
        holder.wait(20)
    assert len(warned()) == 1 and str(tmp_path / ".lock") in warned()[0]
