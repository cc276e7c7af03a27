"""The script of the docs runs commands and writes what they print between the marks of a page."""

import importlib
import itertools
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = "# Title\n\n<!-- numbers:begin -->\nold\n<!-- numbers:end -->\n\nThe end.\n"
NAMES = ("zero-shot", "fine-tuned", "ensemble", "zs - log q, convex", "GLA, the paper's sum", "BCTS", "stacking")
NAMES += ("BCTS and stacking", "zs - log q, map", "GLA", "GLA, otter *")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("reproduce_docs")


@pytest.fixture
def page(tmp_path):
    (tmp_path / "page.md").write_text(PAGE, encoding="utf-8")
    return tmp_path / "page.md"


def one_line(text):
    return " ".join(text.replace("\\\n", " ").split())


def test_the_pages_have_the_marks_and_the_commands_of_the_entries(script):
    entries = {**script.ENTRIES, **script.SPEED}
    assert len(entries) == len(script.ENTRIES) + len(script.SPEED)
    marks = [mark for entry in entries.values() for mark in entry.marks]
    assert len(set(marks)) == len(marks) > 10
    for entry in entries.values():
        text = one_line((ROOT / entry.page).read_text(encoding="utf-8"))
        for mark in entry.marks:
            script.around(ROOT / entry.page, mark)
        for line in entry.command.strip().replace("\\\n", " ").splitlines():
            shown = re.sub(r" >/dev/null| --output-dir \w+", "", line)
            assert re.match(r"\w+=output", line) or one_line(shown) in text


def test_every_mark_of_the_docs_belongs_to_an_entry(script):
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    entries = [*script.ENTRIES.values(), *script.SPEED.values()]
    found = {mark for page in pages for mark in re.findall(r"<!-- (\w+):begin -->", page.read_text(encoding="utf-8"))}
    assert found == {"results", "emoji", *(mark for entry in entries for mark in entry.marks)}


def test_a_table_is_taken_from_the_output_of_a_command(script, page, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    printed = "log\n\nother\n\n| c |\n\nnumbers (%%)\n\n| a |\n|---|\n| 1 |\n"
    command = f"printf '{printed}'; ls scripts/build_results.py; python -V >out"
    for code, shown in ((False, "| a |\n|---|\n| 1 |"), (True, "```\nnumbers (%)\n\n| a |\n|---|\n| 1 |\n```")):
        take = {"numbers": lambda output, code=code: script.table(output, "numbers", code)}
        for _ in range(2):
            script.run(script.Entry("page.md", command, take), work, tmp_path)
        assert page.read_text(encoding="utf-8") == PAGE.replace("old", shown)
    assert (work / "out").read_text().split()[1] == sys.version.split()[0]


def test_tables_of_a_benchmark_are_joined_and_have_some_columns(script):
    tables = (
        "|   | s | x |\n|---|--:|---|\n| a | 1 | 2 |",
        "| n |\n|---|\n| 0 |",
        "|   | s | x |\n|---|---|---|\n| b | 3 | 4 |",
    )
    output = "\n\nlog\n\n".join(tables)
    assert script.printed(output, (0, 2), ("", "x")) == "|  | x |\n| --- | --- |\n| a | 2 |\n| b | 4 |"
    assert script.printed(output, (1,)) == "| n |\n| --- |\n| 0 |"


def test_lines_are_taken_from_the_output_of_a_command(script):
    assert script.lines("\na \nbias 1\nb\nc\n", "bias", 2) == "```\nbias 1\nb\n```"
    assert script.lines("\na \nb\n") == "```\na\nb\n```"


@pytest.mark.parametrize("text", ["no mark", PAGE.replace("begin", "start"), PAGE + PAGE, PAGE.replace("end --", "--")])
def test_a_missing_mark_is_an_error_before_the_command_runs(script, page, tmp_path, text):
    page.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="numbers:begin"):
        script.run(script.Entry("page.md", "touch ran; echo 1", {"numbers": script.lines}), tmp_path, tmp_path)
    assert not (tmp_path / "ran").exists() and page.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("command", ["echo other", "false"])
def test_a_page_stays_if_the_output_has_no_such_table(script, page, tmp_path, command):
    take = {"numbers": lambda output: script.table(output, "numbers")}
    with pytest.raises((ValueError, script.subprocess.CalledProcessError)):
        script.run(script.Entry("page.md", command, take), tmp_path, tmp_path)
    assert page.read_text(encoding="utf-8") == PAGE


def test_the_list_runs_nothing(script, monkeypatch, capsys):
    monkeypatch.setattr(script, "run", None)
    monkeypatch.setattr(sys, "argv", ["reproduce_docs.py", "--list"])
    script.main()
    printed = capsys.readouterr().out
    assert all(f"{name}: {entry.page}" in printed for name, entry in {**script.ENTRIES, **script.SPEED}.items())


def test_the_tables_of_the_worlds_have_the_form_of_the_page(script, monkeypatch):
    """Three families beside each other, from tables that the benchmark prints; accuracies are 10 times the shots."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    benchmark = importlib.import_module("prior_recovery")
    estimates = {"convex": {"slope": 0.5, "kl": 0.1}, "eigen": {"slope": 9.0}, "map": {"slope": 1.0, "coverage": 0.9}}
    families, shots = ("shipped", "exact, biased", "exact, no bias"), [1, 2]
    rows = [
        {
            "family": f,
            "shots": k,
            "accuracy": {name: 10.0 * k + (name == "GLA") for name in NAMES},
            "recovery": estimates,
        }
        for f, k, _ in itertools.product(families, shots, range(2))
    ]
    tables = (benchmark.accuracy_table, benchmark.recovery_table)
    output = "".join(f"\nAccuracy\n\n{make(rows, family, shots)}\n" for family in families for make in tables)
    first, second = script.families(output).split("\n\n")
    assert first.splitlines()[:4] == [
        "| shots | 1 | 2 |  | 1 | 2 |",
        "| --- | --- | --- | --- | --- | --- |",
        "|  | shipped |  |  | exact, biased |  |",
        "| zero-shot | 10.0 | 20.0 |  | 10.0 | 20.0 |",
    ]
    assert "| **GLA** | 11.0 | 21.0 |  | 11.0 | 21.0 |" in first and r"| GLA, otter \* | 10.0" in first
    assert "| GLA - best rival | +1.0 ± 0.0 | +1.0 ± 0.0 |" in second and "map" not in first
    assert script.recovery(output).splitlines() == [
        "| worlds | estimate |  | 1 | 2 |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {family} | `{name}` | {metric} | {value:.2f} | {value:.2f} |"
            for family in ("exact, biased", "shipped")
            for name, metric, value in (
                ("convex", "slope", 0.5),
                ("convex", "KL", 0.1),
                ("map", "slope", 1.0),
                ("map", "coverage", 0.9),
            )
        ),
    ]
