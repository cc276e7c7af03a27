"""Class names in label order are in ``metrics.json``; tables and data frames leave lists alone."""

import json
import time

import torch
from safetensors.torch import load_file

from unskew.cli.main import main
from unskew.data.dataset import build_dataset
from unskew.runs import tables
from unskew.runs.run import Run, execute
from unskew.runs.tables import text_tables


def test_a_runs_metrics_hold_the_names_of_its_labels(data_root, tmp_path):
    run = Run("digits", "ZeroshotCLIP", shots=1, seed=1, root=data_root, output=str(tmp_path))
    names = execute(run, console=False)["classnames"]
    assert names == build_dataset(run.config).classnames and names[:3] == ["zero", "one", "two"]
    assert json.loads((run.path / "metrics.json").read_text())["classnames"] == names
    labels = load_file(run.path / "predictions.safetensors")["labels"]
    for item, label in zip(build_dataset(run.config).test, labels, strict=True):
        assert names[label] == item.classname
    assert len(torch.unique(labels)) == len(names)
    untested = Run("digits", "ZeroshotCLIP", shots=1, root=data_root, output=str(tmp_path), opts=("TEST.NO_TEST", True))
    (run.path / "done").unlink()
    assert execute(untested, console=False)["classnames"] == names


def write(folder, dataset, **more):
    row = {"dataset": dataset, "trainer": "CoOp", "backbone": "micro", "shots": 1, "seed": 1, "accuracy": 50.0, **more}
    folder.mkdir(parents=True)
    tables.write_metrics(folder / "metrics.json", row)
    (folder / "predictions.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    (folder / "done").write_text("0123456789abcdef\n")


def test_lists_of_21000_classes_are_no_burden(tmp_path):
    names, scores = [f"a rather long class name {n}" for n in range(21_000)], [99.123456789] * 21_000
    for seed in range(20):
        write(tmp_path / str(seed), "inat", classnames=names, per_class_accuracy=scores)
    started = time.process_time()
    assert "50.0" in text_tables.table(tables.collect(tmp_path))
    assert time.process_time() - started < 5
    assert tables.results(tmp_path)["classnames"][19] == names
    assert (tmp_path / "0" / "metrics.json").stat().st_size < 2**20


def test_a_table_of_some_datasets(tmp_path, capsys):
    for name in ("digits", "shapes", "folder-Birds"):
        write(tmp_path / name, name)
    assert main(["table", str(tmp_path), "-d", "digits,folder-birds"]) == 0
    out = capsys.readouterr().out
    assert "digits" in out and "folder-Birds" in out and "shapes" not in out
    assert main(["table", "-d", "digit", str(tmp_path)]) == 2
    assert "did you mean digits" in capsys.readouterr().err
    assert main(["table", str(tmp_path)]) == 0
    assert "shapes" in capsys.readouterr().out
