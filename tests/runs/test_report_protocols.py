"""The report has the numbers of the tables on base to new, transfers, published results and labelled images."""

from pathlib import Path

from report_folders import make_run

from unskew.runs import tables
from unskew.runs.report import gather, overview, protocols, write_report
from unskew.runs.report.blocks import Table
from unskew.runs.tables import published_tables, records


def change(folder, **values):
    """Change the metrics of a run."""
    tables.write_metrics(folder / "metrics.json", {**tables.read_metrics(folder / "metrics.json"), **values})
    return folder


def evaluation(source, output, seed=1, dataset="pets", label="", **options):
    """An evaluation of a run, with the class names of other datasets."""
    values = options.pop("values", {})
    folder = make_run(output / "moved", source.parents[1].name, 16, seed, dataset, **options)
    target = source / "eval" / (label or dataset)
    target.parent.mkdir(exist_ok=True)
    folder.rename(target)
    return change(target, evaluated_from=str(source), **values)


def make_protocols(output):
    """Runs on all classes and on their half, each with its evaluations."""
    for trainer, quality in (("GLA", 3.0), ("CoOp", 1.0)):
        for seed in (1, 2):
            half = change(make_run(output / "halves", trainer, 16, seed, quality=quality), subsample="base")
            evaluation(half, output, seed, label="pets-new", quality=quality, values={"subsample": "new"})
            whole = make_run(output, trainer, 16, seed, quality=quality)
            evaluation(whole, output, seed, "birds", classnames=("x", "y"), quality=quality,
                       values={"transfer": "unlabelled"})  # fmt: skip
            evaluation(whole, output, seed, "shifted", classnames=("cat", "dog"), quality=quality)


def page_tables(section):
    return [block for block in section.blocks if isinstance(block, Table)]


def test_protocols_have_sections_with_the_numbers_of_the_records(tmp_path):
    make_protocols(tmp_path / "output")
    base, transfer = protocols.protocol_sections(gather.collect([tmp_path / "output"]))
    assert (base.title, transfer.title) == ("Base to new", "Transfer")
    found = records.all_records(*tables.collect_both(tmp_path / "output"))
    wanted = {(r["protocol"], r["trainer"], r["metric"]): r for r in found}
    (table,) = page_tables(base)
    assert table.columns == ["trainer", "base (%)", "new (%)", "H (%)"]
    for row in table.rows:
        for name, cell in zip(("base", "new", "H"), row[1:], strict=True):
            record = wanted["base_to_new", row[0].text, name]
            assert cell.value == record["mean"] and cell.note.startswith(f"[{record['low']:.1f}, {record['high']:.1f}]")
            assert cell.folder.is_dir() and cell.best is (row[0].text == "GLA")
    birds, shifted = page_tables(transfer)
    assert birds.columns[1:] == ["pets (source) (%)", "birds (%)"] and shifted.columns[-1] == "shifted (%)"
    assert all("§" in row[2].text for row in birds.rows) and not any("§" in row[2].text for row in shifted.rows)
    assert any("unlabelled images" in getattr(block, "text", "") for block in transfer.blocks)


def test_the_overview_has_no_runs_on_half_of_the_classes(tmp_path):
    make_protocols(tmp_path / "output")
    found = gather.collect([tmp_path / "output"])
    assert [run.path for run in found.runs if "halves" in str(run.path)] == [] and len(found.runs) == 4
    out = tmp_path / "report.html"
    assert "8 runs" in write_report([tmp_path / "output"], out, tables=tmp_path / "files")
    page = out.read_text(encoding="utf-8")
    assert 'id="base-to-new"' in page and 'id="transfer"' in page and 'id="published-results"' not in page
    assert {"base-to-new-pets-micro-16-shots.csv", "cross-dataset-pets-micro-16-shots.tex"} <= {
        path.name for path in (tmp_path / "files").iterdir()
    }


def test_runs_on_halves_alone_are_a_report(tmp_path):
    change(make_run(tmp_path / "output", "GLA"), subsample="base")
    assert "1 run" in write_report([tmp_path / "output"], tmp_path / "report.html")
    assert 'id="overview"' not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_published_results_are_beside_the_runs(tmp_path):
    for seed in (1, 2):
        change(make_run(tmp_path / "output", "TipAdapterF", 16, seed, "imagenet"), backbone="RN50")
    found = gather.collect([tmp_path / "output"])
    (section,) = protocols.published_section(found)
    (table,) = page_tables(section)
    pairs = published_tables.fitting(found.rows, [])
    assert len(table.rows) == len(pairs) > 3
    (row,) = [row for row in table.rows if row[1].text == "TipAdapterF"]
    (pair,) = [pair for pair in pairs if pair[1]]
    mean = pair[1].mean
    assert [row[3].value, row[4].value, row[5].value] == [mean, 65.51, mean - 65.51]
    assert (
        Path(row[3].folder).is_dir() and "github.com/gaopengcuhk" in section.blocks[-3].text + section.blocks[-4].text
    )


def test_labelled_images_are_a_column_or_a_note(tmp_path):
    for shots in (1, 16):
        for trainer, images in (("GLA", shots + min(shots, 4)), ("CoOp", shots)):
            change(make_run(tmp_path / str(shots), trainer, shots), labelled_images=images)
    places, averages = gather.arrange(gather.collect([tmp_path / "16"]).runs)
    table = overview.overview_section(places, averages).blocks[1]
    assert table.columns[-1] == "labelled/class"
    assert {row[0].text: row[-1].value for row in table.rows} == {"GLA": 20, "CoOp": 16}
    places, averages = gather.arrange(gather.collect([tmp_path / "1", tmp_path / "16"]).runs)
    _, table, note, *_ = overview.overview_section(places, averages).blocks
    assert table.columns[-1] == "16 shots (%)" and note.text.startswith("GLA ") and "CoOp" not in note.text
