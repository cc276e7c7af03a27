import json
import statistics

import pytest

from unskew import report


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
    lines = report.table(ROWS).splitlines()
    assert lines[0] == "accuracy (%) on d, b, seeds 1 2"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert cells[0] == ["", "1 shot", "16 shots"]
    assert cells[2] == ["Z", "50.0 ± 0.0", ""]
    assert cells[3] == ["G", f"62.5 ± {statistics.stdev([62, 63]):.1f}", "77.5 ± 0.7"]


def test_one_table_for_each_dataset():
    assert report.table([*ROWS, {**ROWS[0], "dataset": "other"}]).count("accuracy (%) on") == 2


def test_unknown_metric_lists_what_there_is():
    with pytest.raises(ValueError, match="accuracy"):
        report.table(ROWS, "accurracy")


def test_collect_takes_finished_runs_only(tmp_path):
    for name, finished in (("a", True), ("b", False)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps(ROWS[0]))
        if finished:
            (tmp_path / name / "done").write_text("x")
    assert report.collect(tmp_path) == [ROWS[0]]
    (tmp_path / "a" / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match=r"metrics\.json"):
        report.collect(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        report.collect(tmp_path / "nowhere")
    assert report.table([]) == "no finished runs"
