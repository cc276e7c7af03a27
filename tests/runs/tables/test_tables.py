import json
import os
import re
import statistics

import pytest

from unskew.cli.main import main
from unskew.runs import tables
from unskew.runs.run import Run
from unskew.runs.tables import text_tables


def row(trainer, shots, seed, accuracy, **more):
    return {
        "dataset": "d",
        "backbone": "b",
        "trainer": trainer,
        "shots": shots,
        "seed": seed,
        "accuracy": accuracy,
    } | more


ROWS = [row("Z", 1, s, 50.0) for s in (1, 2)] + [row("G", k, s, 60.0 + k + s) for k in (1, 16) for s in (1, 2)]


def test_table_has_trainers_by_shots_with_mean_and_deviation():
    lines = text_tables.table(ROWS).splitlines()
    assert lines[0] == "accuracy (%) on d, b, seeds 1 2"
    head, _, *body = cells(lines[2:])
    assert head == ["", "1 shot", "16 shots"]
    assert body == [["Z", "50.0 ± 0.0", ""], ["G", f"62.5 ± {statistics.stdev([62, 63]):.1f}", "77.5 ± 0.7"]]


def test_one_table_for_each_dataset():
    assert text_tables.table([*ROWS, {**ROWS[0], "dataset": "other"}]).count("accuracy (%) on") == 2


def cells(lines):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_columns_are_metrics_with_a_table_for_each_number_of_shots():
    rows = [row(name, k, s, 50.0 + s, p_few=40.0 + k, per_class_accuracy=[1.0, None]) for name, k, s in
            (("Z", -1, 1), ("Z", 1, 1), ("Z", 1, 2))]  # fmt: skip
    rows.append(row("G", 1, 1, 70.0, zs_accuracy=60.0))
    one, whole = text_tables.table(rows, columns=["accuracy", "p_few", "zs_accuracy"]).split("\n\nd, b")
    lines = one.splitlines()
    assert lines[0] == "d, b, 1 shot, seeds 1 2 (%)"
    assert cells(lines[2:]) == [
        ["", "accuracy", "p few", "zs"],
        cells(lines[3:4])[0],
        ["Z", "51.5 ± 0.7 (n=2)", "41.0 ± 0.0 (n=2)", ""],
        ["G", "70.0 (n=1)", "", "60.0 (n=1)"],
    ]
    lines = whole.splitlines()
    assert lines[0] == ", all images, seed 1 (%)"
    assert cells(lines[4:]) == [["Z", "51.0", "39.0", ""]]  # no line for G, which has no such run


def test_all_images_of_a_long_tailed_set_are_called_so():
    rows = [row("Z", k, 1, 50.0, longtail=True, d_few=40.0) for k in (-1, 16)]
    assert cells(text_tables.table(rows).splitlines()[2:3]) == [["", "16 shots", "long-tailed"]]
    assert "d, b, long-tailed, seed 1 (%)" in text_tables.table(rows, columns=["accuracy", "d_few"])
    with pytest.raises(ValueError, match=r"accuracy, d_few$"):
        text_tables.table(rows, "longtail")


def test_together_the_backbones_share_a_table():
    rows = [row("Z", 1, s, 50.0 + s, backbone=b) for b in ("b", "c") for s in (1, 2)]
    lines = text_tables.table(rows, columns=["accuracy"], together=True).splitlines()
    assert lines[0] == "d, 1 shot, seeds 1 2 (%)"
    assert cells(lines[2:])[0] == ["", "backbone", "accuracy"]
    assert cells(lines[4:]) == [["Z", "b", "51.5 ± 0.7"], ["Z", "c", "51.5 ± 0.7"]]


def test_the_time_is_no_percentage():
    rows = [row("Z", 1, 1, 50.0, seconds=2.0)]
    assert text_tables.table(rows, "seconds").startswith("seconds on d, b")
    assert "%" not in text_tables.table(rows, columns=["seconds"])


def test_trainers_that_used_the_unlabelled_test_images_are_marked():
    rows = [row("Z", 1, 1, 50.0), *(row("G", 1, s, 60.0, transductive=True) for s in (1, 2))]
    for text in (text_tables.table(rows), text_tables.table(rows, columns=["accuracy"], together=True)):
        grid, note = text.rsplit("\n\n", 1)
        assert [line[0] for line in cells(grid.splitlines()[4:])] == ["Z", "G *"]
        assert note.startswith("* ") and "\n" not in note
    assert "*" not in text_tables.table(rows[:1])
    with pytest.raises(ValueError, match=r"accuracy$"):
        text_tables.table(rows, "transductive")


@pytest.mark.parametrize("unknown", ["p_feww", "per_class_accuracy", "trainer", "shots"])
def test_unknown_column_lists_the_numbers(unknown):
    rows = [row("Z", 1, 1, 50.0, p_few=40.0, per_class_accuracy=[1.0])]
    with pytest.raises(ValueError, match=f"'{unknown}'.* accuracy, p_few$"):
        text_tables.table(rows, columns=["accuracy", unknown])


