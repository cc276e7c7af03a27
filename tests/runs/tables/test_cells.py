"""Cells have the means, seeds, intervals and differences of their runs; averages are over equal datasets."""

import math

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy import stats

from unskew.runs.tables import cell_statistics, records, text_tables
from unskew.runs.tables.cells import all_cells
from unskew.runs.tables.comparison import Difference, compare, interval

IMAGES = 400


@pytest.fixture
def make(tmp_path):
    """A function that writes the predictions of a run with the given number of correct images and returns its row."""

    def run(trainer, right, seed=1, dataset="d", shots=1, backbone="b", images=IMAGES, **more):
        folder = tmp_path / "_".join(map(str, (dataset, backbone, trainer, shots, seed)))
        folder.mkdir()
        labels = np.arange(images) % 2
        shift = 10 * (seed - 1)  # seeds are right on different images
        correct = np.roll(np.arange(images) < right, shift)
        logits = np.eye(2, dtype=np.float32)[np.where(correct, labels, 1 - labels)]
        save_file(
            {"logits": logits, "labels": labels, "zs": logits[:, ::-1].copy()}, folder / "predictions.safetensors"
        )
        row = {"dataset": dataset, "trainer": trainer, "backbone": backbone, "shots": shots, "seed": seed}
        accuracy = 100 * right / images
        row |= {"accuracy": accuracy, "zs_accuracy": 100 - accuracy, "ece": 5.0 + seed, "classnames": ["a", "b"]}
        return row | {"folder": str(folder)} | more

    return run


def only(found, **wanted):
    """Return the only record with some values."""
    (record,) = [record for record in found if wanted.items() <= record.items()]
    return record


def table_of(*rights):
    return np.stack([np.roll(np.arange(IMAGES) < right, 10 * n) for n, right in enumerate(rights)])


def test_a_record_has_the_numbers_of_its_runs(make):
    rows = [make("Z", right, seed) for seed, right in ((1, 200), (2, 220), (4, 210))]
    rows += [make("G", 300, 1, transductive=True, unreadable_test=2)]
    found = records.records(rows)
    assert len(found) == 2
    first = only(found, trainer="Z")
    assert first["mean"] == pytest.approx(52.5) and first["std"] == pytest.approx(2.5)
    assert (first["seeds"], first["seed_numbers"], first["metric"], first["shots"]) == (3, "1 2 4", "accuracy", 1)
    expected = interval(table_of(200, 220, 0, 210)[[0, 1, 3]], np.random.default_rng(0))
    assert (first["low"], first["high"]) == pytest.approx(expected, abs=0.5)
    second = only(found, trainer="G")
    assert (second["std"], second["transductive"], second["unreadable_test"]) == (None, True, 2)
    assert second["low"] < 75 < second["high"]


def test_parts_have_intervals_and_other_metrics_those_of_seeds(make):
    rows = [make("G", 300, seed) for seed in (1, 2, 3)]
    zs, ece = records.records(rows, ["zs_accuracy", "ece"])
    assert zs["low"] < zs["mean"] == 25 < zs["high"]
    assert (ece["low"], ece["high"]) == pytest.approx(stats.t.interval(0.95, 2, 7, stats.sem([6, 7, 8])))
    (f1,) = records.records([{**row, "macro_f1": 90.0 + 3 * row["seed"]} for row in rows], ["macro_f1"])
    assert 80 < f1["low"] < 90 and f1["high"] == 100
    (ece,) = records.records(rows[:1], ["ece"])
    assert (ece["low"], ece["high"]) == (None, None)
    (seconds,) = records.records([{**row, "seconds": 1000.0 * row["seed"]} for row in rows], ["seconds"])
    assert seconds["high"] > 4000 and seconds["low"] == 0


def test_differences_are_those_of_the_comparison(make):
    rows = [make(name, right + 20 * seed, seed) for name, right in (("A", 200), ("B", 230)) for seed in (1, 2, 3)]
    rows = [*rows[:3], *rows[:2:-1], make("C", 230, 1)]
    found = records.records(rows, compare="A")
    a, b = table_of(220, 240, 260), table_of(250, 270, 290)
    expected = compare(b, a, np.random.default_rng(0), paired=True)
    record = only(found, trainer="B")
    numbers = [record[name] for name in ("difference", "difference_low", "difference_high", "p_value")]
    assert numbers == pytest.approx(expected, abs=0.3)
    other = only(found, trainer="C")  # of one seed, so unpaired
    smaller, larger = sorted([record, other], key=lambda record: record["p_value"])
    assert smaller["adjusted_p"] == pytest.approx(2 * smaller["p_value"])  # Holm's correction of two comparisons
    assert larger["adjusted_p"] == max(larger["p_value"], smaller["adjusted_p"])
    assert only(found, trainer="A")["difference"] is None


