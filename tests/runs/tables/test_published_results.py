"""Published results are data with sources, and stand beside the accuracies of the runs that they fit."""

import json
import re
import statistics
from pathlib import Path

import pytest
import yaml
from report_folders import make_run

from unskew import config
from unskew.cli.main import main
from unskew.runs import tables
from unskew.runs.tables import published, published_tables
from unskew.runs.tables.cells import all_cells

FILE = Path(__file__).parents[3] / "configs" / "published.yaml"
ELEVEN = yaml.safe_load(FILE.read_text())["few_shot_11"]


def row(dataset="imagenet", trainer="TipAdapterF", shots=16, accuracy=66.0, seed=1, backbone="RN50", **more):
    found = {"dataset": dataset, "trainer": trainer, "shots": shots, "accuracy": accuracy, "seed": seed}
    return found | {"backbone": backbone, "folder": f"{dataset}-{trainer}-{shots}-{seed}"} | more


def fitting(rows):
    return published_tables.fitting(rows, [])


def numbers(rows, method, **wanted):
    """Return the published means and own cells of a method."""
    return [
        (result.mean, cell and cell.mean)
        for result, cell in fitting(rows)
        if result.method == method and all(getattr(result, name) == value for name, value in wanted.items())
    ]


def test_every_result_has_a_source_and_known_names():
    found = published.results()
    assert len(found) > 300
    assert all(result.source.title and 0 < result.mean < 100 for result in found)
    assert {name for result in found for name in result.datasets} <= set(config.names("datasets"))
    first_hand = {result.source.title.split(",")[0] for result in found if not result.second_hand}
    assert {"Tip-Adapter", "GDA", "GLA", "CoOp"} <= first_hand and "LIFT" not in first_hand
    assert all(re.fullmatch("[0-9a-f]{40}|", result.source.commit) for result in found)


def test_every_published_method_is_described_once():
    tree = yaml.safe_load(FILE.read_text())
    used = {method for key in ("results", "base_to_new") for group in tree[key] for method in group["numbers"]}
    assert used | {gain["method"] for gain in tree["gains"]} == set(tree["methods"])
    assert {gain["source"] for gain in tree["gains"]} <= set(tree["sources"])
    places = [
        (r.method, r.datasets, r.backbone, r.shots, r.metric, r.source, str(r.settings)) for r in published.results()
    ]
    assert len(places) == len(set(places))


# Printed beside the tables of the sources; the file holds only their rows.
MEANS = {
    "Tip-Adapter": (62.33, 64.62, 66.54, 68.50, 70.32),
    "Tip-Adapter-F": (64.60, 66.65, 69.67, 72.45, 75.83),
    "CLIP-Adapter": (62.67, 65.55, 68.61, 71.40, 74.44),
    "GDA": (62.19, 66.19, 69.77, 73.31, 76.05),
}


@pytest.mark.parametrize("method", MEANS)
def test_means_over_the_datasets_are_computed_from_the_rows(method):
    of_rn50 = [r for r in published.results() if (r.backbone, r.metric) == ("RN50", "accuracy") and r.shots > 0]
    found = {r.shots: r.mean for r in published.means(of_rn50, ELEVEN) if r.method == method}
    assert [round(found[k], 2) for k in (1, 2, 4, 8, 16)] == list(MEANS[method])


def test_a_run_is_compared_with_the_same_dataset_backbone_shots_and_method():
    rows = [row(accuracy=accuracy, seed=seed) for seed, accuracy in enumerate((66.0, 67.0), 1)]
    assert numbers(rows, "Tip-Adapter-F") == [(65.51, 66.5)]
    assert numbers(rows, "Tip-Adapter") == [(62.01, None)]  # not run
    assert {result.shots for result, _ in fitting(rows)} == {0, 16}
    assert numbers([row(backbone="ViT-B/16")], "Tip-Adapter-F") == [(73.69, 66.0)]
    assert fitting([row(backbone="micro"), row("digits"), row("dtd", backbone="ViT-B/32")]) == []
    assert numbers([row(subsample="base")], "Tip-Adapter-F") == []


def test_the_papers_configuration_and_our_defaults_stand_beside_one_result():
    rows = [row(trainer="GLA", accuracy=66.0), row(trainer="GLAPaper", accuracy=65.5)]
    assert sorted(numbers(rows, "GLA")) == [(65.63, 65.5), (65.63, 66.0)]


def test_a_zero_shot_result_fits_every_number_of_shots_once():
    rows = [row(trainer="ZeroshotCLIP", shots=k, accuracy=60.0) for k in (1, 16)]
    assert numbers(rows, "zero-shot") == [(60.32, 60.0), (58.18, 60.0)]  # two logs


