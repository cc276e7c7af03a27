"""Figures and tables as files, thumbnails of the user's images, and reports of many classes and many runs."""

import base64
import csv
import io
import json
import re
import tracemalloc
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from report_folders import CLASSES, make_run, make_sweep, write_history

from unskew.cli.main import main
from unskew.engine.run_dir import RunDir
from unskew.runs.report import files, gather, training, write_report
from unskew.runs.report.bias import bias_section
from unskew.runs.report.blocks import Cell, Table, number, word
from unskew.runs.report.calibration import confusion_section
from unskew.runs.run import Run


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_figures_are_pdf_and_svg_and_tables_latex_and_csv(tmp_path, capsys):
    make_sweep(tmp_path / "output", classnames=("50% off", "a_b", "$x$", "fox", "bee", "ant"))
    folders = ["--figures", str(tmp_path / "figures"), "--tables", str(tmp_path / "tables")]
    assert main(["report", str(tmp_path / "output"), "--out", str(tmp_path / "report.html"), *folders]) == 0
    assert "figures" in capsys.readouterr().out
    figures = sorted(path.name for path in (tmp_path / "figures").iterdir())
    stems = {"shots-pets-micro", "log-q-pets-micro", "thirds-pets-micro", "reliability-pets-micro"}
    assert {f"{stem}.{kind}" for stem in stems for kind in ("pdf", "svg")} <= set(figures)
    pdf = (tmp_path / "figures" / "shots-pets-micro.pdf").read_bytes()
    (width,) = re.findall(rb"/MediaBox \[ 0 0 ([\d.]+) ", pdf)
    assert pdf.startswith(b"%PDF") and 3.3 * 72 < float(width) < 3.6 * 72  # a column
    svg = (tmp_path / "figures" / "log-q-pets-micro.svg").read_text(encoding="utf-8")
    assert ">$x$<" in svg and "var(" not in svg and "currentColor" not in svg
    latex = (tmp_path / "tables" / "classes-pets-micro.tex").read_text(encoding="utf-8")
    assert r"50\% off &" in latex and r"a\_b &" in latex and r"\$x\$ &" in latex
    assert latex.count(r"\toprule") == latex.count(r"\midrule") == latex.count(r"\bottomrule") == 1
    head, *rows = rows_of(tmp_path / "tables" / "accuracy-pets-micro.csv")
    values = dict(zip(head, next(row for row in rows if row[0] == "GLA"), strict=True))
    assert float(values["16 shots (%)"]) > 80 and values["16 shots (%): best"] == "yes"
    assert values["16 shots (%): folder"] == str(tmp_path / "output" / "pets" / "GLA" / "micro_16shots")


def test_latex_marks_the_best_and_escapes_all_special_characters():
    name = "&%$#_{}~^\\<>"
    table = Table("t", ["name", "x (%)"], [[word(name), Cell("1.0 ± 0.1", 1.0, best=True)], [Cell(""), number(-2)]], "")
    body = files.latex(table).split("\\midrule\n")[1].splitlines()
    escaped = r"\&\%\$\#\_\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}\textless{}\textgreater{}"
    assert body[0] == escaped + r" & \textbf{1.0 $\pm$ 0.1} \\"
    assert body[1] == r" & $-$2.0 \\"


def test_the_training_curves_are_those_of_the_history(tmp_path):
    folder = make_run(tmp_path / "output", "CoOp")
    write_history(folder, epochs=3)
    (run,) = gather.collect([folder]).runs
    assert training.read_history(run) == {
        "loss": [(1, 2.0), (2, 1.0), (3, 2 / 3)],
        "accuracy": [(1, 51.0), (2, 52.0), (3, 53.0)],
        "lr": [(1, 0.1), (2, 0.05), (3, 0.1 / 3)],
        "val_score": [(1, 61.0), (3, 63.0)],
    }
    (folder / "history.csv").write_bytes(b"epoch,loss\nx,y\n\xff")
    assert training.read_history(run) == {}


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("history.csv", "epoch,loss,accuracy,lr\n1,inf,nan,0\n2,1e308,-1e308,1e300\n"),
        ("history.csv", f"epoch,loss\n1,1\n{10**400},2\n"),
        ("history.csv", "epoch,loss,lr\n1,3e37,1e-30\n2,-3e37,3e37\n"),
        ("prior.csv", "class,log_q,log_q_deviation,count\n" + "a,1e308,-5,-2\n" * 6),
        ("prior.csv", "class,log_q,log_q_deviation,count\n" + "a,-1,-5,-2\n" * 6),
    ],
)
def test_numbers_that_nobody_can_draw_are_left_out(file, text, tmp_path):
    folder = make_run(tmp_path / "output", "GLA")
    (folder / file).write_text(text)
    assert "1 run" in write_report([folder], tmp_path / "report.html")


