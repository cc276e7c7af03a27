"""The files and commands in CONTRIBUTING.md for a new method and a new dataset work in a copy of the checkout."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"```(?:python|yaml)\n# (\S+\.(?:py|yaml))\n.*?```", re.DOTALL)
FILES = {match[1]: match[0].split("\n", maxsplit=1)[1].removesuffix("```") for match in BLOCK.finditer(PAGE)}


def commands(section: str) -> list[list[str]]:
    """The words of the ``unskew`` commands in a section of the page."""
    text = PAGE.split(f"## {section}\n")[1].split("\n## ")[0]
    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("unskew ")]


class Checkout:
    """A copy of the checkout; commands run beside it, with the default folders ``data`` and ``output``."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.source = folder, folder / "source"
        for name in ("unskew", "trainers", "datasets", "configs"):
            shutil.copytree(ROOT / name, self.source / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "setup.py", self.source)

    def write(self, *names: str) -> None:
        for name in names:
            assert not (self.source / name).exists()
            (self.source / name).write_text(FILES[name], encoding="utf-8")

    def run(self, words: list[str]) -> str:
        """Run ``unskew`` from the copy, a training for one epoch; it must succeed. Return its output."""
        short = ["OPTIM.MAX_EPOCH", "1"] if words[0] == "train" else []
        done = subprocess.run(
            [sys.executable, "-m", "unskew.cli", *words, *short],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(self.source), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def accuracy(output: str) -> float:
    """The accuracy that ``unskew train`` prints last."""
    return float(re.findall(r"^accuracy (\d+\.\d)%", output, re.MULTILINE)[-1])


def test_the_page_has_two_files_for_each():
    assert list(FILES) == [
        "trainers/mymethod.py",
        "configs/trainers/MyMethod.yaml",
        "datasets/mydataset.py",
        "configs/datasets/mydataset.yaml",
    ]


def test_the_files_pass_ruff(tmp_path):
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(FILES[name], encoding="utf-8")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for words in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *words, "--no-cache", "."]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_new_method_is_trained_alone_and_as_the_base_of_gla(checkout):
    checkout.write("trainers/mymethod.py", "configs/trainers/MyMethod.yaml")
    alone, over = commands("Add a method")
    assert 50 < accuracy(checkout.run(alone)) < 100
    assert 50 < accuracy(checkout.run(over)) < 100
    for name, alpha in (("MyMethod", 0.2), ("GLA-MyMethod", 0.5)):
        config = checkout.folder / "output" / "digits" / name / "micro_1shots" / "seed1" / "config.yaml"
        assert f"ALPHA: {alpha}\n" in config.read_text(encoding="utf-8")


def test_a_new_dataset_is_listed_prepared_verified_and_trained_on(checkout):
    checkout.write("datasets/mydataset.py", "configs/datasets/mydataset.yaml")
    draw_archive(checkout.folder / "data" / "mydataset" / "images.zip")
    listed, prepared, verified, trained = commands("Add a dataset")
    assert re.search(r"\| mydataset +\| missing +\| +2 \| +20 \|", checkout.run(listed))
    checkout.run(prepared)
    assert re.search(r"\| mydataset +\| ready ", checkout.run(listed))
    assert re.search(r"\| train +\| +10 \| +2 \| +5 \| +5 \|", checkout.run(verified))
    assert 0 <= accuracy(checkout.run(trained)) <= 100


def draw_archive(path: Path) -> None:
    """Write the archive that the page's dataset downloads: ten images of each of two classes."""
    rng = np.random.default_rng(0)
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(20):
            with archive.open(f"images/{('flower', 'insect')[number % 2]}/{number}.png", "w") as file:
                Image.fromarray(rng.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(file, "PNG")
