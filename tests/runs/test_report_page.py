"""The page holds all sections, every number leads to its run folder, and foreign text stays text."""

import html
import re
import urllib.parse
from html.parser import HTMLParser

import numpy as np
import pytest
from report_folders import CLASSES, make_run, make_sweep, write_history
from safetensors.numpy import load_file, save_file

from unskew.cli.main import main
from unskew.runs import tables
from unskew.runs.report import gather, overview, write_report
from unskew.runs.tables import comparison, records

SECTIONS = ["Overview", "Accuracy against shots", "The bias", "Calibration", "Confusion", "Training", "Cost"]
HOSTILE = ("<script>alert(1)</script>", "$x^2$ & <b>", '" onload="alert(2)', "猫" * 40, "a" * 300, "\u202eevil\n\t")


class Page(HTMLParser):
    """The elements of a page: tags with their attributes, and the text of each section."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sections, self._inside = [], {}, ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "section":
            self._inside = dict(attributes)["id"]

    def handle_data(self, data):
        self.sections[self._inside] = self.sections.get(self._inside, "") + data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def write(tmp_path, **options):
    write_report([tmp_path / "output"], tmp_path / "page" / "report.html", **options)
    text = (tmp_path / "page" / "report.html").read_text(encoding="utf-8")
    return text, Page(text)


def test_all_sections_are_there_and_all_links_lead_to_folders(tmp_path):
    for folder in make_sweep(tmp_path / "output"):
        write_history(folder)
    text, page = write(tmp_path)
    assert re.findall(r"<h2>(.*?)</h2>", text) == SECTIONS
    assert [a["id"] for a in page.all("section")] == [a["href"][1:] for a in page.all("a")[:7]]
    links = [a["href"] for a in page.all("a") if not a["href"].startswith("#")]
    assert len(links) > 30
    assert all((tmp_path / "page" / urllib.parse.unquote(link)).is_dir() for link in links)
    runs = {(tmp_path / "page" / link).resolve() for link in links}
    assert {path.parent for path in (tmp_path / "output").rglob("done")} <= runs
    assert len(page.all("svg")) == 1 + 4 + 1 + 2 + 4  # shots; bias; reliability; matrices; training


def test_nothing_is_loaded_from_a_network_and_scripts_have_a_hash(tmp_path):
    make_sweep(tmp_path / "output")
    text, page = write(tmp_path)
    sources = [value for _, attributes in page.tags for name, value in attributes.items()
               if name in ("src", "href", "xlink:href", "action", "data", "srcset")]  # fmt: skip
    assert all(re.match(r"(#|data:|\.\./output/)", source) for source in sources)
    assert not re.search(r"url\((?!#)|@import", text)
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy and re.search(r"script-src 'sha256-\S{44}'", policy)


def test_foreign_names_stay_text(tmp_path):
    for trainer in ("GLA", "CoOp"):
        make_run(tmp_path / "output", trainer, classnames=HOSTILE, dataset="<i>pets</i>".replace("/", "_"))
    text, page = write(tmp_path)
    assert len(page.all("script")) == 1 and not page.all("b") and not page.all("i")
    assert not any("onload" in attributes for _, attributes in page.tags)
    assert html.escape(HOSTILE[0]) in text and "猫" * 40 in page.sections["the-bias"]


def test_numbers_and_colours_in_texts_of_figures_are_kept(tmp_path):
    names = ("1.23456", "#010203", "#0a0b00", 'id="x"', "<g id=y>", "ant")
    write_history(make_run(tmp_path / "output", classnames=names))
    text, _ = write(tmp_path)
    shown = {html.unescape(found) for found in re.findall(r"<text[^>]*>([^<]*)</text>", text)}
    assert set(names) <= shown
    assert {"0.1", "0.01", "0.001", "0.0001"} <= shown  # of the learning rate


def arranged(tmp_path):
    return gather.arrange(gather.collect([tmp_path / "output"]).runs)


def correctness(tmp_path, trainer, shots=16, dataset="pets"):
    folders = sorted((tmp_path / "output" / dataset / trainer / f"micro_{shots}shots").iterdir())
    return np.stack([comparison.correctness(folder) for folder in folders])


def cells_of(table, trainer):
    (row,) = [row for row in table.rows if row[0].text == trainer]
    return row


def test_the_marks_are_those_of_the_test_and_the_interval_is_that_of_the_table(tmp_path):
    make_sweep(tmp_path / "output", images=240)
    (place,), averages = arranged(tmp_path)
    assert averages == []
    table = overview.overview_section([place], []).blocks[1]
    gla, coop, zero = (correctness(tmp_path, name) for name in ("GLA", "CoOp", "ZeroshotCLIP"))
    p_values = [comparison.compare(gla, other, np.random.default_rng(0)).p_value for other in (coop, zero)]
    assert max(comparison.holm(p_values)) < 0.01
    assert [cells_of(table, name)[2].best for name in ("GLA", "CoOp", "ZeroshotCLIP")] == [True, False, False]
    (record,) = [
        r for r in records.records(tables.collect(tmp_path / "output")) if (r["trainer"], r["shots"]) == ("GLA", 16)
    ]
    cell = cells_of(table, "GLA")[2]
    assert cell.value == record["mean"] == pytest.approx(100 * gla.mean())
    assert cell.note == f"[{record['low']:.1f}, {record['high']:.1f}], 2 seeds"
    assert cell.folder == tmp_path / "output" / "pets" / "GLA" / "micro_16shots"


def test_averages_are_those_of_the_table_and_their_marks_are_tested(tmp_path):
    make_sweep(tmp_path / "output", seeds=(1,))
    for trainer, quality in (("GLA", 2.0), ("CoOp", 1.0), ("ZeroshotCLIP", 1.99)):
        make_run(tmp_path / "output", trainer, dataset="birds", quality=quality)
    make_run(tmp_path / "output", "TaskRes", quality=2.9)
    make_run(tmp_path / "output", "TaskRes", dataset="birds", quality=2.0)
    places, (average,) = arranged(tmp_path)
    table = overview.overview_section(places, [average]).blocks[-1]
    assert table.columns == ["trainer", "16 shots (%)"]
    found = {r["trainer"]: r for r in records.records(tables.collect(tmp_path / "output")) if r["dataset"] == "average"}
    best = max(found, key=lambda name: found[name]["mean"])
    compared = summary_of(tmp_path, best)
    expected = {name for name in found if name == best or compared[name] >= 0.05}
    assert {row[0].text for row in table.rows if row[1].best} == expected
    assert {best} < expected < set(found)
    for row in table.rows:
        record = found[row[0].text]
        assert row[1].value == record["mean"] and row[1].note == f"[{record['low']:.1f}, {record['high']:.1f}], 1 seed"


def summary_of(tmp_path, trainer):
    rows = records.records(tables.collect(tmp_path / "output"), compare=trainer)
    return {row["trainer"]: row["adjusted_p"] for row in rows if row["dataset"] == "average"}


def test_datasets_without_common_shots_have_no_average(tmp_path):
    make_run(tmp_path / "output", dataset="pets", shots=1)
    make_run(tmp_path / "output", dataset="cars", shots=4)
    places, averages = arranged(tmp_path)
    headings = [block.text for block in overview.overview_section(places, averages).blocks if hasattr(block, "text")]
    assert averages == [] and not any("Average" in text for text in headings)


def test_an_average_names_the_datasets_that_it_leaves_out(tmp_path):
    make_sweep(tmp_path / "output", seeds=(1,))
    make_run(tmp_path / "output", "GLA", dataset="birds")
    _, page = write(tmp_path)
    assert "birds (no CoOp, ZeroshotCLIP)" in page.sections["overview"]


def test_long_tailed_runs_are_not_averaged_with_those_on_all_images(tmp_path):
    for name, longtail in (("all", False), ("tail", True)):
        folder = make_run(tmp_path / "output" / name, shots=-1)
        row = tables.read_metrics(folder / "metrics.json")
        tables.write_metrics(folder / "metrics.json", {**row, "longtail": longtail})
    places, _ = arranged(tmp_path)
    assert [(place.longtail, len(place.runs)) for place in places] == [(False, 1), (True, 1)]
    assert len({place.stem for place in places}) == 2
    assert [r["seeds"] for r in records.records(tables.collect(tmp_path / "output"))] == [1, 1]


def test_runs_on_other_test_images_are_not_compared(tmp_path):
    make_run(tmp_path / "output", "GLA", images=120)
    make_run(tmp_path / "output", "CoOp", images=60, quality=0.2)
    _, page = write(tmp_path)
    assert "CoOp, 16 shots: not tested" in page.sections["overview"]


def test_older_folders_say_what_they_lack(tmp_path):
    folder = make_run(tmp_path / "output", "GLA")
    (folder / "prior.csv").write_text("class,q,log_q,deviation\n" + "".join(f"{c},0.1,-2,0.5\n" for c in CLASSES))
    _, page = write(tmp_path)
    assert "history.csv" in page.sections["training"]
    assert "peak memory" in page.sections["cost"] and "images encoded" in page.sections["cost"]
    assert "0.50" in page.sections["the-bias"]  # the deviation in its older column
    (folder / "prior.csv").unlink()
    _, page = write(tmp_path)
    assert "gain over zero-shot" in page.sections["the-bias"]  # log q of the predictions


def test_a_run_without_predictions_or_prior_has_its_numbers(tmp_path):
    folder = make_run(tmp_path / "output", "CoOp")
    (folder / "predictions.safetensors").unlink()
    (folder / "done").write_text("0123456789abcdef\nmetrics.json\n")
    _, page = write(tmp_path)
    assert "train GLA" in page.sections["the-bias"] and "no predictions" in page.sections["confusion"]
    assert "1 seed" in page.sections["overview"]


def test_damaged_predictions_are_left_out_with_a_warning(tmp_path, warned):
    folder = make_run(tmp_path / "output", "GLA")
    held = load_file(folder / "predictions.safetensors")
    save_file({**held, "labels": held["labels"] + 99}, folder / "predictions.safetensors")
    write(tmp_path)
    messages = warned()
    assert messages and all(str(folder) in message for message in messages)


def test_the_same_runs_give_the_same_bytes_and_overlapping_folders_count_once(tmp_path):
    make_sweep(tmp_path / "output", seeds=(1,))
    first, _ = write(tmp_path)
    write_report([tmp_path / "output", tmp_path / "output" / "pets" / "GLA"], tmp_path / "page" / "report.html")
    assert (tmp_path / "page" / "report.html").read_text(encoding="utf-8") == first


def test_relative_and_absolute_folders_mix(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run("output", "GLA")
    folders = ["output", make_run(tmp_path / "more", "CoOp")]
    places, _ = gather.arrange(gather.collect(folders).runs)
    assert [place.folder for place in places] == [tmp_path]
    assert "2 runs" in write_report(folders, "report.html")


def test_one_run_is_a_report(tmp_path, capsys):
    folder = make_run(tmp_path / "output", "GLA")
    assert main(["report", str(folder), "--out", str(tmp_path / "one.html")]) == 0
    assert "1 run" in capsys.readouterr().out and (tmp_path / "one.html").is_file()


@pytest.mark.parametrize("made", [True, False])
def test_a_folder_without_runs_is_one_line(made, tmp_path, capsys):
    if made:
        (tmp_path / "output").mkdir()
    assert main(["report", str(tmp_path / "output"), "--out", str(tmp_path / "report.html")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(tmp_path / "output") in error
    assert not (tmp_path / "report.html").exists()


def test_runs_that_differ_in_hidden_keys_are_named(tmp_path):
    first, second = (make_run(tmp_path / "output" / name) for name in ("a", "b"))
    _, page = write(tmp_path)
    assert f"'{first}' and '{second}' are both GLA, 16 shots, seed 1" in page.sections["overview"]


@pytest.mark.parametrize("before", [0, 1, 2])
def test_folders_may_be_before_and_behind_flags(before, tmp_path, capsys):
    folders = [str(make_run(tmp_path / "output", trainer)) for trainer in ("GLA", "CoOp")]
    flags = ["--images", "--out", str(tmp_path / "two.html")]
    assert main(["report", *folders[:before], *flags, *folders[before:]]) == 0
    assert "2 runs" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["report", *flags, "--wrong"])