def test_a_cell_has_the_same_numbers_in_every_table(make):
    rows = [make(name, right, seed) for name, right in (("A", 200), ("B", 230)) for seed in (1, 2)]
    alone = records.records(rows[2:])
    assert alone == [only(records.records(rows), trainer="B")]


def test_runs_on_other_images_are_never_paired(make, warned):
    rows = [make("A", 200), make("B", 300, unreadable_test_names=["x.png"], unreadable_test=1), make("C", 250)]
    found = records.records(rows, compare="A")
    assert only(found, trainer="B")["difference"] is None and only(found, trainer="C")["difference"] > 0
    assert len(warned()) == 1 and "A" in warned()[0] and "B" in warned()[0]


def test_seeds_on_other_images_have_a_mean_but_no_interval(make, warned):
    (record,) = records.records([make("A", 200), make("A", 150, 2, images=300)])
    assert record["mean"] == 50 and record["low"] is None
    assert len(warned()) == 1 and "interval" in warned()[0]


def test_a_run_without_predictions_is_one_warning(make, warned, tmp_path):
    rows = [make("A", 200), make("B", 300)]
    (tmp_path / "d_b_B_1_1" / "predictions.safetensors").unlink()
    found = records.records(rows, compare="A")
    assert only(found, trainer="B")["low"] is None and only(found, trainer="B")["difference"] is None
    assert len(warned()) == 1 and "d_b_B_1_1" in warned()[0]


def test_a_setting_without_the_other_trainer_is_a_warning(make, warned):
    found = records.records([make("A", 200), make("B", 300), make("B", 300, shots=4)], compare="A")
    assert only(found, trainer="B", shots=4)["difference"] is None
    assert len(warned()) == 1 and "4 shots" in warned()[0]


@pytest.mark.parametrize(("metric", "other", "fact"), [("accuracy", "C", "A, B"), ("ece", "A", "ece")])
def test_impossible_comparisons_are_errors(metric, other, fact, make):
    with pytest.raises(ValueError, match=fact):
        records.records([make("A", 200), make("B", 300)], [metric], compare=other)


def test_averages_weigh_datasets_equally(make):
    rows = [make("A", 300, seed, "d") for seed in (1, 2, 3)] + [make("A", 50, 1, "e", images=100)]
    rows += [make("B", 340, 1, "d"), make("B", 60, 1, "e", images=100)]
    found = records.records(rows, compare="A")
    average = only(found, dataset="average", trainer="A")
    assert (average["mean"], average["std"], average["datasets"]) == (62.5, None, "d, e")
    assert (average["seeds"], average["seed_numbers"]) == (1, "1")
    assert average["low"] < 62.5 < average["high"]
    other = only(found, dataset="average", trainer="B")
    assert other["difference"] == pytest.approx(10) and 0 < other["p_value"] == other["adjusted_p"] < 0.01


def test_an_average_is_over_the_datasets_that_all_trainers_have(make):
    rows = [make(name, 300, 1, dataset) for name in "AB" for dataset in "def"]
    rows += [make("C", 300, 1, dataset) for dataset in "df"] + [make("C", 200, 1, "e", shots=4)]
    cells, notes = all_cells(rows, ["accuracy"])
    means = [cell for cell in cells if not cell.dataset]
    assert {cell.trainer for cell in means} == {*"ABC"} and {cell.datasets for cell in means} == {("d", "f")}
    assert len(notes) == 1 and "1 shot" in notes[0] and "e (no C)" in notes[0]
    rows = [row for row in rows if row["trainer"] != "C" or row["dataset"] == "d"]
    cells, notes = all_cells(rows, ["accuracy", "ece"])
    assert all(cell.dataset for cell in cells)
    assert len(notes) == 1 and "e (no C)" in notes[0] and "f (no C)" in notes[0]


def test_backbones_share_the_datasets_of_an_average_only_together(make):
    rows = [make("A", 300, 1, dataset, backbone=backbone) for backbone in "bc" for dataset in "def"][:-1]
    apart = {cell.backbone: cell.datasets for cell in all_cells(rows, ["accuracy"])[0] if not cell.dataset}
    assert apart == {"b": ("d", "e", "f"), "c": ("d", "e")}
    together = [cell.datasets for cell in all_cells(rows, ["accuracy"], together=True)[0] if not cell.dataset]
    assert together == [("d", "e")] * 2


def test_a_number_that_is_not_one_is_no_json_of_its_own(make):
    row = make("A", 200) | {"ece": math.nan}
    (record,) = records.records([row], ["ece"])
    assert record["mean"] is None and '"mean": null' in records.as_json([record])


