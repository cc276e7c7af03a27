"""The command `unskew predict`."""

import csv
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from building import SHORT
from PIL import Image

from unskew.cli.main import main
from unskew.cli.predict import find_images
from unskew.data.dataset import build_dataset
from unskew.engine.run_dir import RunDir
from unskew.runs.run import Run, execute


@pytest.fixture(scope="module")
def run(data_root, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("run"))
    opts = (*SHORT, "OPTIM.MAX_EPOCH", 1)
    run = Run("digits", "GLA", shots=2, seed=1, root=data_root, folder=folder, opts=opts)
    execute(run, console=False)
    return run


@pytest.fixture(scope="module")
def paths(run):
    return [item.impath for item in build_dataset(run.config).test][:6]


def predict(capsys, *argv):
    """(exit code, output, errors) of the command."""
    code = main(["predict", *map(str, argv)])
    out, err = capsys.readouterr()
    return code, out, err


def test_csv_has_the_most_probable_classes_of_each_image(run, paths, capsys):
    code, out, err = predict(capsys, run.path, *paths, "--format", "csv", "--top", 3)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0 and not err and [row["image"] for row in rows] == [path for path in paths for _ in range(3)]
    proba = run.predictions["logits"][: len(paths)].softmax(1)
    values, order = proba.topk(3)
    names = run.metrics["classnames"]
    assert [row["class"] for row in rows] == [names[label] for label in order.flatten().tolist()]
    np.testing.assert_allclose([float(row["probability"]) for row in rows], values.flatten(), rtol=1e-4)
    assert [row["rank"] for row in rows] == ["1", "2", "3"] * len(paths)


def test_json_explains_the_score_by_its_parts(run, paths, capsys):
    code, out, _ = predict(capsys, run.path, *paths, "--format", "json", "--explain", "--top", 99)
    found, saved = json.loads(out), run.predictions
    assert code == 0 and [entry["image"] for entry in found] == paths
    names = run.metrics["classnames"]
    for number, entry in enumerate(found):
        assert len(entry["classes"]) == 10
        for row in entry["classes"]:
            label = names.index(row["class"])
            expected = {
                "zero_shot": saved["zs"],
                "fine_tuned": saved["ft"],
                "log_q": saved["zs"] - saved["debiased"],
                "score": saved["gla"],
            }
            assert row.keys() == {"class", "probability", *expected}
            for key, values in expected.items():
                assert row[key] == pytest.approx(float(values[number, label]), abs=1e-4)
        scores = torch.tensor([row["score"] for row in entry["classes"]])
        assert [row["probability"] for row in entry["classes"]] == pytest.approx(scores.softmax(0).tolist(), abs=1e-5)


def test_the_table_shows_names_and_percent(run, paths, capsys):
    code, out, _ = predict(capsys, run.path, paths[0], "--top", 2)
    lines = out.splitlines()
    best = run.metrics["classnames"][int(run.predictions["logits"][0].argmax())]
    assert code == 0 and len(lines) == 3 and lines[1].startswith(paths[0]) and best in lines[1] and "%" in lines[1]
    assert len({len(line) for line in lines}) == 1
    _, out, _ = predict(capsys, run.path, paths[0], "--explain", "--top", 1)
    assert "log q" in out.splitlines()[0]


# --- finding images ---------------------------------------------------------------------------------


