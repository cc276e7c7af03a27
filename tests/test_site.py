"""The generated pages of the documentation site have every command, config key and public name."""

import importlib
import importlib.util
import re
from pathlib import Path

import pytest
import yaml

import unskew
from unskew import config
from unskew.cli import main

ROOT = Path(__file__).resolve().parent.parent

spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "scripts" / "docs_hooks.py")
docs_hooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(docs_hooks)

ROW = re.compile(r"^\| `([\w.]+)` \| (.*?) \| (.*) \|$", re.MULTILINE)


def help_of(words, capsys, monkeypatch):
    """Return what a command prints with --help, in the width of the page."""
    monkeypatch.setenv("COLUMNS", "84")
    with pytest.raises(SystemExit):
        main.main([*words, "--help"])
    return capsys.readouterr().out


def test_the_page_of_commands_has_the_help_of_each(capsys, monkeypatch):
    page, found = docs_hooks.commands_page(), []
    unseen = [[]]
    while unseen:
        words = unseen.pop()
        text = help_of(words, capsys, monkeypatch)
        assert f"## {' '.join(['unskew', *words])}\n" in page and text in page
        found.append(" ".join(words))
        group = re.search(r"^positional arguments:\n  [A-Z]+\n((?:    .*\n)+)", text, re.MULTILINE)
        unseen += [[*words, name] for name in re.findall(r"^    (\w+)", group[1] if group else "", re.MULTILINE)]
    assert {"train", "sweep", "protocol", "table", "report", "predict", "export", "adjust"} < set(found)
    assert {"data verify", "data import hf", "micro pretrain"} < set(found)
    assert "--theirs" in page.partition("## python -m unskew.dassl\n")[2]


def test_the_page_of_config_keys_has_all_with_default_and_meaning():
    """A new key needs a comment at its place in unskew/config/defaults.py or in the YAML of its trainer."""
    rows = ROW.findall(docs_hooks.config_page())
    known = dict(config.flatten(config.all_defaults())) | dict(config.flatten(config.COMMON))
    assert {key for key, _, _ in rows} == set(known)
    assert [key for key, _, meaning in rows if not meaning.strip()] == []
    by_key = {key: default for key, default, _ in rows if not key.startswith("TRAINER.")}
    assert by_key["OPTIM.LR"] == "`0.002` (`0.0003`)" and by_key["INPUT.VIEWS"] == "`4`"
    assert [key for key, default in by_key.items() if str(known[key]) not in default] == []


@pytest.mark.parametrize("trainer", config.names("trainers"))
def test_the_page_of_config_keys_has_the_file_of_each_trainer(trainer):
    page = docs_hooks.config_page()
    section = re.split(r"^##", page.partition(f"\n### {trainer}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    path = ROOT / "configs" / "trainers" / f"{trainer}.yaml"
    values = dict(config.flatten(yaml.safe_load(path.read_text(encoding="utf-8")) or {}))
    rows = {key: default for key, default, _ in ROW.findall(section)}
    expected = {key: value for key, value in values.items() if key.startswith("TRAINER.")}
    assert rows.keys() == expected.keys()
    assert [key for key, value in expected.items() if (str(value) or "''") not in rows[key]] == []
    assert all(line.strip() in section for line in path.read_text(encoding="utf-8").splitlines())


def test_the_pages_of_the_api_have_every_public_name():
    pages = docs_hooks.api_pages()
    names = re.findall(r"^::: unskew\.(\w+)$", pages["reference/unskew.md"], re.MULTILINE)
    assert sorted(names) == sorted(unskew.__all__)
    for package, path in docs_hooks.PACKAGES.items():
        public = importlib.import_module(f"unskew.{package}").__all__
        own = re.findall(r"^::: unskew\.[\w.]*?(\w+)$", pages[path], re.MULTILINE)
        linked = re.findall(r"unskew\.md#unskew\.(\w+)", pages[path])
        assert sorted([*own, *linked]) == sorted(public)


def test_the_navigation_has_every_page():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    named = set(re.findall(r": ([\w/]+\.md)$", navigation, re.MULTILINE))
    written = {path.name for path in (ROOT / "docs").glob("*.md")}
    generated = {"reference/commands.md", "reference/config.md", *docs_hooks.api_pages()}
    assert named == written | generated | set(docs_hooks.OUTSIDE.values())