def test_second_hand_numbers_give_way_to_the_source_and_are_marked():
    assert [r.second_hand for r, _ in fitting([row()]) if r.method == "Tip-Adapter-F"] == [False]
    (result,) = [r for r, _ in fitting([row(backbone="RN101")]) if r.method == "Tip-Adapter-F"]
    assert result.second_hand
    text = published_tables.text(fitting([row(backbone="RN101")]))
    lines = [line for line in text.splitlines() if "Tip-Adapter-F" in line]
    assert "second-hand" in lines[0] and "68.56" in lines[0] and "-2.6" in lines[0]
    assert "arxiv.org/abs/2111.03930" in text.split("\n\n")[-1]


def test_the_average_of_all_datasets_is_compared_with_published_means():
    rows = [row(name, accuracy=50.0 + place) for place, name in enumerate(ELEVEN)]
    found = {r.method: (round(r.mean, 2), c and c.mean) for r, c in fitting(rows) if len(r.datasets) > 1}
    assert found["Tip-Adapter-F"] == (75.83, 55.0) and found["GDA"] == (76.05, None) and found["CLAP"][0] == 74.57
    few = {r.method: r.mean for r, _ in fitting(rows[:2]) if len(r.datasets) > 1}
    assert few["Tip-Adapter-F"] == pytest.approx((65.51 + 92.86) / 2) and "CLAP" not in few


def test_seeds_that_were_published_one_by_one_have_a_deviation():
    (result,) = [r for r, _ in fitting([row("caltech101", "CoOp")]) if r.method == "CoOp"]
    values = (91.81, 92.01, 92.17)
    assert (result.mean, result.deviation) == pytest.approx((statistics.fmean(values), statistics.stdev(values)))
    assert result.seeds == 3


def test_accuracies_on_val_are_not_compared():
    assert fitting([row("caltech101", "CoOp")]) and not fitting([row("caltech101", "CoOp", split="val")])


def test_an_error_rate_fits_only_runs_with_its_imbalance(tmp_path):
    rows = []
    for trainer, imbalance in (("FineTune", 50), ("GLA", 10)):
        folder = tmp_path / trainer
        folder.mkdir()
        (folder / "config.yaml").write_text(f"DATASET: {{IMBALANCE: {imbalance}}}\n")
        rows.append(row("cifar100_lt", trainer, -1, 84.0, backbone="ViT-B/16", longtail=True, folder=str(folder)))
    assert sorted(numbers(rows, "LIFT")) == [(83.1, 84.0), (84.9, None)]


def test_base_to_new_means_are_compared_in_each_column():
    rows = [row(name, "CoOp", subsample="base", accuracy=80.0, backbone="ViT-B/16") for name in ELEVEN]
    tested = [
        {**r, "folder": f"{r['folder']}/eval/{r['dataset']}-new", "subsample": "new", "accuracy": 60.0} for r in rows
    ]
    found = published_tables.fitting(rows, tested)
    coop = [(r.metric, r.mean, round(c.mean, 2)) for r, c in found if r.method == "CoOp"]
    assert coop == [("base", 82.69, 80.0), ("new", 63.22, 60.0), ("H", 71.66, 68.57)]
    text = published_tables.text(found)
    assert "base to new, average over 11 datasets" in text and "MaPLe" in text and "+0.0" not in text


def test_the_command_prints_tables_records_and_one_line_without_results(tmp_path, capsys):
    make_run(tmp_path / "none", dataset="digits")
    assert main(["table", str(tmp_path / "none"), "--published"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    folder = make_run(tmp_path / "some", dataset="imagenet", trainer="TipAdapterF")
    metrics = tables.read_metrics(folder / "metrics.json")
    tables.write_metrics(folder / "metrics.json", {**metrics, "backbone": "RN50"})
    assert main(["table", str(tmp_path / "some"), "--published", "--ci"]) == 0
    assert "[1]" in (out := capsys.readouterr().out) and "65.51" in out
    assert main(["table", str(tmp_path / "some"), "--published", "--format", "json"]) == 0
    (found,) = [r for r in json.loads(capsys.readouterr().out) if r["trainer"] == "TipAdapterF"]
    assert found["difference"] == pytest.approx(metrics["accuracy"] - 65.51) and found["second_hand"] is False
    assert found["mean"] == all_cells([metrics], ["accuracy"])[0][0].mean
    assert main(["table", str(tmp_path / "some"), "--published", "--format", "latex"]) == 0
    assert capsys.readouterr().out.startswith("% ")
    assert main(["table", str(tmp_path / "some"), "--published", "--metric", "ece"]) == 2


@pytest.mark.parametrize(
    ("old", "new", "fact"),
    [
        ("        imagenet: [62.03, 64.78,", "        imagenet: [64.78,", "imagenet"),
        ("        imagenet: 79.3", "        imagenett: 79.3", "imagenett"),
        ("  - source: vrf", "  - source: unknown", "unknown"),
    ],
)
def test_a_mistake_in_the_file_names_its_place(old, new, fact, tmp_path):
    text = FILE.read_text()
    assert old in text
    (tmp_path / "published.yaml").write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=fact):
        published.read(tmp_path / "published.yaml")
