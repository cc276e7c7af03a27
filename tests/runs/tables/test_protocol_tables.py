"""Tables of base to new and of transfers to targets have the right numbers, averages, intervals and marks."""

import json
import statistics

import numpy as np
import pytest
from safetensors.numpy import save_file

import unskew
from unskew.cli.main import main
from unskew.runs import tables
from unskew.runs.tables import joint_comparison, protocol_tables
from unskew.runs.tables.cells import all_cells
from unskew.runs.tables.comparison import average_interval

IMAGES = 200
CLASSES = {"all": ["a", "b", "c", "d"], "base": ["a", "b"], "new": ["c", "d"]}


@pytest.fixture
def make(tmp_path):
    """A function that writes a run, or its evaluation on another dataset or half, and returns the folder."""

    def run(trainer, right, seed=1, dataset="d", subsample="all", source=None, classes=None, **more):
        folder = tmp_path / dataset / subsample / trainer / f"seed{seed}"
        if source:
            folder = source / "eval" / (dataset if subsample == "all" else f"{dataset}-{subsample}")
        folder.mkdir(parents=True)
        classes = classes or CLASSES[subsample]
        labels = np.arange(IMAGES) % len(classes)
        correct = np.roll(np.arange(IMAGES) < right, 10 * seed)
        logits = np.eye(len(classes), dtype=np.float32)[np.where(correct, labels, (labels + 1) % len(classes))]
        save_file({"logits": logits, "labels": labels}, folder / "predictions.safetensors")
        row = {"dataset": dataset, "trainer": trainer, "backbone": "b", "shots": 16, "seed": seed}
        row |= {"accuracy": 100 * right / IMAGES, "ece": 5.0, "classnames": classes, **more}
        row |= {"subsample": subsample} if subsample != "all" else {}
        row |= {"evaluated_from": str(source), "source": "d"} if source else {}
        tables.write_metrics(folder / "metrics.json", row)
        (folder / "done").write_text("0123456789abcdef\nmetrics.json\npredictions.safetensors\n")
        return folder

    return run


def halves(make, trainer, numbers, dataset="d", **more):
    """Runs on the base half and their evaluations on the new one, with a pair of right images for each seed."""
    for seed, (base, new) in enumerate(numbers, 1):
        source = make(trainer, base, seed, dataset, "base")
        make(trainer, new, seed, dataset, "new", source, **more)


def read(folder):
    return tables.collect(folder), tables.evaluations(folder)


