"""Log q of the groups is on disk by all that decides it, and its estimate takes little memory."""

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pictures import noise
from PIL import Image

from unskew import config
from unskew.debias.prior import estimate_log_prior
from unskew.debias.temperature import fit_temperature
from unskew.engine import dataset_groups
from unskew.micro.weights import model_path
from unskew.utils import row_store

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("red circle", "blue star", "green square", "yellow ring")


@pytest.fixture
def images(tmp_path):
    """A user's folder with 12 images of each class."""
    (tmp_path / "images").mkdir()
    for name in NAMES:
        noise(tmp_path / "images" / name, 12, 32, ".png")
    return tmp_path / "images"


@pytest.fixture
def estimated(tmp_path, monkeypatch):
    """The numbers of images of each estimate; the cache is empty at first."""
    monkeypatch.setenv("UNSKEW_CACHE", str(tmp_path / "cache"))
    counts, estimate = [], dataset_groups._log_q
    monkeypatch.setattr(dataset_groups, "_log_q", lambda *args: counts.append(len(args[2])) or estimate(*args))
    return counts


def groups_of(images, *opts):
    cfg = load("DATASET.ROOT", str(images), *opts)
    return {name: classes.tolist() for name, classes in dataset_groups.dataset_groups(cfg).items()}


def load(*opts):
    return config.load("folder", "micro", "ZeroshotCLIP", ("DATALOADER.NUM_WORKERS", 0, "VERBOSE", False, *opts))


def as_another_process(monkeypatch):
    monkeypatch.setattr(dataset_groups, "_groups", {})
    row_store.open_folder.cache_clear()


def test_stored_groups_need_no_backbone_no_features_and_no_solve(images, estimated, monkeypatch):
    expected = groups_of(images)
    assert len(estimated) == 1 and sorted(itertools.chain(*expected.values())) == [0, 1, 2, 3]
    for name in ("estimate", "fit_temperature"):
        monkeypatch.setattr(dataset_groups, name, None)
    monkeypatch.setattr(dataset_groups.backbones, "load_backbone", None)
    monkeypatch.setattr("unskew.clip.features.extract", None)
    as_another_process(monkeypatch)
    assert groups_of(images) == expected
    assert groups_of(images, "DATASET.NUM_SHOTS", 2, "SEED", 3) == expected
    assert len(estimated) == 1


def change_pixels(images):
    for file in (images / NAMES[0]).iterdir():  # the sample has some of them
        state = os.stat(file)
        Image.new("RGB", (32, 32), (1, 2, 3)).save(file)
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))


