"""The files and commands in CONTRIBUTING.md work in a copy of the checkout."""

import json
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
END = "=== end of a command ==="
ELSEWHERE = {  # commands that other tests run, or that contain them
    "bash scripts/test.sh",
    "bash scripts/test.sh --all",
    "bash scripts/test.sh -k prior",
    "bash scripts/test.sh -k mymethod",
    *("rm -rf dist", "python -m build", "twine check --strict dist/*"),  # test_packaging.py
    *("python -m venv clean", "clean/bin/pip install dist/*.whl"),
    "HOME=$(mktemp -d) clean/bin/unskew train -d digits -t GLA --shots 16",
}


def commands(section: str) -> list[list[str]]:
    """Return the words of the ``unskew`` commands in a section of the page."""
    text = PAGE.split(f"## {section}\n")[1].split("\n## ")[0]
    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("unskew ")]


class Checkout:
    """A copy of the checkout; commands run beside it, with the default folders ``data`` and ``output``."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.source = folder, folder / "source"
        for name in ("unskew", "trainers", "datasets", "configs", "tests"):
            shutil.copytree(ROOT / name, self.source / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("setup.py", "pyproject.toml"):
            shutil.copy(ROOT / name, self.source)

    def write(self) -> None:
        for name, text in FILES.items():
            assert not (self.source / name).exists()
            (self.source / name).write_text(text, encoding="utf-8")

    def changed(self) -> list[str]:
        """The files that the copy has and the checkout has not, or with another content."""
        files = [path for path in self.source.rglob("*") if path.is_file() and path.suffix in (".py", ".pyi", ".yaml")]
        names = [str(path.relative_to(self.source)) for path in files]
        return sorted(name for name in names if not self._is_in_checkout(name))

    def _is_in_checkout(self, name: str) -> bool:
        return (ROOT / name).is_file() and (ROOT / name).read_bytes() == (self.source / name).read_bytes()

    def run(self, *lines: list[str]) -> list[str]:
        """Run ``unskew`` commands from the copy, with one epoch and one view; they must succeed. Return their outputs.

        They share one process, because importing torch takes longer than most of them.
        """
        short = ["OPTIM.MAX_EPOCH", "1", "INPUT.VIEWS", "1"]
        lines = tuple([*words, *short] if words[0] == "train" else words for words in lines)
        code = "import sys, json\nfrom unskew.cli.main import main\nfor words in json.loads(sys.argv[1]):\n"
        code += f"    code = main(words)\n    print('{END}', flush=True)\n    assert code == 0, words"
        return self.python("-c", code, json.dumps(lines)).split(END)[:-1]

    def python(self, *words: str, folder: Path | None = None) -> str:
        """Run Python on the copy's package; it must succeed. Return its output."""
        done = subprocess.run(
            [sys.executable, *words],
            cwd=folder or self.folder,
            env={**os.environ, "PYTHONPATH": str(self.source), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    copy = Checkout(tmp_path_factory.mktemp("contributing"))
    copy.write()
    return copy


def accuracy(output: str) -> float:
    """The accuracy that ``unskew train`` prints last."""
    return float(re.findall(r"^accuracy (\d+\.\d)%", output, re.MULTILINE)[-1])


def test_the_page_has_two_files_for_each_and_a_test():
    assert list(FILES) == [
        "trainers/mymethod.py",
        "configs/trainers/MyMethod.yaml",
        "tests/trainers/test_mymethod.py",
        "datasets/gardens.py",
        "configs/datasets/gardens.yaml",
    ]


def test_every_command_of_the_page_is_run():
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL))
    lines = {shlex.join(shlex.split(line, comments=True)) for line in blocks.splitlines() if line.strip()}
    run = [words for section in ("Add a method", "Add a dataset") for words in commands(section)]
    assert lines == {shlex.join(shlex.split(line)) for line in ELSEWHERE} | {shlex.join(["unskew", *w]) for w in run}


def test_the_files_pass_ruff(tmp_path):
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(FILES[name], encoding="utf-8")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for words in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *words, "--no-cache", "."]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_only_the_files_of_the_page_differ_and_both_names_are_found(checkout):
    assert checkout.changed() == sorted(FILES)
    code = "import unskew; print('MyMethod' in unskew.list_trainers(), 'gardens' in unskew.list_datasets())"
    assert checkout.python("-c", code).split() == ["True", "True"]


def test_the_contract_tests_find_the_method_and_the_dataset(checkout):
    tests = ("tests/trainers/test_contract.py", "tests/data/test_catalogue.py")
    names = "MyMethod or every_dataset or every_source"
    report = checkout.python("-m", "pytest", "-vv", *tests, "-k", names, folder=checkout.source)
    assert "test_contract[MyMethod] PASSED" in report and "every_dataset" in report and "every_source" in report


def test_the_test_of_the_new_method_passes(checkout):
    report = checkout.python("-m", "pytest", "-vv", "tests/trainers/test_mymethod.py", folder=checkout.source)
    assert "test_the_logits_are_the_formula PASSED" in report


def test_a_new_method_is_trained_alone_and_as_the_base_of_gla(checkout):
    alone, over = checkout.run(*commands("Add a method"))
    assert 50 < accuracy(alone) < 100
    assert 50 < accuracy(over) < 100
    for name, alpha in (("MyMethod", 0.2), ("GLA-MyMethod", 0.5)):
        config = checkout.folder / "output" / "digits" / name / "micro_1shots" / "seed1" / "config.yaml"
        assert f"ALPHA: {alpha}\n" in config.read_text(encoding="utf-8")


def test_a_new_dataset_is_listed_prepared_verified_and_trained_on(checkout):
    draw_archive(checkout.folder / "data" / "gardens" / "images.zip")
    listing, *others = commands("Add a dataset")
    missing, prepared, ready, verified, trained = checkout.run(listing, others[0], listing, *others[1:])
    assert re.search(r"\| gardens +\| missing +\| +2 \| +20 \|", missing)
    assert "gardens" in prepared
    assert re.search(r"\| gardens +\| ready ", ready)
    assert re.search(r"\| train +\| +10 \| +2 \| +5 \| +5 \|", verified)
    assert 0 <= accuracy(trained) <= 100


def draw_archive(path: Path) -> None:
    """Write the archive that the page's dataset downloads: ten images of each of two classes."""
    rng = np.random.default_rng(0)
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(20):
            with archive.open(f"images/{('flower', 'insect')[number % 2]}/{number}.png", "w") as file:
                Image.fromarray(rng.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(file, "PNG")