def lines(text):
    """Return the cells of the lines of a table behind its header."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line]


def shown(capsys, folder, *argv):
    assert main(["table", str(folder), *argv]) == 0
    return capsys.readouterr().out.rstrip("\n")


def test_h_is_the_harmonic_mean_of_the_means_and_its_deviation_is_that_of_the_seeds(make, tmp_path):
    halves(make, "G", [(160, 100), (180, 60)])
    rows = protocol_tables.base_to_new(*read(tmp_path))
    of_seeds = [statistics.harmonic_mean(pair) for pair in ((80, 50), (90, 30))]
    assert [row["H"] for row in rows] == pytest.approx(of_seeds)
    text = protocol_tables.text("base_to_new", *read(tmp_path))
    deviation = statistics.stdev(of_seeds)
    assert lines(text)[0] == ["", "base", "new", "H"]
    assert lines(text)[2] == [
        "G",
        "85.0 ± 7.1",
        "40.0 ± 14.1",
        f"{statistics.harmonic_mean([85, 40]):.1f} ± {deviation:.1f}",
    ]


def test_h_of_an_average_is_that_of_the_average_base_and_new(make, tmp_path):
    for dataset, pair in (("d", (180, 40)), ("e", (100, 160))):
        halves(make, "G", [pair], dataset)
    *_, average = protocol_tables.text("base_to_new", *read(tmp_path)).split("\n\n")
    mean = statistics.harmonic_mean([(90 + 50) / 2, (20 + 80) / 2])
    assert lines(average)[2] == ["G", "70.0", "50.0", f"{mean:.1f}"]
    assert f"{mean:.1f}" != f"{(statistics.harmonic_mean([90, 20]) + statistics.harmonic_mean([50, 80])) / 2:.1f}"


def test_base_new_and_h_of_an_average_are_over_the_same_datasets(make, tmp_path):
    halves(make, "A", [(160, 120)], "c")
    halves(make, "A", [(100, 150)], "d")
    make("A", 20, 1, "e", "base")  # its new classes are not tested yet
    found = protocol_tables.base_to_new(*read(tmp_path))
    cells, notes = all_cells(found, ["base", "new", "H"])
    averages = {cell.metric: cell for cell in cells if not cell.dataset}
    assert {cell.datasets for cell in averages.values()} == {("c", "d")}
    assert [averages[name].mean for name in ("base", "new", "H")] == pytest.approx([65, 67.5, 66.2264], abs=1e-4)
    assert any("e (no A)" in note for note in notes)


def test_evaluations_of_an_epoch_or_on_another_split_are_in_no_table(make, tmp_path):
    source = make("A", 100)
    make("A", 120, 1, "x", source=source, classes=["p", "q"])
    for kind in ({"split": "val"}, {"epoch": 2}):
        make("A", 10, 1, "y", source=source, classes=["p", "q"], **kind).rename(source / "eval" / next(iter(kind)))
    (row,) = protocol_tables.transfers(*read(tmp_path))
    assert row["average"] == row["x"] == 60.0 and "y" not in row
    other = make("B", 100, split="val")
    make("B", 80, 1, "y", source=other, classes=["p", "q"], split="val")
    assert protocol_tables.transfers(*read(tmp_path))[1]["y"] == 40.0


def test_runs_on_half_of_the_classes_are_in_no_ordinary_table(make, tmp_path, capsys):
    make("G", 100)
    halves(make, "G", [(180, 120)])
    ordinary, protocol = shown(capsys, tmp_path).split("\n\nbase to new")
    assert lines(ordinary)[2:] == [["G", "50.0"]]
    assert lines(protocol)[2:] == [["G", "90.0", "60.0", "72.0"]]
    assert lines(shown(capsys, tmp_path, "--metric", "ece"))[2:] == [["G", "5.0"]]
    frame = unskew.results(tmp_path)
    assert frame["subsample"].fillna("all").tolist() == ["all", "base"]


def test_a_run_without_its_test_on_new_classes_has_an_empty_cell_and_a_note(make, tmp_path, capsys):
    halves(make, "G", [(180, 120)])
    make("Z", 100, subsample="base")
    text = shown(capsys, tmp_path)
    assert "no finished runs" not in text
    assert lines(text)[3] == ["Z", "50.0", "", ""]
    assert "Z with seed 1 on d" in text.splitlines()[-1]


def targets(make, trainer, numbers, seed=1, **more):
    source = make(trainer, numbers[0], seed)
    for name, right in zip(("x", "y"), numbers[1:], strict=False):
        make(trainer, right, seed, name, source=source, classes=["p", "q"], **more)


def test_transfers_have_a_column_for_the_source_each_target_and_the_average(make, tmp_path, capsys):
    for seed in (1, 2):
        targets(make, "G", (180, 100 + 20 * seed, 60), seed)
    _, transfer = shown(capsys, tmp_path).split("\n\ntransfer")
    assert lines(transfer)[0] == ["", "d (source)", "x", "y", "average"]
    assert lines(transfer)[2] == ["G", "90.0 ± 0.0", "65.0 ± 7.1", "30.0 ± 0.0", "47.5 ± 3.5"]


def test_targets_with_the_classes_of_the_source_are_a_table_of_domains(make, tmp_path):
    source = make("G", 180)
    make("G", 100, dataset="shifted", source=source, classes=["a", "c"])
    make("G", 60, dataset="other", source=source, classes=["a", "z"])
    found = protocol_tables.split(*read(tmp_path))
    assert {name: protocol_tables.columns(rows) for name, rows in found.items()} == {
        "cross_dataset": ["d", "other"],
        "domain_generalisation": ["d", "shifted"],
    }


def test_a_run_that_lacks_a_target_has_no_average(make, tmp_path):
    targets(make, "G", (180, 100, 60))
    targets(make, "Z", (100, 100))
    text = protocol_tables.text("cross_dataset", *read(tmp_path))
    assert lines(text)[3] == ["Z", "50.0", "50.0", "", ""]
    assert "Z with seed 1" in text.splitlines()[-1]


@pytest.mark.parametrize(("kind", "mark"), [("unlabelled", "§"), ("zero-shot", "¶"), ("by class name", "")])
def test_marks_tell_how_terms_were_carried_over(kind, mark, make, tmp_path):
    targets(make, "G", (180, 100, 60), transfer=kind)
    text = protocol_tables.text("cross_dataset", *read(tmp_path))
    assert lines(text)[2] == ["G", "90.0", *(f"{value} {mark}".strip() for value in ("50.0", "30.0", "40.0"))]
    assert text.count("\n\n") == (2 if mark else 1) and text.splitlines()[-1].startswith(mark or "|")


def test_intervals_read_the_predictions_of_each_test(make, tmp_path, capsys):
    halves(make, "G", [(160, 100), (180, 80), (170, 90)])
    base, new, h = all_cells(protocol_tables.base_to_new(*read(tmp_path)), ["base", "new", "H"], intervals=True)[0]
    correct = {
        name: np.stack([np.roll(np.arange(IMAGES) < right, 10 * seed) for seed, right in enumerate(rights, 1)])
        for name, rights in (("base", (160, 180, 170)), ("new", (100, 80, 90)))
    }
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(base.interval, average_interval([correct["base"]], rng), atol=1)
    np.testing.assert_allclose(new.interval, average_interval([correct["new"]], rng), atol=1)
    expected = joint_comparison.interval([[correct["base"], correct["new"]]], joint_comparison.harmonic, rng)
    np.testing.assert_allclose(h.interval, expected, atol=1)
    assert "[" in lines(shown(capsys, tmp_path, "--ci"))[2][3]


def test_differences_are_tested_in_each_column(make, tmp_path, capsys):
    halves(make, "G", [(180, 120)])
    halves(make, "Z", [(100, 100)])
    make("Other", 100)
    text = shown(capsys, tmp_path, "--compare", "Z")
    (line,) = [line for line in lines(text) if line[0] == "G"]
    gap = 72 - 50
    assert line[1].startswith("+40.0") and line[2].startswith("+10.0") and line[3].startswith(f"+{gap:.1f}")
    assert all("p " in cell for cell in line[1:])


def test_records_of_protocols_are_those_of_the_table(make, tmp_path, capsys):
    halves(make, "G", [(180, 120)])
    targets(make, "G", (180, 100, 60), transfer="zero-shot")
    found = json.loads(shown(capsys, tmp_path, "--format", "json"))
    keys = [(row["protocol"], row["metric"], row["mean"], row["transfer"]) for row in found]
    assert keys == [
        ("", "accuracy", 90.0, ""),
        ("base_to_new", "base", 90.0, ""),
        ("base_to_new", "new", 60.0, ""),
        ("base_to_new", "H", pytest.approx(72.0), ""),
        ("cross_dataset", "d", 90.0, ""),
        ("cross_dataset", "x", 50.0, "zero-shot"),
        ("cross_dataset", "y", 30.0, "zero-shot"),
        ("cross_dataset", "average", 40.0, "zero-shot"),
    ]
    assert all(row["low"] < row["mean"] < row["high"] for row in found)
    assert unskew.summarize(tmp_path)["metric"].tolist() == [row["metric"] for row in found]
    assert all(line.startswith(("%", "\\")) for line in shown(capsys, tmp_path, "--format", "latex").splitlines()
               if line and "&" not in line)  # fmt: skip