CHANGES = {
    "pixels": change_pixels,
    "a missing image": lambda images: sorted((images / NAMES[1]).iterdir())[0].unlink(),
    "another image": lambda images: Image.new("RGB", (32, 32)).save(images / NAMES[2] / "new.png"),
    "class name": lambda images: (images / NAMES[3]).rename(images / "yellow moon"),
    "labels": lambda images: shutil.move(sorted((images / NAMES[0]).iterdir())[0], images / NAMES[1] / "moved.png"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_data_are_estimated_again(change, images, estimated):
    """In the same process too."""
    groups_of(images)
    groups_of(images)
    assert len(estimated) == 1
    CHANGES[change](images)
    groups_of(images)
    assert len(estimated) == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [("DATASET.TEMPLATE", "a drawing of a {}."), ("INPUT.INTERPOLATION", "nearest"), ("DATASET.UPRIGHT", False)],
)
def test_other_settings_are_estimated_again(key, value, images, estimated):
    cfg = load("DATASET.ROOT", str(images))
    for pairs in ({}, {key: value}, {}):
        dataset_groups._stored_log_q(config.derive(cfg, pairs), "cpu")
    assert len(estimated) == 2


def test_other_weights_under_the_same_name_are_estimated_again(images, tmp_path, estimated):
    """The process has loaded the first ones."""
    file = tmp_path / "weights.safetensors"
    cfg = config.derive(load("DATASET.ROOT", str(images)), {"MODEL.BACKBONE.NAME": f"micro@{file}"})
    found = []
    for name in ("micro", "micro-a"):
        shutil.copyfile(model_path(name), file)
        found += [dataset_groups._stored_log_q(cfg, "cpu") for _ in range(2)]
        row_store.open_folder.cache_clear()
        other = config.derive(cfg, {"MODEL.BACKBONE.NAME": name})
        assert torch.equal(found[-1], dataset_groups._stored_log_q(other, "cpu"))
    assert len(estimated) == 4 and torch.equal(found[0], found[1]) and not torch.equal(found[1], found[2])


def test_damaged_groups_are_estimated_again_with_one_warning(images, estimated, tmp_path, monkeypatch, warned):
    expected = groups_of(images)
    (file,) = (tmp_path / "cache" / "groups").rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    for _ in range(2):
        as_another_process(monkeypatch)
        assert groups_of(images) == expected
    assert len(estimated) == 2 and len(warned()) == 1 and file.name in warned()[0]


def test_groups_without_a_place_to_write(images, estimated, tmp_path, monkeypatch, warned):
    expected = groups_of(images)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UNSKEW_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        monkeypatch.setattr(dataset_groups, "_groups", {})
        assert groups_of(images) == expected
    assert len(estimated) == 2 and len(warned()) == 1 and "in memory" in warned()[0]


# --- the estimate in parts --------------------------------------------------------------------------


def some_logits(classes, images):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(classes).repeat(images)[torch.randperm(classes * images, generator=generator)]
    logits = torch.randn(len(labels), classes, generator=generator) + 2 * torch.nn.functional.one_hot(labels, classes)
    return logits + torch.randn(classes, generator=generator), labels


def test_a_set_of_usual_size_is_estimated_at_once():
    logits, labels = some_logits(12, 9)
    expected = estimate_log_prior(logits / fit_temperature(logits, labels), labels).log_q
    assert torch.equal(dataset_groups._estimate(lambda part: logits[part], labels, 12), expected)


def test_a_large_set_has_the_mean_of_its_parts(monkeypatch):
    logits, labels = some_logits(12, 9)
    keep = (labels != 5) | (torch.arange(len(labels)) == (labels == 5).nonzero()[0, 0])  # one image of class 5
    keep &= labels != 7  # and none of class 7
    logits, labels = logits[keep], labels[keep]
    monkeypatch.setattr(dataset_groups, "PART_LOGITS", 3 * 12 * 12)
    ranks = [int((labels[:i] == label).sum()) for i, label in enumerate(labels)]
    estimates = []
    for part in range(3):
        rows = torch.tensor([rank % 3 == part for rank in ranks])
        assert int(rows.sum()) * 12 <= dataset_groups.PART_LOGITS
        scaled = logits[rows] / fit_temperature(logits[rows], labels[rows])
        estimates.append(estimate_log_prior(scaled, labels[rows]).log_q)
    expected = torch.stack(estimates).mean(0)
    expected[5], expected[7] = estimates[0][5], -torch.tensor(12.0).log()
    found = dataset_groups._estimate(lambda part: logits[part], labels, 12)
    torch.testing.assert_close(found, expected)


def test_the_mean_of_parts_is_close_to_the_estimate_at_once(monkeypatch):
    logits, labels = some_logits(60, 16)
    whole = dataset_groups._estimate(lambda part: logits[part], labels, 60)
    monkeypatch.setattr(dataset_groups, "PART_LOGITS", 4 * 60 * 60)
    parts = dataset_groups._estimate(lambda part: logits[part], labels, 60)
    assert not torch.equal(whole, parts)
    assert torch.corrcoef(torch.stack([whole, parts]))[0, 1] > 0.99


MEMORY = """
import resource, torch
from unskew.engine import dataset_groups
classes, images = 800, 24
dataset_groups.PART_LOGITS = 2 * classes**2
labels = torch.arange(classes).repeat(images)
directions = torch.nn.functional.normalize(torch.randn(classes, 16, generator=torch.Generator().manual_seed(0)), dim=1)
def logits_of(part):
    return 8 * directions[labels[part]] @ directions.T
small = torch.arange(2 * classes)  # the code and the allocator's own memory
dataset_groups._estimate(lambda part: logits_of(small[part]), labels[small], classes)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
dataset_groups._estimate(logits_of, labels, classes)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_number_of_images():
    """All 24 images of a class at once are 61 MB of logits, and three times as much with the solver's copy."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", MEMORY], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 30_000  # kB
