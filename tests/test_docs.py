"""What the README and the docs tell people to type is understood."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unskew import config
from unskew.cli import main
from unskew.data.catalogue import dataset_class
from unskew.runs.launch import check_shots

ROOT = Path(__file__).resolve().parent.parent
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(start: str) -> list[str]:
    """The commands of all pages that start so; test_contributing.py runs those of CONTRIBUTING.md."""
    pages = [path.read_text(encoding="utf-8") for path in DOCS if path.name != "CONTRIBUTING.md"]
    text = "\n".join(pages).replace("\\\n", " ")
    return sorted({line.strip() for line in text.splitlines() if line.strip().startswith(start)})


@pytest.mark.parametrize("command", commands("unskew ") + commands("python train.py "))
def test_a_command_of_the_docs_parses(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    program, *words = shlex.split(command, comments=True)
    arguments = main.build_parser().parse_args(words if program == "unskew" else ["train", *words[1:]])
    if arguments.command is main._train and not arguments.plugin:
        assert main._described_run(arguments).config.TRAINER.NAME == arguments.trainer


@pytest.mark.parametrize("command", commands("bash scripts/run_fewshot.sh "))
def test_a_script_call_of_the_docs_names_what_exists(command):
    _, _, dataset, shots, *trainers = shlex.split(command, comments=True)
    if dataset != "DATASET":
        config.check_name("datasets", dataset)
        assert shots == "all" or all(check_shots(int(k)) for k in shots.split())
        assert all(config.check_name("trainers", trainer) for trainer in trainers)


@pytest.mark.parametrize("command", commands("bash scripts/run_longtail.sh "))
def test_a_long_tailed_script_call_of_the_docs_names_what_exists(command):
    _, _, dataset, *trainers = shlex.split(command, comments=True)
    if dataset != "DATASET":
        config.check_name("datasets", dataset)
        assert all(config.check_name("trainers", trainer) for trainer in trainers)


def test_the_three_lines_for_ones_own_images_run(tmp_path, monkeypatch, capsys):
    """As they stand in the README, but for the backbone, whose weights are not at hand, and fewer epochs."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").split("## Your own images")[1].split("```")[1].splitlines()
    rng = np.random.default_rng(0)
    for name in ("one", "two", "seven"):
        for number in range(12):
            path = tmp_path / "birds" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNSKEW_CACHE", str(tmp_path / "cache"))
    for line, short in zip(lines[1:], ("", " --opts OPTIM.MAX_EPOCH 2 INPUT.VIEWS 1", ""), strict=True):
        assert main.main(shlex.split(line.replace("ViT-B/16", "micro").removeprefix("unskew ") + short)) == 0
    table = capsys.readouterr().out
    assert all(name in table.splitlines()[-1 - row] for row, name in enumerate(("ZeroshotCLIP", "GLA", "CoOp")))
    assert "folder-birds" in table and "macro f1" in table


def test_the_table_of_datasets_has_their_cards():
    rows = (ROOT / "docs" / "DATASETS.md").read_text(encoding="utf-8").splitlines()
    for name in config.names("datasets"):
        dataset = dataset_class(name)
        (row,) = (row for row in rows if row.startswith(f"| `{name}` |"))
        if info := getattr(dataset, "info", None):
            prompt = "80" if getattr(dataset, "imagenet_templates", False) else dataset.template
            images = f"{info.train:,} / {info.val:,} / {info.test:,}"
            cells = (
                f"`{name}`",
                f"`{dataset.dataset_dir}`",
                f"{info.classes:,}",
                images,
                prompt,
                info.size,
                info.licence,
            )
            assert row == f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target
