"""Codebases that bring a modified Dassl, and files that a script trusts."""

import re
import sys
import warnings
from pathlib import Path

import pytest
import torch
from items import dump
from plugin_traces import as_a_process
from test_dassl_run import finish, start

from unskew.dassl import finder
from unskew.runs import plugins

# A very small toolbox in the style of Dassl for PyTorch 1. Its schedule holds another one, and its dataset package
# imports a package that is seldom installed.
TOOLBOX = {
    "__init__.py": "__version__ = '0.6.3+mine'",
    "data/__init__.py": "",
    "data/datasets/__init__.py": "from wilds import get_dataset\nfrom .base_dataset import Datum",
    "data/datasets/base_dataset.py": "class Datum:\n    def __init__(self, path):\n        self._impath = path",
    "optim.py": """
from torch.optim.lr_scheduler import CosineAnnealingLR, _LRScheduler


class Warmup(_LRScheduler):
    def __init__(self, optimizer, after, epochs, last_epoch=-1, verbose=False):
        self.after, self.epochs = after, epochs
        super().__init__(optimizer, last_epoch, verbose)

    def get_lr(self):
        return self.after.get_last_lr() if self.last_epoch >= self.epochs else [1e-5 for _ in self.base_lrs]

    def step(self, epoch=None):
        if self.last_epoch >= self.epochs:
            self.after.step(epoch)
            self._last_lr = self.after.get_last_lr()
        else:
            super().step(epoch)
""",
    "engine.py": """
import os

import torch

from dassl.optim import CosineAnnealingLR, Warmup


def train(folder, epochs):
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = Warmup(optimizer, CosineAnnealingLR(optimizer, 6), 1)
    path, first = os.path.join(folder, "model.pth.tar"), 0
    if os.path.exists(path):
        state = torch.load(path, map_location="cpu")
        model.load_state_dict(state["state_dict"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["scheduler"])
        first = state["epoch"]
    for epoch in range(first, epochs):
        optimizer.zero_grad()
        loss = (model(torch.ones(4, 2)) - epoch).square().mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        print(f"epoch {epoch} loss {loss.item():.6f} lr {optimizer.param_groups[0]['lr']:.6f}")
    parts = {"state_dict": model, "optimizer": optimizer, "scheduler": schedule}
    torch.save({"epoch": epochs, **{name: part.state_dict() for name, part in parts.items()}}, path)
""",
}

SCRIPT = """
import os
import pickle
import sys

import dassl
from dassl.data.datasets import Datum

print("version", dassl.__version__)
if len(sys.argv) > 1:
    from dassl.engine import train

    train(sys.argv[1], int(sys.argv[2]))
    if not os.path.exists("items.pkl"):
        with open("items.pkl", "wb") as file:
            pickle.dump([Datum("a.png")], file)
    with open("items.pkl", "rb") as file:
        assert type(pickle.load(file)[0]) is Datum
"""


def write_codebase(root: Path, toolbox: str = "Dassl.pytorch") -> Path:
    for name, text in TOOLBOX.items():
        path = root / toolbox / "dassl" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "train.py").write_text(SCRIPT)
    return root


def lines_of(output):
    return re.findall(r"^epoch .*$", output, re.MULTILINE)


@pytest.mark.parametrize("toolbox", ["Dassl.pytorch", "."])
def test_their_dassl_is_named_and_not_used(toolbox, tmp_path):
    output = finish(start("train.py", cwd=write_codebase(tmp_path, toolbox)))
    said = [line for line in output.splitlines() if line.startswith("unskew:")]
    assert len(said) == 1
    assert str((tmp_path / toolbox).resolve()) in said[0] and "--theirs" in said[0]
    assert "version 0.6.3\n" in output


@pytest.mark.world
def test_their_dassl_trains_and_resumes_with_its_schedule(tmp_path):
    root = write_codebase(tmp_path / "code")
    for folder in ("whole", "resumed"):
        (tmp_path / folder).mkdir()
    whole = finish(start("--theirs", "train.py", tmp_path / "whole", 5, cwd=root))
    assert "version 0.6.3+mine" in whole
    assert re.search(r"^unskew: using the Dassl in .*Dassl\.pytorch/dassl/__init__\.py", whole, re.MULTILINE)
    assert "TypedStorage" not in whole and "Warning" not in whole
    halves = [finish(start("--theirs", "train.py", tmp_path / "resumed", epochs, cwd=root)) for epochs in (2, 5)]
    assert lines_of(halves[0]) + lines_of(halves[1]) == lines_of(whole)
    assert len(lines_of(whole)) == 5
    states = [torch.load(tmp_path / name / "model.pth.tar", weights_only=False) for name in ("whole", "resumed")]
    assert torch.equal(states[0]["state_dict"]["weight"], states[1]["state_dict"]["weight"])


def test_a_plugin_with_a_dassl_is_named(tmp_path, warned):
    root = write_codebase(tmp_path)
    (root / "mine.py").write_text("import dassl\nVERSION = dassl.__version__")
    with as_a_process(tmp_path):
        plugins.load([str(root / "mine.py")] * 2)
        assert sys.modules["mine"].VERSION == "0.6.3"
    said = [line for line in warned() if "--theirs" in line]
    assert len(said) == 1 and str(root / "Dassl.pytorch") in said[0]


def test_an_installed_dassl_is_repaired_too(tmp_path):
    installed = write_codebase(tmp_path / "elsewhere") / "Dassl.pytorch"
    (tmp_path / "train.py").write_text(SCRIPT)
    output = finish(start("--theirs", "train.py", tmp_path, 1, cwd=tmp_path, path=[installed]))
    assert "version 0.6.3+mine" in output and len(lines_of(output)) == 1


def test_mistakes_are_one_line(tmp_path):
    (tmp_path / "train.py").write_text("")
    for arguments, words in ((["--theirs"], "no Dassl beside 'train.py'"), (["--trust", tmp_path], "takes a file")):
        process = start(*arguments, "train.py", cwd=tmp_path)
        output = process.communicate(timeout=60)[0]
        assert (len(output.splitlines()), process.returncode) == (1, 2)
        assert words in output


def test_where_their_dassl_is_found(tmp_path):
    assert finder.bundled(tmp_path) is None
    code = write_codebase(tmp_path / "clones" / "code")
    (code / ".git").mkdir()
    (code / "imcls").mkdir()
    assert finder.bundled(code) == finder.bundled(code / "imcls") == code / "Dassl.pytorch"
    (tmp_path / "clones" / "other").mkdir()
    assert finder.bundled(tmp_path / "clones" / "other") is None  # a clone beside it is another codebase's


def test_a_trusted_file_is_read_by_the_script(tmp_path):
    dump(warnings.warn, tmp_path / "mine.pkl")
    (tmp_path / "read.py").write_text("import pickle, sys\nprint(pickle.load(open(sys.argv[1], 'rb')).__name__)")
    assert finish(start("--trust", "mine.pkl", "read.py", "mine.pkl", cwd=tmp_path)).splitlines()[-1] == "warn"
    process = start("--trust", "other.pkl", "--force", "read.py", "mine.pkl", cwd=tmp_path)
    output = process.communicate(timeout=60)[0]
    assert "--trust mine.pkl" in output and process.returncode == 2
    assert "Traceback" not in output