def test_folders_standard_input_and_doubled_paths(run, paths, tmp_path, capsys, monkeypatch):
    for name in ("b/2.png", "b/deep/1.PNG", "A.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.open(paths[0]).save(tmp_path / name)
    for name in ("b/notes.txt", "b/._2.png"):
        (tmp_path / name).write_text("no image")
    (tmp_path / "b" / "@eaDir").mkdir()
    Image.open(paths[0]).save(tmp_path / "b" / "@eaDir" / "small.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("b/2.png\n\nA.png\r\n"))
    argv = ["A.png", "--format", "csv", "b/../A.png", "b", "--top", 1, "-"]
    code, out, err = predict(capsys, run.path, *argv)
    images = [row["image"] for row in csv.DictReader(io.StringIO(out))]
    assert (code, err) == (0, "") and images == ["A.png", "b/2.png", "b/deep/1.PNG"]


@pytest.mark.parametrize("stdin", [io.StringIO("\n"), None])  # None: a closed one
def test_standard_input_without_paths(stdin, run, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", stdin)
    code, out, err = predict(capsys, run.path, "-")
    assert code == 2 and not out and len(err.splitlines()) == 1


def test_a_folder_that_cannot_be_read_is_a_line(tmp_path, paths, monkeypatch):
    for name in ("open", "closed"):
        (tmp_path / name).mkdir()
        Image.open(paths[0]).save(tmp_path / name / "1.png")
    scan = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found, problems = find_images([str(tmp_path)])
    assert found == [str(tmp_path / "open" / "1.png")]
    assert len(problems) == 1 and "closed" in problems[0]


# --- images that cannot be read ---------------------------------------------------------------------


@pytest.mark.parametrize("trainer", ["GLA", "FineTune"])
def test_unreadable_images_do_not_stop_the_others(trainer, run, paths, data_root, tmp_path, capsys):
    if trainer != "GLA":
        opts = (*SHORT, "OPTIM.MAX_EPOCH", 1)
        run = Run("digits", trainer, shots=1, seed=1, root=data_root, folder=str(tmp_path / "run"), opts=opts)
        execute(run, console=False)
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "nothing here").mkdir()
    Image.new("P", (40, 30)).save(tmp_path / "moving.gif", save_all=True, append_images=[Image.new("P", (40, 30), 1)])
    Image.fromarray(np.full((30, 40), 40_000, np.uint16)).save(tmp_path / "deep.png")
    good = [paths[0], tmp_path / "moving.gif", tmp_path / "deep.png", paths[1]]
    bad = [tmp_path / "empty.png", "missing.png", tmp_path / "text.jpg", tmp_path / "nothing here"]
    mixed = [image for pair in zip(good, bad, strict=True) for image in pair]
    code, out, err = predict(capsys, run.path, *mixed, "--format", "csv", "--top", 1)
    assert code == 1
    assert [row["image"] for row in csv.DictReader(io.StringIO(out))] == list(map(str, good))
    lines = err.splitlines()
    assert len(lines) == len(bad) and all(any(str(path) in line for line in lines) for path in bad)
    assert "saved_run" not in err


def test_no_readable_image_at_all(run, tmp_path, capsys):
    (tmp_path / "empty.png").write_bytes(b"")
    code, out, err = predict(capsys, run.path, tmp_path / "empty.png", "--format", "json")
    assert code == 1 and json.loads(out) == [] and len(err.splitlines()) == 1


def test_a_name_that_would_act_on_the_terminal_is_escaped(run, paths, tmp_path, capsys):
    path = tmp_path / "a\x1b[31m\n.png"
    Image.open(paths[0]).save(path)
    code, out, _ = predict(capsys, run.path, path, "--top", 1)
    assert code == 0 and "\x1b" not in out and len(out.splitlines()) == 2
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    Image.open(paths[0]).save(odd)
    for style in ("table", "csv", "json"):
        code, out, _ = predict(capsys, run.path, odd, "--top", 1, "--format", style)
        assert code == 0 and out.encode()


@pytest.mark.parametrize("style", ["table", "csv"])
def test_a_name_that_the_encoding_of_the_output_lacks_is_escaped(style, run, paths, tmp_path, monkeypatch):
    Image.open(paths[0]).save(tmp_path / "日.png")
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", stream)
    assert main(["predict", str(run.path), str(tmp_path / "日.png"), "--format", style]) == 0
    assert rb"\u65e5.png" in stream.buffer.getvalue()


# --- wrong commands ---------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [["--top", "0"], ["--top", "x"], ["--format", "xml"], ["--nothing"]])
def test_a_wrong_flag_is_one_line(argv, run, paths, capsys):
    with pytest.raises(SystemExit) as exit_:
        predict(capsys, run.path, paths[0], *argv)
    assert exit_.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1


def test_a_folder_without_a_finished_run(tmp_path, paths, capsys):
    code, out, err = predict(capsys, tmp_path, paths[0])
    assert code == 2 and not out and str(tmp_path) in err and len(err.splitlines()) == 1


def test_the_reader_of_the_output_may_end_first(run, paths, tmp_path):
    command = [sys.executable, "-m", "unskew", "predict", str(run.path), *paths]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(60) == 141
    process.stderr.close()


def test_nothing_is_written_into_the_runs_folder(run, paths, capsys):
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    assert predict(capsys, run.path, *paths)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before
    assert RunDir(run.path).is_finished