def test_5000_classes_need_little_memory_and_a_small_page(tmp_path):
    names = [f"class number {label}" for label in range(5000)]
    for trainer in ("GLA", "ZeroshotCLIP"):
        make_run(tmp_path / "output", trainer, classnames=names, images=5000)
    places, _ = gather.arrange(gather.collect([tmp_path / "output"]).runs)
    tracemalloc.start()
    confusion_section(places)
    bias_section(places, images=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 5000**2 / 2  # less than half of a matrix of all classes
    write_report([tmp_path / "output"], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(text) < 400_000 and "5,000" in text
    shown = set(re.findall(r"<td>(class number \d+)<", text))
    assert 40 < len(shown) < 100


@pytest.mark.slow
def test_200_runs_make_a_page_below_5_mb(tmp_path):
    names = [f"class {label}" for label in range(40)]
    for place in range(20):
        make_sweep(tmp_path / "output", dataset=f"set{place}", seeds=(1,), shots=(1, 4, 16), classnames=names)
        make_run(tmp_path / "output", "GLA", seed=2, dataset=f"set{place}", classnames=names)
    assert len(gather.collect([tmp_path / "output"]).runs) == 200
    write_report([tmp_path / "output"], tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 5_000_000
    assert "10 more are not shown here" in (tmp_path / "report.html").read_text(encoding="utf-8")


# --- images -----------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path):
    """A finished GLA run on the user's images, a folder per class; the test images are as many as the labels."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 2), ("val", 1), ("test", 20)):
        for name in CLASSES:
            for number_ in range(count):
                path = tmp_path / "pets" / split / name / f"{number_:02}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(256, size=(90, 120, 3), dtype=np.uint8)).save(path)
    labels = np.repeat(np.arange(len(CLASSES)), 20)
    made = make_run(tmp_path / "output", classnames=sorted(CLASSES), labels=labels)
    done = (made / "done").read_bytes()
    run = Run("folder", "GLA", "micro", 2, 1, str(tmp_path / "pets"), folder=str(made))
    (made / "done").unlink()
    kept = {name: (made / name).read_bytes() for name in ("metrics.json", "predictions.safetensors", "prior.csv")}
    RunDir(made).prepare(run.config)
    for name, content in {**kept, "done": done}.items():
        (made / name).write_bytes(content)
    return tmp_path


def page_of(folder, *options):
    assert main(["report", str(folder / "output"), "--out", str(folder / "report.html"), *options]) == 0
    return (folder / "report.html").read_text(encoding="utf-8")


def test_thumbnails_are_small_pictures_of_the_classes_that_changed(photos):
    text = page_of(photos, "--images")
    uris = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)"', text)
    assert 5 <= len(uris) <= 40
    assert {Image.open(io.BytesIO(base64.b64decode(uri))).size for uri in uris} == {(72, 72)}
    assert "<img" not in page_of(photos)


@pytest.mark.parametrize("fault", ["moved", "more"])
def test_without_the_images_of_the_run_there_is_one_line(fault, photos):
    if fault == "moved":
        (photos / "pets").rename(photos / "elsewhere")
    else:
        (photos / "pets" / "test" / "owl" / "21.png").write_bytes((photos / "pets/test/owl/01.png").read_bytes())
    text = page_of(photos, "--images")
    assert "<img" not in text and text.count("No example images") == 1


def test_a_page_replaces_only_a_page(tmp_path, capsys):
    run = make_run(tmp_path / "output", "GLA")
    before = {path: path.read_bytes() for path in run.iterdir()}
    for path in before:
        assert main(["report", str(run), "--out", str(path)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and str(path) in error
    assert {path: path.read_bytes() for path in run.iterdir()} == before
    for _ in range(2):
        assert main(["report", str(run), "--out", str(tmp_path / "new" / "report.html")]) == 0


@pytest.mark.parametrize(
    "flags", [["--out", "file/r.html"], ["--out", ""], ["--figures", "file"], ["--tables", "file"]]
)
def test_a_place_that_cannot_be_written_is_one_line(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_run("output", "GLA")
    (tmp_path / "file").touch()
    assert main(["report", "output", *flags]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Errno" not in error and (flags[1].split("/")[0] or "--out") in error


def test_figures_of_names_with_control_characters_are_xml(tmp_path):
    names = ("\x00", "\x1b[31m", "\ud800", "\ufffe", "tab\there", "猫")
    run = make_run(tmp_path / "output", "GLA", classnames=[*CLASSES])
    row = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(
        json.dumps({**row, "classnames": names, "dataset": "d\ud800", "trainer": "GLA\x01"})
    )
    assert main(["report", str(run), "--out", str(tmp_path / "r.html"), "--figures", str(tmp_path / "figures")]) == 0
    texts = [ElementTree.parse(path).getroot().itertext() for path in (tmp_path / "figures").glob("*.svg")]
    shown = {text.strip() for found in texts for text in found}
    assert {"\\x00", "\\x1b[31m", "\\ud800", "\\ufffe", "tab here", "猫"} <= shown


def test_places_of_similar_names_have_files_of_their_own(tmp_path):
    for dataset, backbone in (("pets-micro", "a"), ("pets", "micro-a"), ("PETS", "micro-A"), ("pets", "micro/a")):
        run = make_run(tmp_path / "output" / backbone, "GLA", dataset=dataset)
        row = json.loads((run / "metrics.json").read_text())
        (run / "metrics.json").write_text(json.dumps({**row, "backbone": backbone}))
    line = write_report([tmp_path / "output"], tmp_path / "r.html", False, tmp_path / "figures", tmp_path / "tables")
    figures, tables = map(int, re.findall(r"(\d+) (?:figures|tables) in", line))
    for folder, count in (("figures", 2 * figures), ("tables", 2 * tables)):
        assert len({path.name.lower() for path in (tmp_path / folder).iterdir()}) == count
