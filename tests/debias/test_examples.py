"""The examples in the docstrings of `unskew.debias` and the Python blocks of its pages run."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", ["combination", "gla", "io", "metrics", "mixture", "prior", "sources", "temperature"])
def test_docstring_examples(name):
    outcome = doctest.testmod(importlib.import_module(f"unskew.debias.{name}"))
    assert outcome.attempted > 0
    assert outcome.failed == 0


@pytest.mark.parametrize("page", ["ADJUST.md", "GLA.md"])
def test_python_blocks_of_the_docs(page, capsys):
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    exec(compile(block, page, "exec"), {})
    assert capsys.readouterr().out