def test_the_table_command_shows_columns(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    tables.write_metrics(tmp_path / "run" / "metrics.json", row("Z", 16, 1, 50.0, macro_f1=48.0))
    (tmp_path / "run" / "done").write_text("0123456789abcdef\n")
    assert main(["table", str(tmp_path), "--columns", "accuracy", "macro_f1"]) == 0
    assert cells(capsys.readouterr().out.splitlines()[-1:]) == [["Z", "50.0", "48.0"]]
    assert main(["table", str(tmp_path), "--columns", "accuracy", "p_few"]) == 2
    assert "p_few" in capsys.readouterr().err


def test_metrics_are_written_a_line_for_each_key(tmp_path):
    metrics = row("Z", 1, 1, 1 / 3, per_class_accuracy=[100 / 3, None], name='a "b"')
    tables.write_metrics(tmp_path / "metrics.json", metrics)
    assert tables.read_metrics(tmp_path / "metrics.json") == metrics
    assert len((tmp_path / "metrics.json").read_text().splitlines()) == len(metrics) + 2


def test_unknown_metric_lists_what_there_is():
    with pytest.raises(ValueError, match="accuracy"):
        text_tables.table(ROWS, "accurracy")


def test_collect_takes_finished_runs_only(tmp_path):
    for name, finished in (("a", True), ("b", False)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps(ROWS[0]))
        if finished:
            (tmp_path / name / "done").write_text("0123456789abcdef\n")
    assert tables.collect(tmp_path) == [{**ROWS[0], "folder": str(tmp_path / "a")}]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        tables.collect(tmp_path / "nowhere")
    assert text_tables.table([]) == "no finished runs"


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        (b"{", "JSON"),
        (b"\xff", "JSON"),
        (b"[" * 100_000, "JSON"),
        (b"[1]", "metrics by name"),
        (b'{"accuracy": 50.0}', "dataset is None"),
        (json.dumps({**ROWS[0], "shots": "1"}).encode(), "shots is '1'"),
        (json.dumps({**ROWS[0], "dataset": 3}).encode(), "dataset is 3"),
        (json.dumps({**ROWS[0], "accuracy": None}).encode(), "accuracy is None"),
        (json.dumps({**ROWS[0], "accuracy": "high"}).encode(), "accuracy is 'high'"),
    ],
)
def test_damaged_metrics_are_one_line_with_their_file(text, fact, tmp_path):
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "metrics.json"
    path.write_bytes(text)
    (tmp_path / "run" / "done").write_text("0123456789abcdef\n")
    for read in (lambda: tables.read_metrics(path), lambda: load_metrics(path)):
        with pytest.raises(ValueError, match=re.escape(f"'{path}'")) as error:
            read()
        assert fact in str(error.value) and f"delete the folder '{path.parent}'" in str(error.value)


def load_metrics(path):
    return Run("digits", "CoOp", folder=str(path.parent)).metrics


def test_a_metric_that_is_no_number_in_one_row_names_its_folder(warned):
    table = text_tables.table([row("Z", 1, 1, 50.0, ece=1.0), row("Z", 1, 2, 50.0, ece="low", folder="there")], "ece")
    assert cells(table.splitlines()[-1:]) == [["Z", "1.0"]]
    assert len(warned()) == 1 and "'there'" in warned()[0]


BAD_METRICS = {
    "no JSON": b"{",
    "deep": b"[" * 100_000,
    "a list": b"[1]",
    "no dataset": json.dumps({key: value for key, value in ROWS[0].items() if key != "dataset"}).encode(),
    "a list as trainer": json.dumps({**ROWS[0], "trainer": ["a"]}).encode(),
    "true as shots": json.dumps({**ROWS[0], "shots": True}).encode(),
    "text as accuracy": json.dumps({**ROWS[0], "accuracy": "high"}).encode(),
    "a number of 400 digits": json.dumps({**ROWS[0], "accuracy": 10**400}).encode(),
    "a seed of 400 digits": json.dumps({**ROWS[0], "seed": 10**400}).encode(),
    "empty": b"",
}


@pytest.mark.parametrize("damage", [*BAD_METRICS, "a pipe", "no rights"])
def test_a_bad_run_folder_does_not_hide_the_others(damage, tmp_path, capsys, warned):
    for name in ("bad", "good"):
        (tmp_path / name).mkdir()
        tables.write_metrics(tmp_path / name / "metrics.json", row("Z", 16, 1, 50.0))
        (tmp_path / name / "done").write_text("0123456789abcdef\n")
    path = tmp_path / "bad" / "metrics.json"
    if damage == "no rights":
        path.chmod(0)
        if os.access(path, os.R_OK):
            pytest.skip("root reads all files")
    elif damage == "a pipe":
        path.unlink()
        os.mkfifo(path)
    else:
        path.write_bytes(BAD_METRICS[damage])
    assert main(["table", str(tmp_path)]) == 0
    assert cells(capsys.readouterr().out.splitlines()[-1:]) == [["Z", "50.0"]]
    assert len(warned()) == 1 and f"'{tmp_path / 'bad'}'" in warned()[0]
    assert [item["folder"] for item in tables.collect(tmp_path)] == [str(tmp_path / "good")]


def test_a_finished_run_without_metrics_is_reported(tmp_path, caplog):
    for name in ("run", "run/members/micro"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "done").write_text("0123456789abcdef\n")
    (tmp_path / "run" / "log.txt").write_text("")
    assert tables.collect(tmp_path) == []
    assert caplog.text.count("metrics.json") == 1


def test_runs_that_no_row_tells_apart_are_said(caplog):
    text_tables.table([*ROWS, {**ROWS[0], "accuracy": 10.0, "folder": "elsewhere"}])
    assert "'elsewhere' are both Z, 1 shot, seed 1" in caplog.text
    caplog.clear()
    text_tables.table(ROWS)
    assert not caplog.text


def test_titles_in_latex_are_one_comment_line():
    text = text_tables.table([{**row, "dataset": "a\nb"} for row in ROWS], style="latex")
    assert all(line.startswith("%") for line in text.split("\\begin")[0].splitlines() if line)
