"""A finished run is not taken for finished once its images, names or weights have changed."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from unskew.clip import backbones
from unskew.engine import fingerprint
from unskew.engine.run_dir import RunDir
from unskew.runs.launch import overview
from unskew.runs.run import Run, execute

COLOURS = {"red": (200, 20, 20), "blue": (20, 20, 200)}


def draw(folder):
    """Write ten images for each of two classes, as .bmp files, whose size does not depend on their content."""
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (32, 32), tuple(min(255, c + number) for c in colour)).save(
                folder / name / f"{number}.bmp"
            )


@pytest.fixture
def images(tmp_path):
    draw(tmp_path / "images")
    return tmp_path / "images"


@pytest.fixture
def table(images):
    lines = [f"images/{name}/{n}.bmp,{name}" for name in COLOURS for n in range(10)]
    (images.parent / "table.csv").write_text("\n".join(["path,classname", *lines]))
    return images.parent / "table.csv"


def finished(dataset, root, tmp_path, *opts, **options):
    opts = ("DATALOADER.NUM_WORKERS", 0, *opts)
    run = Run(dataset, "ZeroshotCLIP", root=str(root), seed=1, folder=str(tmp_path / "run"), opts=opts, **options)
    run = run if options.get("backbone") else replace(run, backbone="micro")
    execute(run, console=False)
    return run


def refused(run):
    """The keys that differ, as the error names them; the run is not finished for any reader of its state."""
    assert not RunDir(run.path).is_finished_run_of(run.config)
    assert "another config" in overview([run])
    with pytest.raises(ValueError, match=re.escape(str(run.path))) as error:
        execute(run, console=False)
    assert "\n" not in str(error.value)
    return re.search(r"differs in (.*?)\);", str(error.value))[1]


def touch(path):
    state = os.stat(path)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))


def other_size(path):
    path.write_bytes(path.read_bytes() + b"more")
    os.utime(path, ns=(0, 10**18))


CHANGES = {
    "another time": (touch, "sizes and times of the images"),
    "another size": (other_size, "sizes and times of the images"),
    "a new image": (lambda path: shutil.copy(path, path.with_name("new.bmp")), "names of the images"),
    "a lost image": (lambda path: path.unlink(), "names of the images"),
    "another name": (lambda path: path.rename(path.with_name("renamed.bmp")), "names of the images"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_on_changed_images_names_the_kind_of_change(change, images, tmp_path):
    run = finished("folder", images, tmp_path)
    assert execute(run, console=False) == run.metrics  # nothing has changed
    act, kind = CHANGES[change]
    act(images / "red" / "3.bmp")
    assert refused(run).startswith(f"DATASET.ROOT ({kind})")


@pytest.mark.parametrize("change", ["another time", "another size"])
def test_the_images_of_a_csv_file_count_too(change, table, images, tmp_path):
    run = finished("csv", table, tmp_path)
    assert execute(run, console=False) == run.metrics
    CHANGES[change][0](images / "red" / "3.bmp")
    assert refused(run) == "DATASET.ROOT (sizes and times of the images)"


def test_a_changed_csv_file_is_named(table, images, tmp_path):
    run = finished("csv", table, tmp_path)
    lines = table.read_text().split("\n")
    table.write_text("\n".join([lines[0], *lines[2:]]))
    assert "DATASET.ROOT (content of the CSV file)" in refused(run)


def test_images_with_splits_count_in_each_of_them(images, tmp_path):
    split = tmp_path / "split"
    for name in ("train", "test"):
        shutil.copytree(images, split / name)
    run = finished("folder", split, tmp_path)
    touch(split / "test" / "blue" / "7.bmp")
    assert refused(run) == "DATASET.ROOT (sizes and times of the images)"


def test_changed_class_names_are_named(images, tmp_path):
    names = tmp_path / "names.json"
    names.write_text('{"red": "red", "blue": "blue"}')
    run = finished("folder", images, tmp_path, "DATASET.CLASSNAMES", str(names))
    names.write_text('{"red": "red", "blue": "azure"}')
    assert refused(run) == "DATASET.CLASSNAMES"


def test_changed_class_names_in_the_folder_are_named(images, tmp_path):
    names = images / "classnames.json"
    names.write_text('{"red": "red", "blue": "blue"}')
    run = finished("folder", images, tmp_path)
    names.write_text('{"red": "red", "blue": "azure"}')
    assert refused(run) == "DATASET.CLASSNAMES"


def test_a_run_without_a_record_of_its_images_is_refused(images, tmp_path):
    """As an older version has left it: the images may have changed since."""
    run = finished("folder", images, tmp_path)
    *_, rest = run.path.joinpath("config.yaml").read_text().split("\n", 2)
    run.path.joinpath("config.yaml").write_text(f"# identity 0123456789abcdef\n{rest}")
    run.path.joinpath("done").write_text("0123456789abcdef\n")
    assert "older" in refused(run)


def test_an_unfinished_run_on_changed_images_starts_again(images, tmp_path):
    run = finished("folder", images, tmp_path)
    checkpoint = run.path / "prompt" / "model.pth.tar-1"
    checkpoint.parent.mkdir()
    for act, remains in ((lambda path: None, True), (touch, False)):
        checkpoint.write_bytes(b"of these images")
        act(images / "red" / "3.bmp")
        RunDir(run.path).prepare(run.config)
        assert checkpoint.is_file() == remains


def test_images_that_change_during_a_run_are_changed_images(images, tmp_path):
    run = finished("folder", images, tmp_path)
    run.path.joinpath("done").unlink()
    folder = RunDir(run.path)
    folder.start_log()
    folder.prepare(run.config)
    touch(images / "red" / "3.bmp")
    folder.finish(run.config)
    assert folder.is_finished and not folder.is_finished_run_of(run.config)


@pytest.mark.parametrize("place", ["micro@{}/weights.safetensors", "local-dir:{}"])
def test_replaced_local_weights_are_named(place, data_root, tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    state = backbones.load_backbone("micro@random").model.state_dict()
    save_file(state, folder / "weights.safetensors")

    def hashed():
        cfg = Run("digits", "ZeroshotCLIP", backbone=place.format(folder), folder="out").config
        return fingerprint.config_hash(cfg)

    first = hashed()
    assert hashed() == first
    save_file({key: value + torch.ones((), dtype=value.dtype) for key, value in state.items()}, folder / "w")
    (folder / "w").rename(folder / "weights.safetensors")
    assert hashed() != first


def test_a_finished_run_on_own_images_is_found_without_torch(images, tmp_path):
    run = finished("folder", images, tmp_path)
    code = (
        "import sys; from unskew.runs.run import Run, execute; "
        f"execute({run!r}); assert 'torch' not in sys.modules, 'torch'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_published_datasets_have_the_fingerprint_that_they_had():
    cfg = Run("digits", "CoOp", shots=2, seed=1).config
    assert all("(" not in key for key in fingerprint.identity(cfg))
