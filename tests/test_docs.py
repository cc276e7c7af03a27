"""The commands, names, paths, code and tables of the README and the docs are right."""

import importlib.util
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax

import unskew
from unskew import config
from unskew.cli import main, train
from unskew.data.catalogue import dataset_class
from unskew.runs.launch import check_shots

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def commands(start: str) -> list[str]:
    """Return the commands of all pages with this start; test_contributing.py runs those of CONTRIBUTING.md."""
    pages = [path.read_text(encoding="utf-8") for path in DOCS if path.name != "CONTRIBUTING.md"]
    text = "\n".join(pages).replace("\\\n", " ")
    return sorted({line.strip() for line in text.splitlines() if line.strip().startswith(start)})


@pytest.mark.parametrize("command", commands("unskew ") + commands("python train.py "))
def test_a_command_of_the_docs_parses(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    program, *words = shlex.split(command, comments=True)
    arguments = main.parse(words if program == "unskew" else ["train", *words[1:]])
    if arguments.command is train.run and not (arguments.plugin or arguments.eval_only):
        assert train.described_run(arguments).config.TRAINER.NAME == arguments.trainer


@pytest.mark.parametrize("command", commands("bash scripts/run_fewshot.sh "))
def test_a_few_shot_script_of_the_docs_has_known_names(command):
    _, _, dataset, shots, *trainers = shlex.split(command, comments=True)
    if dataset != "DATASET":
        assert dataset == "all" or config.check_name("datasets", dataset)
        assert shots == "all" or all(check_shots(int(k)) for k in shots.split())
        assert all(config.check_name("trainers", trainer) for trainer in trainers)


@pytest.mark.parametrize("command", commands("bash scripts/run_longtail.sh "))
def test_a_long_tail_script_of_the_docs_has_known_names(command):
    _, _, dataset, *trainers = shlex.split(command, comments=True)
    if dataset != "DATASET":
        config.check_name("datasets", dataset)
        assert all(config.check_name("trainers", trainer) for trainer in trainers)


@pytest.mark.parametrize(
    "command", [c for name in ("cross_dataset", "domain_generalisation") for c in commands(f"bash scripts/{name}.sh ")]
)
def test_a_script_with_targets_of_the_docs_has_known_datasets(command):
    for dataset in shlex.split(command, comments=True)[2:]:
        config.check_name("datasets", dataset)


def test_the_three_commands_for_your_own_images_run(tmp_path, monkeypatch, capsys):
    """The README's commands, with a backbone that needs no download, two epochs and one view."""
    section = README.split("## Use your own images")[1]
    lines = section.split("```")[1].splitlines()
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


def test_the_table_of_datasets_agrees_with_their_code():
    rows = (ROOT / "docs" / "DATASETS.md").read_text(encoding="utf-8").splitlines()
    listed = {match[1]: row for row in rows if (match := re.match(r"\| `(\w+)` \| `", row))}
    assert {"digits", "eurosat", "imagenet"} <= set(listed) <= set(config.names("datasets"))
    for name, row in listed.items():
        dataset = dataset_class(name)
        if info := getattr(dataset, "info", None):
            prompt = "80" if getattr(dataset, "imagenet_templates", False) else dataset.template
            images = f"{info.train:,} / {info.val:,} / {info.test:,}"
            folder, classes = f"`{dataset.dataset_dir}`", f"{info.classes:,}"
            cells = (f"`{name}`", folder, classes, images, prompt, info.size, info.licence)
            assert row == f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_have_a_target(path):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


def is_name(dotted: str) -> bool:
    """Return whether a dotted name is a module, or an attribute of a module or class."""
    value, parts = unskew, dotted.split(".")
    for depth, part in enumerate(parts[1:], start=2):
        if hasattr(value, part):
            value = getattr(value, part)
        elif not hasattr(value, "__path__") or importlib.util.find_spec(".".join(parts[:depth])) is None:
            return False
        elif depth < len(parts):  # the last module need not be importable: one needs an installed Dassl
            value = importlib.import_module(".".join(parts[:depth]))
    return True


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_dotted_names_exist(path):
    names = set(re.findall(r"\bunskew(?:\.[A-Za-z]\w*)+", path.read_text(encoding="utf-8")))
    assert [name for name in sorted(names) if not is_name(name)] == []


@pytest.mark.parametrize("name", ["unskew.gla", "unskew.debias.gla.combined", "unskew.GLA.train_it"])
def test_a_dotted_name_that_does_not_exist_is_noticed(name):
    assert not is_name(name)


FOLDERS = "unskew|configs|benchmarks|examples|scripts|trainers|datasets|tests|docs"
NEW_FILES = {  # the files that CONTRIBUTING.md tells the reader to create
    "trainers/mymethod.py",
    "configs/trainers/MyMethod.yaml",
    "tests/trainers/test_mymethod.py",
    "datasets/gardens.py",
    "configs/datasets/gardens.yaml",
}
OTHER_FILES = {f"configs/trainers/CoOp/{name}.yaml" for name in ("rn50_ep50", "vit_b32")}  # in a clone of CoOp


# The paths of CODEBASES.md are in clones of the codebases.
@pytest.mark.parametrize("path", [p for p in DOCS if p.name != "CODEBASES.md"], ids=lambda path: path.name)
def test_repository_paths_exist(path):
    text = path.read_text(encoding="utf-8")
    paths = set(re.findall(rf"(?<![\w./-])((?:{FOLDERS})/[\w./-]*\w)", text)) - NEW_FILES - OTHER_FILES
    assert [name for name in sorted(paths) if not (ROOT / name).exists()] == []


def python_blocks(path: Path) -> str:
    """Return the Python code of a page, one block after the other."""
    return "\n".join(re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL))


def test_the_python_code_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    """The reader's arrays are random: two models of 4 classes, of which the zero-shot one prefers the first.

    A logit has unit variance, and a mean of 2 for its class, so that the exact logits are twice these: T is 1/2, and
    log q at this temperature is twice the bias.
    """
    rng = np.random.default_rng(0)
    y_val, y_test = np.arange(200) % 4, np.arange(400) % 4
    bias = np.log([0.6, 0.2, 0.1, 0.1])
    zs_val, zs = (rng.normal(size=(len(y), 4)) + 2 * np.eye(4)[y] + bias for y in (y_val, y_test))
    ft_val, ft = (rng.normal(size=(len(y), 4)) + 2 * np.eye(4)[y] for y in (y_val, y_test))
    names = {"zs_val": zs_val, "ft_val": ft_val, "y_val": y_val, "zs": zs, "ft": ft}
    monkeypatch.chdir(tmp_path)
    code = python_blocks(ROOT / "README.md")
    before, _, after = code.partition("run = ")  # the second section uses `labels` for those of a run
    exec(before, names)
    assert (names["labels"] == y_test).mean() > (zs.argmax(1) == y_test).mean() + 0.1
    assert names["probabilities"].shape == (400, 4)
    np.testing.assert_allclose(np.exp(names["log_q"]), softmax(2 * bias), atol=0.05)
    exec(f"run = {after}", names)
    assert names["logits"].shape == (536, 10) and names["frame"]["accuracy"].tolist() == [
        names["run"].metrics["accuracy"]
    ]
    assert str(names["run"].metrics["p_few"])[:5] in capsys.readouterr().out


@pytest.mark.parametrize("name", ["GLA", "ADJUST", "FAST_TEXT", "REPORT", "SCALE"])
def test_the_python_code_of_the_docs_runs(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(python_blocks(ROOT / "docs" / f"{name}.md"), {})
    assert capsys.readouterr().out
