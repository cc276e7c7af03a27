"""Docstrings and pages avoid openings and phrases that are hard to read."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("unskew", "trainers", "datasets", "benchmarks", "examples", "scripts", "tests")
MODULES = [ROOT / "setup.py", ROOT / "train.py", *(p for name in FOLDERS for p in sorted((ROOT / name).rglob("*.py")))]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]

OPENING = re.compile(r"(What|Where|Which|Those|That|Whether)\b")
PHRASE = re.compile(
    r"\b(in place of|says so|goes on|anew|by the way|come by|comes by|is said|nobody's business|whoever)\b"
)


def docstrings(path: Path) -> list[tuple[int, str]]:
    """Return the line and the text of each docstring in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    return [(getattr(node, "lineno", 1), text) for node in nodes if (text := ast.get_docstring(node))]


def test_docstrings_open_with_a_verb_or_a_noun():
    assert [f"{path}:{line}" for path in MODULES for line, text in docstrings(path) if OPENING.match(text)] == []


def test_texts_use_plain_phrases():
    for path in {*MODULES, *PAGES} - {Path(__file__).resolve()}:
        lines = path.read_text(encoding="utf-8").replace("_", " ").lower().splitlines()
        assert [f"{path}:{number}" for number, line in enumerate(lines, 1) if PHRASE.search(line)] == []


def test_the_checks_find_an_opening_and_a_phrase():
    assert OPENING.match("Where the file is.") and PHRASE.search("4 gib in place of 9")
