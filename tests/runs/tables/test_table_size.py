"""The work of a table grows linearly with the number of runs."""

import pytest

from unskew.runs.tables import text_tables


class Row(dict):
    """A row of metrics that counts how often its values are read."""

    reads = 0

    def __getitem__(self, key):
        Row.reads += 1
        return super().__getitem__(key)

    def get(self, key, default=None):
        Row.reads += 1
        return super().get(key, default)


def rows(number, varied):
    """Runs with four seeds; the values of one key differ between all groups of four."""
    fixed = {"dataset": "digits", "trainer": "CoOp", "backbone": "micro", "shots": 16}
    values = range(1, number // 4 + 1) if varied == "shots" else (f"X{n}" for n in range(number // 4))
    return [
        Row(fixed | {varied: value, "seed": seed, "accuracy": 50.0 + seed}) for value in values for seed in range(4)
    ]


def reads(number, varied, columns):
    Row.reads = 0
    text = text_tables.table(rows(number, varied), columns=columns)
    assert text.count("51.5 ± 1.3") == number // 4
    return Row.reads


@pytest.mark.parametrize("columns", [(), ("accuracy",)])
@pytest.mark.parametrize("varied", ["trainer", "dataset", "backbone", "shots"])
def test_twice_the_runs_are_twice_the_reads(varied, columns):
    small, large = (reads(number, varied, columns) for number in (400, 800))
    assert large < 2.2 * small
