"""Tests of CSV files as spreadsheets and pandas write them: separators, spare lines, quotes and encodings."""

import pytest
from test_custom_csv import file, table  # noqa: F401 - file is a fixture
from trees import held, load, write

ROWS = [f"{name}/{n}.jpg,{name}" for name in ("robin", "wren") for n in range(4)]


@pytest.mark.parametrize("separator", [";", "\t", "|"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_other_separators_give_the_same_images(separator, mark, file):  # noqa: F811
    table(file, "path,label", *ROWS)
    expected = held(load("csv", file), file.parent)
    lines = [line.replace(",", separator) for line in (mark + "path,label", *ROWS)]
    write(file, *lines, end="\r\n")
    assert held(load("csv", file), file.parent) == expected


def test_spare_separators_and_lines_are_ignored(file):  # noqa: F811
    table(file, "path,label", *ROWS)
    expected = held(load("csv", file), file.parent)
    write(file, "path,label,,", *(f"{row},," for row in ROWS), ",,,", " ,,,")
    assert held(load("csv", file), file.parent) == expected


@pytest.mark.parametrize(
    ("header", "line", "expected"),
    [
        ("path,label", "a,b.jpg,wren", "line 10: .* 3 values .* 2 columns"),  # the path was cut at the comma
        ("path,label,label", "a.jpg,wren,robin", "2 columns 'label'"),
        ("path,label,Path", "a.jpg,wren,b.jpg", "2 columns 'path'"),
        ("path,label", '"a.jpg,wren', "quotes"),
        ("path,label", "a.jpg,wren\xe9", "UTF-8"),
        ("path;label", "a.jpg;0,0", "line 10: .*'0,0'"),  # pandas with decimal=","
    ],
)
def test_a_wrong_file_is_an_error(header, line, expected, file):  # noqa: F811
    table(file, "path,label", *ROWS)
    rows = [row.replace(",", ";") if ";" in header else row for row in ROWS]
    file.write_bytes("".join(f"{text}\n" for text in (header, *rows, line)).encode("latin-1"))
    with pytest.raises(ValueError, match=expected) as error:
        load("csv", file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_a_single_class_is_an_error(file):  # noqa: F811
    table(file, "path,label", *ROWS[:4])
    with pytest.raises(ValueError, match="'robin'"):
        load("csv", file)
