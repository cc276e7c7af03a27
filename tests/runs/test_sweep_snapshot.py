"""A sweep reads the data once, and its runs have the bits of runs in processes of their own."""

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pictures
import pytest
import torch
from building import without_costs
from PIL import Image
from safetensors.torch import load_file, save_file

import unskew
from unskew.data import custom_csv
from unskew.micro.weights import model_path
from unskew.runs.launch import launch, overview, plan
from unskew.runs.run import execute

OPTS = {"DATALOADER.NUM_WORKERS": 0, "DATASET.TEMPLATE": pictures.TEMPLATE, "OPTIM.MAX_EPOCH": 2}
TRAINERS = ("ZeroshotCLIP", "GLA")


def save(picture, path, place):
    picture.save(path.with_suffix(".bmp"))


def planted(kind, folder):
    """Write 120 digits of a kind; return the name of the dataset and its root."""
    root = pictures.write(folder / "images", save, {"split": ("train", "val", "test")}.get(kind, ("",)))
    if kind != "csv":
        return "folder", root
    rows = [f"{path.relative_to(folder)},{path.parts[-2]}" for path in sorted(root.rglob("*.bmp"))]
    (folder / "digits.csv").write_text("\n".join(["path,classname", *rows]))
    return "csv", folder / "digits.csv"


@pytest.fixture
def counted(monkeypatch):
    """Count the states of images, and the readings of folders of images and CSV files."""
    counts, stat, scan, rows = Counter(), os.stat, os.scandir, custom_csv._rows

    def counted_stat(path, **options):
        counts["states"] += str(path).endswith(".bmp")
        return stat(path, **options)

    def counted_scan(path="."):
        found = list(scan(path))
        counts["listed images"] += sum(entry.name.endswith(".bmp") for entry in found)
        return scan(path)

    monkeypatch.setattr(os, "stat", counted_stat)
    monkeypatch.setattr(os, "scandir", counted_scan)
    monkeypatch.setattr(custom_csv, "_rows", lambda file: (counts.update(["files"]), rows(file))[1])
    return counts


@pytest.mark.parametrize("kind", ["whole", "split", "csv"])
def test_a_sweep_lists_the_images_and_reads_their_states_once(kind, tmp_path, counted):
    name, root = planted(kind, tmp_path)
    sweep = {"backbones": ["micro"], "shots": [1, 2], "seeds": [1], "root": str(root), "opts": OPTS}
    counted.clear()
    once = {"states": 120, **({"files": 1} if kind == "csv" else {"listed images": 120})}
    unskew.sweep(name, TRAINERS, **sweep, output=tmp_path / "out")
    assert +counted == once
    counted.clear()
    unskew.sweep(name, TRAINERS, **sweep, output=tmp_path / "out")  # finished
    assert +counted == once
    counted.clear()
    overview(plan(name, TRAINERS, **sweep, output=tmp_path / "out"))
    assert +counted == once


def test_a_single_run_reads_the_states_once_in_all_epochs(tmp_path, counted):
    name, root = planted("split", tmp_path)
    counted.clear()
    opts = {**OPTS, "OPTIM.MAX_EPOCH": 3, "TEST.FINAL_MODEL": "best_val"}
    unskew.train(name, "GLA", backbone="micro", shots=2, root=str(root), output=tmp_path / "out", opts=opts)
    assert +counted == {"states": 120, "listed images": 120}


def test_the_last_run_of_a_sweep_has_the_bits_of_a_process_of_its_own(tmp_path):
    name, root = planted("split", tmp_path)
    sweep = {"backbones": ["micro"], "shots": [2], "seeds": [1, 2], "root": str(root), "opts": OPTS}
    run = unskew.sweep(name, TRAINERS, **sweep, output=tmp_path / "out")[-1]
    alone = replace(run, folder=str(tmp_path / "alone"))
    code = f"from unskew.runs.run import Run, execute; execute({alone!r}, console=False)"
    environment = {**os.environ, "UNSKEW_CACHE": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert run.predictions.keys() == alone.predictions.keys()
    assert all(torch.equal(values, alone.predictions[key]) for key, values in run.predictions.items())
    assert without_costs(run.metrics) == without_costs(alone.metrics)
    lines = [(r.path / "config.yaml").read_text().splitlines()[:2] for r in (run, alone)]
    assert lines[0] == lines[1]  # the fingerprint and the states of the images


def replace_image(path):
    """Write another picture of the same size into a file and restore its modification time."""
    times, size = os.stat(path), Image.open(path).size
    Image.fromarray(np.random.default_rng(0).integers(256, size=(*size[::-1], 3), dtype=np.uint8)).save(path)
    assert os.stat(path).st_size == times.st_size
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("change", ["replaced", "added", "removed"])
def test_the_next_call_in_a_process_notices_a_change(change, tmp_path):
    name, root = planted("split", tmp_path)
    (first, *_), before = sorted(root.glob("test/*/*.bmp")), {}

    def tested(folder):
        run = unskew.train(name, "ZeroshotCLIP", backbone="micro", root=str(root), folder=tmp_path / folder, opts=OPTS)
        return run.predictions["logits"]

    before = tested("1")
    if change == "replaced":
        replace_image(first)
    elif change == "added":
        first.with_name("zz.bmp").write_bytes(first.read_bytes())
    else:
        first.unlink()
    after = tested("2")
    assert len(after) - len(before) == {"replaced": 0, "added": 1, "removed": -1}[change]
    if change == "replaced":
        assert (after != before).any(1).sum() == 1


def test_a_change_during_a_sweep_is_noticed_by_the_next_sweep(tmp_path):
    """All runs of the sweep see the images of its beginning, so that they can be compared."""
    name, root = planted("split", tmp_path)
    images = sorted(root.glob("test/*/*.bmp"))
    sweep = {"backbones": ["micro"], "shots": [2], "seeds": [1, 2], "root": str(root), "opts": OPTS}
    runs = plan(name, ["ZeroshotCLIP"], **sweep, output=tmp_path / "out")
    outcomes = launch(runs)
    next(outcomes)
    os.utime(images[0], (1, 1))
    images[1].with_name("new.bmp").write_bytes(images[1].read_bytes())
    between = replace(runs[0], folder=str(tmp_path / "between"))  # the caller between two runs sees the new image
    assert len(execute(between, console=False)["per_class_accuracy"]) == 10
    assert len(between.predictions["labels"]) == 41
    assert not any(isinstance(outcome, Exception) for _, outcome in outcomes)
    assert torch.equal(runs[0].predictions["logits"], runs[1].predictions["logits"])
    for _, outcome in launch(runs):
        assert isinstance(outcome, ValueError) and "sizes and times" in str(outcome)


def test_weights_that_are_replaced_within_a_sweep_are_loaded_again(tmp_path):
    weights = tmp_path / "w.safetensors"
    content = load_file(model_path("micro"))
    save_file(content, weights)
    name, output = f"micro@{weights}", str(tmp_path / "out")
    outcomes = launch([unskew.Run("digits", "ZeroshotCLIP", name, 1, seed, output=output) for seed in (1, 2)])
    next(outcomes)
    save_file({key: 1.5 * value if "visual" in key else value for key, value in content.items()}, weights)
    changed = unskew.train("digits", "ZeroshotCLIP", backbone=name, shots=1, seed=2, folder=str(tmp_path / "changed"))
    assert next(outcomes)[1]["accuracy"] == changed.metrics["accuracy"]
