"""What the README and the docs tell people to type is understood."""

import re
import shlex
from pathlib import Path

import pytest

from unskew import cli, config

ROOT = Path(__file__).resolve().parent.parent
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(start: str) -> list[str]:
    text = "\n".join(path.read_text(encoding="utf-8") for path in DOCS).replace("\\\n", " ")
    return sorted({line.strip() for line in text.splitlines() if line.strip().startswith(start)})


@pytest.mark.parametrize("command", commands("unskew ") + commands("python train.py "))
def test_a_command_of_the_docs_parses(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    program, *words = shlex.split(command, comments=True)
    arguments = cli.build_parser().parse_args(words if program == "unskew" else ["train", *words[1:]])
    if arguments.command is cli._train:
        dataset = arguments.dataset_config_file or arguments.dataset
        assert cli._run(dataset, arguments.trainer, arguments).config().TRAINER.NAME == arguments.trainer


@pytest.mark.parametrize("command", commands("bash scripts/run_fewshot.sh "))
def test_a_script_call_of_the_docs_names_what_exists(command):
    _, _, dataset, shots, *trainers = shlex.split(command, comments=True)
    if dataset != "DATASET":
        config.check_name("datasets", dataset)
        assert shots == "all" or all(cli.check_shots(k) for k in shots.split())
        assert all(config.check_name("trainers", trainer) for trainer in trainers)


@pytest.mark.parametrize("command", commands("bash scripts/run_longtail.sh "))
def test_a_long_tailed_script_call_of_the_docs_names_what_exists(command):
    _, _, dataset, *trainers = shlex.split(command, comments=True)
    if dataset != "DATASET":
        config.check_name("datasets", dataset)
        assert all(config.check_name("trainers", trainer) for trainer in trainers)


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target
