"""Tables tell how many labelled images per class each method used."""

import pytest

from unskew.runs.tables import labelled, text_tables


def row(trainer, shots, images=None, seed=1, dataset="d", **more):
    found = {"dataset": dataset, "backbone": "b", "trainer": trainer, "shots": shots, "seed": seed, "accuracy": 50.0}
    return found | ({} if images is None else {"labelled_images": images}) | more


def cells(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line]


def test_one_number_of_shots_has_a_column_of_labelled_images():
    rows = [row("Z", 16, 0.0), row("G", 16, 19.5), row("G", 16, 20.5, seed=2), row("C", 16, 15.96), row("Old", 16)]
    assert [line[-1] for line in cells(text_tables.table(rows)) if not line[-1].startswith("-")] == [
        labelled.HEADER,
        "0",
        "20",
        "16",
        "",
    ]
    assert cells(text_tables.table(rows[-1:]))[0] == ["", "16 shots"]
    assert labelled.HEADER not in text_tables.table([{**r, "ece": 1.0} for r in rows], "ece")
    assert labelled.HEADER not in text_tables.table(rows, columns=["accuracy", "labelled_images"])


def test_several_numbers_of_shots_have_a_line_on_methods_that_also_use_val():
    rows = [row(name, k, k + extra * min(k, 4)) for k in (1, 16) for name, extra in (("C", 0), ("G", 1), ("L", 1))]
    *_, note = text_tables.table(rows).splitlines()
    assert note.startswith("G, L ") and "min(k, 4)" in note
    assert labelled.HEADER not in text_tables.table(rows)
    assert not labelled.note([r for r in rows if r["trainer"] == "C"])
    assert not labelled.note([row("Z", 1, 0.0), row("Old", 4), row("All", -1, 300.0)])


def test_other_numbers_are_given_at_each_number_of_shots():
    note = labelled.note([row("X", 1, 3.0), row("X", 16, 18.0), row("X", 16, 19.5, dataset="e")])
    assert "2 at 1 shot" in note and "2 or 3.5 at 16 shots" in note


@pytest.mark.parametrize("value", ["many", None, -1, float("nan")])
def test_other_values_than_numbers_of_images_count_as_missing(value):
    assert labelled.per_class({"labelled_images": value}) is None
