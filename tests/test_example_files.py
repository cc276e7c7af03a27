"""The examples run offline in less than a minute each, and docs/EXAMPLES.md shows them as they are."""

import importlib.util
import re
import resource
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
BARS = re.compile(r"[#=-]{2,}|#")  # bars and rules, whose lengths follow the numbers

spec = importlib.util.spec_from_file_location("build_examples", ROOT / "scripts" / "build_examples.py")
build_examples = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build_examples)


def sections() -> list[str]:
    """Return the sections of the page, without its introduction."""
    page = build_examples.PAGE.read_text(encoding="utf-8")
    return re.split(r"^(?=## )", page, flags=re.MULTILINE)[1:]


def outputs(section: str) -> list[str]:
    return re.findall(r"```text\n(.*?)```", section, re.DOTALL)


def differences(shown: str, found: str) -> list[str]:
    """Return how two sections differ: text and code in anything, outputs in words, or in a number by more than 5%.

    Another processor or PyTorch may round differently, which moves an accuracy by some images.
    """
    masked = [re.sub(r"```text\n.*?```", "", section, flags=re.DOTALL).strip() for section in (shown, found)]
    if masked[0] != masked[1] or len(outputs(shown)) != len(outputs(found)):
        return ["the text or the code"]
    wrong = []
    for old, new in zip(map(clean, outputs(shown)), map(clean, outputs(found)), strict=True):
        if NUMBER.sub("0", old).split() != NUMBER.sub("0", new).split():
            wrong.append(f"{old!r} is {new!r}")
            continue
        pairs = zip(NUMBER.findall(old), NUMBER.findall(new), strict=True)
        wrong += [f"{a} is {b}" for a, b in pairs if float(b) != pytest.approx(float(a), rel=0.05, abs=0.02)]
    return wrong


def clean(output: str) -> str:
    return BARS.sub(" ", output)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_the_page_shows_it(path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    section = build_examples.run(path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 60  # other programs do not count
    (shown,) = (section for section in sections() if f"examples/{path.name}" in section)
    assert differences(shown, section) == [], "run: python scripts/build_examples.py"


def test_the_page_has_all_examples_in_the_order_of_their_titles():
    titles = [build_examples.read_cells(path)[0].content.split("\n")[0] for path in EXAMPLES]
    assert [section.split("\n")[0] for section in sections()] == sorted(f"#{title}" for title in titles)
    assert build_examples.PAGE.read_text(encoding="utf-8").startswith(build_examples.INTRODUCTION)


# --- the builder ------------------------------------------------------------------------------------

SOURCE = """# %% [markdown]
# # A title
#
# Text.

# %%
from pathlib import Path

x = 2
print(Path("a").resolve())

# %%
x += 1

# %% [markdown]
# ## More

# %%
print(x)  # 3
"""


def test_cells_become_text_code_and_output(tmp_path, monkeypatch):
    (tmp_path / "x.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    assert build_examples.build_section(tmp_path / "x.py").split("\n\n") == [
        *("## A title", "[`examples/x.py`](../examples/x.py)", "Text."),
        *("```python\nfrom pathlib import Path", 'x = 2\nprint(Path("a").resolve())\n```', "```text\na\n```"),
        *("```python\nx += 1\n```", "### More", "```python\nprint(x)  # 3\n```", "```text\n3\n```\n"),
    ]


def test_an_error_names_its_line_in_the_example(tmp_path, monkeypatch):
    (tmp_path / "x.py").write_text(SOURCE.replace("x += 1", "x += y"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NameError) as caught:
        build_examples.build_section(tmp_path / "x.py")
    assert caught.traceback[-1].lineno + 1 == SOURCE.splitlines().index("x += 1") + 1


@pytest.mark.parametrize(
    "source", ["", "import os\n# %% [markdown]\n# # A\n", "# %%\nx = 1\n", "# %% [markdown]\n# A\n"]
)
def test_a_file_without_a_title_is_refused(source, tmp_path):
    (tmp_path / "x.py").write_text(source)
    with pytest.raises(ValueError, match=r"x\.py"):
        build_examples.read_cells(tmp_path / "x.py")


SHOWN = "## A\n\n```python\nf(1)\n```\n\n```text\nerror 50.0 ####\n---|--:\n```\n"


@pytest.mark.parametrize(
    ("old", "new", "differs"),
    [
        *(("50.0", "51.0", False), ("####", "###", False), ("---|--:", "----|---:", False), ("50.0", "60.0", True)),
        *(("error", "errors", True), ("f(1)", "f(2)", True), ("## A", "## B", True), ("50.0", "", True)),
    ],
)
def test_differences_of_sections(old, new, differs):
    assert bool(differences(SHOWN, SHOWN.replace(old, new))) == differs
