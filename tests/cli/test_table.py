"""`unskew table` on real runs: intervals, differences and the formats for other programs."""

import csv
import io
import json

import pandas as pd
import pytest
from building import SHORT

import unskew
from unskew.cli.main import main


@pytest.fixture(scope="module")
def output(data_root, tmp_path_factory):
    """Runs of two trainers with two seeds."""
    folder = tmp_path_factory.mktemp("table")
    opts = dict(zip(SHORT[::2], SHORT[1::2], strict=True))
    for trainer in ("ZeroshotCLIP", "TaskRes"):
        unskew.sweep("digits", [trainer], shots=[2], seeds=[1, 2], root=data_root, output=str(folder), opts=opts)
    return str(folder)


def lines(capsys, *argv):
    assert main(["table", *argv]) == 0
    return capsys.readouterr().out.splitlines()


def test_json_csv_and_the_data_frame_have_the_same_records(output, capsys):
    argv = (output, "--columns", "accuracy", "ece", "--format")
    found = json.loads("\n".join(lines(capsys, *argv, "json")))
    assert [(row["trainer"], row["metric"], row["seeds"]) for row in found] == [
        (trainer, metric, 2) for trainer in ("TaskRes", "ZeroshotCLIP") for metric in ("accuracy", "ece")
    ]
    frame = unskew.results(output)
    means = frame.groupby("trainer")[["accuracy", "ece"]].mean()
    assert all(row["mean"] == pytest.approx(means.loc[row["trainer"], row["metric"]]) for row in found)
    rows = list(csv.DictReader(io.StringIO("\n".join(lines(capsys, *argv, "csv")))))
    assert rows == [{key: "" if value is None else str(value) for key, value in row.items()} for row in found]
    pd.testing.assert_frame_equal(unskew.summarize(output, ["accuracy", "ece"]), pd.DataFrame(found))


def test_intervals_and_differences_of_real_runs(output, capsys):
    plain = lines(capsys, output)
    assert "±" in plain[-1] and "[" not in "".join(plain)
    shown = lines(capsys, output, "--ci")
    assert any("[" in line for line in shown) and "±" not in "".join(shown)
    shown = lines(capsys, output, "--compare", "ZeroshotCLIP")
    (line,) = [line for line in shown if "TaskRes" in line]
    assert "p " in line and "[" in line
    frame = unskew.summarize(output, compare="ZeroshotCLIP")
    assert frame["compared_with"].tolist() == ["ZeroshotCLIP"] * 2
    assert frame["difference"].iloc[0] == pytest.approx(frame["mean"].iloc[0] - frame["mean"].iloc[1])


@pytest.mark.parametrize(
    ("argv", "fact"),
    [
        (("--compare", "CoOps"), "CoOps"),
        (("--compare", "TaskRes", "--metric", "ece"), "ece"),
        (("--format", "cvs"), "csv"),
        (("--format", "json", "--metric", "accurracy"), "accuracy"),
    ],
)
def test_mistakes_are_one_line(argv, fact, output, capsys):
    assert main(["table", output, *argv]) == 2
    captured = capsys.readouterr()
    assert not captured.out and captured.err.count("\n") == 1 and fact in captured.err


def test_without_runs_the_formats_are_empty(tmp_path, capsys):
    assert lines(capsys, str(tmp_path), "--format", "json") == ["[]"]
    assert lines(capsys, str(tmp_path), "--format", "csv") in ([], [""])
    assert lines(capsys, str(tmp_path), "--ci") == ["no finished runs"]
