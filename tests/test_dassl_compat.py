"""What scripts of PyTorch 1's time ask for, given to them; each test puts PyTorch back as it was."""

import re
import sys
import types
import warnings

import numpy as np
import pytest
import torch

from unskew.dassl import compat


@pytest.fixture
def applied(monkeypatch):
    """A function that applies everything, as at the start of a script."""
    monkeypatch.setattr(torch, "load", torch.load)
    monkeypatch.setattr(torch.serialization, "add_safe_globals", lambda classes: None)
    monkeypatch.setattr(compat.multiprocessing, "set_start_method", lambda method, force: None)
    with torch.serialization.safe_globals(compat._ARRAYS), warnings.catch_warnings():
        yield compat.apply


def test_amp_names_are_quiet(applied, recwarn):
    applied()
    from torch.cuda.amp import GradScaler, autocast

    scaler = GradScaler(enabled=False)
    with autocast(enabled=False):
        assert scaler.scale(torch.ones(2)).tolist() == [1, 1]
    assert not [warning for warning in recwarn if warning.category is FutureWarning]


def test_amp_names_that_are_gone_come_back(applied, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.cuda.amp", torch.cuda.amp)
    monkeypatch.delattr(torch.cuda, "amp")
    monkeypatch.delattr(re, "template", raising=False)
    applied()
    from torch.cuda.amp import GradScaler, autocast

    assert isinstance(GradScaler(enabled=False), torch.amp.GradScaler)
    assert isinstance(autocast(enabled=False), torch.amp.autocast)
    assert re.template("a+").match("aa")
    monkeypatch.delattr(re, "template")


def test_arrays_of_numbers_are_loaded(applied, tmp_path):
    content = {"logits": np.arange(6, dtype=np.float32).reshape(2, 3), "labels": np.array([1, 0]), "f": np.float64(2.5)}
    torch.save(content, tmp_path / "features.pt")
    applied()
    loaded = torch.load(tmp_path / "features.pt")
    assert (loaded["logits"] == content["logits"]).all()
    assert (loaded["labels"].tolist(), loaded["f"]) == ([1, 0], 2.5)


def test_old_checkpoints_are_loaded_and_nothing_in_a_file_is_run(applied, tmp_path, monkeypatch):
    module = types.ModuleType("dassl.optim.lr_scheduler")
    module.ConstantWarmupScheduler = type("ConstantWarmupScheduler", (), {"__module__": module.__name__})
    for name in ("dassl", "dassl.optim", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    state = {"state_dict": {"ctx": torch.ones(2)}, "epoch": 50, "scheduler": module.ConstantWarmupScheduler()}
    torch.save(state, tmp_path / "model.pth.tar-50")
    torch.save({"state_dict": {}, "hook": warnings.warn}, tmp_path / "other.pt")
    applied()
    loaded = torch.load(str(tmp_path / "model.pth.tar-50"), map_location="cpu")
    assert (loaded["epoch"], loaded["state_dict"]["ctx"].tolist()) == (50, [1, 1])
    with pytest.raises(ValueError, match=r"it asks for _?warnings.warn"):
        torch.load(tmp_path / "other.pt")
