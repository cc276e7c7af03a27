"""docs/RESULTS.md shows the published numbers of the package, and its commands have known names."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import yaml
from report_folders import make_run

from unskew import config
from unskew.runs.tables import published

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "RESULTS.md"
TEXT = PAGE.read_text(encoding="utf-8")
COMMANDS = re.findall(r"^(?:[A-Z]+=\S+ )?bash scripts/.*$", TEXT, re.MULTILINE)

spec = importlib.util.spec_from_file_location("build_results", ROOT / "scripts" / "build_results.py")
build_results = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build_results)


def test_the_first_sentence_tells_that_nothing_has_been_reproduced_yet():
    first = TEXT.split("\n\n")[1].split(". ")[0]
    assert {"No", "published", "reproduced", "real", "data", "yet"} <= set(first.split())


def known_numbers():
    """Return all numbers in configs/published.yaml, and the means that follow from them."""
    found = published.results()
    eleven = yaml.safe_load((ROOT / "configs" / "published.yaml").read_text())["few_shot_11"]
    numbers = {result.mean for result in found} | {100 - result.mean for result in found}
    numbers |= {result.deviation for result in found if result.deviation}
    for k in (1, 2, 4, 8, 16):
        here = [r for r in found if (r.backbone, r.shots, r.metric) == ("RN50", k, "accuracy")]
        numbers |= {r.mean for r in published.means(here, eleven)}
    tree = yaml.safe_load((ROOT / "configs" / "published.yaml").read_text())
    numbers |= {
        n for gain in tree["gains"] for n in ([gain["points"]] if isinstance(gain["points"], float) else gain["points"])
    }
    numbers |= {value for group in tree["results"] for of in group["numbers"].values() for value in seeds(of)}
    return {f"{number:.{digits}f}" for number in numbers for digits in (1, 2)}


def seeds(of_datasets):
    return [n for value in of_datasets.values() if isinstance(value, dict) for n in value.get("of_seeds", [])]


def shown_numbers(text):
    """Return the numbers with decimals of a text, without the identifiers of arXiv."""
    return re.findall(r"(?<![\w.])(?:\d+)?\.\d{1,2}(?![\w.]*\d)", re.sub(r"arXiv \S+|Seeds?\b.*", "", text))


def test_every_number_of_the_page_is_a_published_one():
    numbers = [n if n[0] != "." else f"0{n}" for n in shown_numbers(TEXT.split("## All methods")[0])]
    assert len(numbers) > 120
    assert [n for n in numbers if n not in known_numbers()] == []


def test_a_wrong_number_would_be_noticed():
    assert shown_numbers("68.73 ± .04 (arXiv 2310.08106) 1.5") == ["68.73", ".04", "1.5"]
    assert "62.34" not in known_numbers() and "62.33" in known_numbers()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_has_known_names(command):
    words = shlex.split(command)
    settings = [word for word in words if re.match("[A-Z]+=", word)]
    assert all(config.check_backbone(word.split("=")[1]) for word in settings)
    _, script, *names = words[len(settings) :]
    assert (ROOT / script).is_file()
    known = {*config.names("datasets"), *config.names("trainers"), "all"}
    assert [name for name in names if name not in known and not re.fullmatch(r"-?[\d ]+", name)] == []


def test_every_table_that_the_page_lists_has_a_section_with_a_command():
    sections = {re.sub(r"[^a-z0-9 -]", "", part.split("\n")[0].lower()).replace(" ", "-"): part
                for part in TEXT.split("\n## ")[1:]}  # fmt: skip
    anchors = re.findall(r"\]\(#([\w-]+)\)", TEXT)
    assert len(anchors) > 7
    assert [anchor for anchor in anchors if "```bash" not in sections.get(anchor, "")] == []


def test_the_table_of_the_embedded_datasets_is_written_between_the_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(TEXT, encoding="utf-8")
    for dataset in ("digits", "shapes"):
        make_run(tmp_path / "output", "GLA", 4, dataset=dataset)
    for _ in range(2):
        build_results.build(str(tmp_path / "output"), page=page)
    before, rest = page.read_text(encoding="utf-8").split("<!-- results:begin -->")
    assert before == TEXT.split("<!-- results:begin -->")[0]
    shown, after = rest.split("<!-- results:end -->")
    assert after == TEXT.split("<!-- results:end -->")[1]
    assert "on digits" in shown and "average" in shown and "| GLA" in shown and "[" in shown
