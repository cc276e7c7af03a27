"""Classes with fewer images than shots are reported once for each split, after the table of the dataset."""

import logging

import numpy as np
import pytest
from PIL import Image

from unskew.cli.main import main
from unskew.utils import logging as ours


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Folders of 20, 20 and 12 images: 10, 10 and 6 of them are for training."""
    monkeypatch.setattr(ours, "_warned", set())
    rng = np.random.default_rng(0)
    for name, count in (("one", 20), ("two", 20), ("three", 12)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(256, size=(32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    return str(tmp_path / "images")


def test_each_split_is_named_once_after_the_table(images, tmp_path, capsys):
    """GLA builds its base on the same images, and the seeds of a sweep draw equal numbers of them."""
    opts = "OPTIM.MAX_EPOCH 1 INPUT.VIEWS 1 DATALOADER.NUM_WORKERS 0".split()
    argv = ["sweep", "-d", "folder", "--root", images, "-b", "micro", "-t", "GLA", "--shots", "8", "--seeds", "1-2"]
    assert main([*argv, "--output", str(tmp_path / "out"), "--opts", *opts]) == 0
    assert capsys.readouterr().err.count("fewer than") == 2
    for log in (tmp_path / "out").rglob("log.txt"):
        lines = log.read_text().splitlines()
        short = [number for number, line in enumerate(lines) if "fewer than" in line]
        assert [lines[number].split(":")[0] for number in short] == ["train_x", "val"]
        assert "'three' with 6" in lines[short[0]] and "1 of 3" in lines[short[0]]
        assert short[0] == 1 + max(number for number, line in enumerate(lines) if line.startswith("-----"))
    assert len(list((tmp_path / "out").rglob("log.txt"))) == 2


def test_zero_epochs_are_reported_once(data_root, tmp_path, monkeypatch, caplog, capsys):
    monkeypatch.setattr(ours, "_warned", set())
    argv = ["sweep", "-d", "digits", "-t", "GLA,CoOp", "--shots", "2", "--seeds", "1-2", "--root", data_root]
    pairs = ["OPTIM.MAX_EPOCH", "0", "INPUT.VIEWS", "1", "DATALOADER.NUM_WORKERS", "0"]
    monkeypatch.setattr(logging.getLogger("unskew"), "propagate", True)
    assert main([*argv, "--output", str(tmp_path), "--opts", *pairs]) == 0
    assert capsys.readouterr().err.count("OPTIM.MAX_EPOCH is 0") == 1