def test_no_runs_are_no_records():
    assert records.records([]) == [] and records.as_json([]) == "[]" and records.as_csv([]) == ""


def body(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]


def test_the_text_shows_intervals_and_differences(make):
    rows = [make("A", 200), make("B", 300), make("C", 204), make("D", 200, unreadable_test_names=["x"])]
    record = only(records.records(rows, compare="A"), trainer="B")
    low, high = record["low"], record["high"]
    assert ["B", f"75.0 [{low:.1f}, {high:.1f}]"] in body(text_tables.table(rows, ci=True))
    text = text_tables.table(rows, compare="A")
    numbers = f"[{record['difference_low']:+.1f}, {record['difference_high']:+.1f}]"
    lines = dict(body(text)[1:])
    assert lines["A"] == "50.0" and lines["B"] == f"+25.0 {numbers}, p < 0.001 ‡" and lines["D"] == ""
    assert lines["C"].startswith("+1.0 [") and "‡" not in lines["C"]
    assert "differences from A" in text.splitlines()[0] and "\n‡ " in text
    assert "‡" not in text_tables.table([row for row in rows if row["trainer"] != "B"], compare="A")


def test_cells_have_their_number_of_seeds_only_if_it_differs(make):
    rows = [make(name, 200, seed) for name in "AB" for seed in (1, 2)]
    assert "n=" not in text_tables.table(rows)
    assert body(text_tables.table(rows[:-1]))[1:] == [["A", "50.0 ± 0.0 (n=2)"], ["B", "50.0 (n=1)"]]
    assert text_tables.table([*rows[:-1], make("B", 200, 3)]).count("(n=2)") == 2  # of seeds 1 2 and 1 3


def test_the_last_table_is_the_average(make):
    rows = [make(name, right, 1, dataset) for name, right in (("A", 200), ("B", 300)) for dataset in "de"]
    *_, title, grid = text_tables.table(rows).split("\n\n")
    assert title == "average accuracy (%) over d, e, b, seed 1" and body(grid)[1:] == [["A", "50.0"], ["B", "75.0"]]
    *_, title, grid = text_tables.table(rows, columns=["accuracy", "ece"]).split("\n\n")
    assert title == "average over d, e, b, 1 shot, seed 1 (%)" and body(grid)[1:][1] == ["B", "75.0", "6.0"]
    *_, title, grid = text_tables.table(rows, together=True, compare="A").split("\n\n")[:-3]
    assert title.startswith("average accuracy (%) over d, e, seed 1") and body(grid)[2][2].startswith("+25.0 [")
    assert "average" not in text_tables.table(rows[::2])  # of one dataset


def test_long_tailed_sets_are_averaged_apart_from_whole_ones(make):
    rows = [make("A", 200 + 40 * n, 1, d, -1, longtail=n > 1) for n, d in enumerate("defg")]
    *_, title, grid = text_tables.table(rows).split("\n\n")
    assert body(grid) == [["", "all images", "long-tailed"], ["A", "55.0", "75.0"]]
    assert "datasets" in title


def test_titles_and_notes_of_latex_are_comments(make):
    text = text_tables.table([make("A", 200), make("B", 300)], style="latex", compare="A", ci=True)
    outside = text.split("\\begin{tabular}")[0].splitlines() + text.split("\\end{tabular}")[1].splitlines()
    assert len([line for line in outside if line]) >= 4 and all(line[:2] == "% " for line in outside if line)


@pytest.mark.parametrize("metric", ["peak_memory_mb", "trained_parameters", "images_encoded", "images_cached"])
def test_costs_are_no_percentages(metric, make):
    assert "%" not in text_tables.table([make("A", 200) | {metric: 12}], metric)


def test_the_best_is_marked_with_all_that_do_not_differ_significantly(make):
    rights = {"low": 200, "best": 330, "equal": 329, "alone": 310}
    rows = [make(trainer, right) for trainer, right in rights.items() if trainer != "alone"]
    rows += [make("alone", 310, shots=4)]
    marked = {cell.trainer: cell.is_best for cell in cell_statistics.against_best(all_cells(rows, ["accuracy"])[0])}
    assert marked == {"low": False, "best": True, "equal": True, "alone": False}


def test_holms_method_decides_what_is_marked(make, monkeypatch):
    """Of seven p-values of 0.02, none is significant; a single one is."""
    monkeypatch.setattr(cell_statistics.comparison, "compare_averages", lambda *_: Difference(1, 0, 2, 0.02))
    cells, _ = all_cells([make(str(number), 200 + number) for number in range(8)], ["accuracy"])
    assert all(cell.is_best for cell in cell_statistics.against_best(cells))
    assert [cell.is_best for cell in cell_statistics.against_best(cells[-2:])] == [False, True]
