"""Checkpoints: what is written comes back, nothing in a file is run, half a file is never seen."""

import errno
import os
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from unskew.dassl import utils
from unskew.engine import checkpoint
from unskew.utils.files import write_atomically


def trained(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    model(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    scheduler.step()
    return model, optimizer, scheduler


def state_of(model, optimizer=None, scheduler=None, epoch=3, val_result=None):
    return {
        "state_dict": model.state_dict(),
        "epoch": epoch,
        "optimizer": optimizer and optimizer.state_dict(),
        "scheduler": scheduler and scheduler.state_dict(),
        "val_result": val_result,
    }


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_round_trip_and_layout(tmp_path):
    model, optimizer, scheduler = trained()
    folder = tmp_path / "deep" / "net"
    checkpoint.save_checkpoint(state_of(model, optimizer, scheduler, val_result=np.float64(12.5)), folder, is_best=True)
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint", "model-best.pth.tar", "model.pth.tar-3"]
    assert (folder / "checkpoint").read_text() == "model.pth.tar-3\n"
    plain = torch.load(folder / "model.pth.tar-3", weights_only=True)  # PyTorch's own safe reader takes it
    assert plain["val_result"] == 12.5
    assert plain.keys() == {"state_dict", "epoch", "optimizer", "scheduler", "val_result"}

    other, other_optimizer, other_scheduler = trained(seed=1)
    assert utils.resume_from_checkpoint(folder, other, other_optimizer, other_scheduler) == 3
    assert_same(model.state_dict(), other.state_dict())
    momentum = [optimizer.state_dict()["state"][i]["momentum_buffer"] for i in range(6)]
    restored = [other_optimizer.state_dict()["state"][i]["momentum_buffer"] for i in range(6)]
    assert all(torch.equal(a, b) for a, b in zip(momentum, restored, strict=True))
    assert other_scheduler.last_epoch == scheduler.last_epoch


def test_module_prefix_is_dropped(tmp_path):
    model = nn.DataParallel(nn.Linear(2, 2))
    checkpoint.save_checkpoint(state_of(model), tmp_path)
    assert checkpoint.load_checkpoint(tmp_path / "model.pth.tar-3")["state_dict"].keys() == {"weight", "bias"}


def test_rebuilt_keys_are_dropped_and_not_missed(tmp_path):
    class Prompt(nn.Module):
        def __init__(self, classes):
            super().__init__()
            self.ctx = nn.Parameter(torch.randn(4))
            self.register_buffer("token_prefix", torch.randn(classes))
            self.register_buffer("token_suffix", torch.randn(classes))

    saved, other = Prompt(3), Prompt(7)
    torch.save(state_of(saved), tmp_path / "old")  # as CoOp saves it
    checkpoint.load_weights(other, checkpoint.load_checkpoint(tmp_path / "old")["state_dict"])
    assert torch.equal(other.ctx, saved.ctx)
    assert other.token_prefix.shape == (7,)
    checkpoint.save_checkpoint(state_of(saved), tmp_path)
    assert torch.load(tmp_path / "model.pth.tar-3", weights_only=True)["state_dict"].keys() == {"ctx"}


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    checkpoint.save({"epoch": 1}, path)

    def half(file):
        file.write(b"half")
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError):
        write_atomically(path, half)
    assert checkpoint.load_checkpoint(path) == {"epoch": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_names_the_file_and_keeps_what_was_there(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, "old")

    def full(file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"file'.*No space left on device"):
        write_atomically(path, full)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_objects_are_not_saved(tmp_path):
    with pytest.raises(ValueError, match=r"scheduler\.fn.*function"):
        checkpoint.save({"epoch": 1, "scheduler": {"fn": test_objects_are_not_saved}}, tmp_path / "file")
    assert not list(tmp_path.iterdir())


class Malicious:
    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("function", [os.mkdir, eval, np.load])
def test_loading_runs_no_code_from_the_file(tmp_path, function, zipped):
    witness = tmp_path / "witness"
    argument = f"__import__('os').mkdir({str(witness)!r})" if function is eval else str(witness)
    state = {**state_of(nn.Linear(2, 2)), "scheduler": Malicious(function, argument)}
    torch.save(state, tmp_path / "file", _use_new_zipfile_serialization=zipped)
    fact = f"file'.*{function.__name__}" if zipped else "file'"
    with pytest.raises(ValueError, match=fact):
        checkpoint.load_checkpoint(tmp_path / "file")
    assert not witness.exists()


@pytest.mark.parametrize("successor", ["CosineAnnealingLR", "MultiStepLR"])
def test_checkpoints_of_coop_load(tmp_path, monkeypatch, successor):
    """CoOp saves Dassl's warm-up scheduler, whose state holds a scheduler object and its optimizer."""
    model, optimizer, _ = trained()
    module = types.ModuleType("dassl.optim.lr_scheduler")
    warmup = type("ConstantWarmupScheduler", (), {"__module__": module.__name__})
    module.ConstantWarmupScheduler = warmup
    for name in ("dassl", "dassl.optim", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    kind = getattr(torch.optim.lr_scheduler, successor)
    scheduler = warmup()
    scheduler.successor = kind(optimizer, 5 if successor == "CosineAnnealingLR" else [2, 5])
    state = state_of(model, optimizer, epoch=50, val_result=71.5)
    state["scheduler"] = {"successor": scheduler.successor, "whole": scheduler, "cons_lr": 1e-5}
    torch.save(state, tmp_path / "file")
    for name in ("dassl", "dassl.optim", module.__name__):
        monkeypatch.delitem(sys.modules, name)

    loaded = checkpoint.load_checkpoint(tmp_path / "file")
    assert loaded.keys() == {"state_dict", "epoch", "val_result"}
    assert (loaded["epoch"], loaded["val_result"]) == (50, 71.5)
    assert_same(dict(model.state_dict()), loaded["state_dict"])
    stands_in = (checkpoint._Dropped, checkpoint._dropped_mapping)  # nothing stays allowed
    assert not [
        entry for entry in torch.serialization.get_safe_globals() if isinstance(entry, tuple) or entry in stands_in
    ]


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "file"
    checkpoint.save(state_of(nn.Linear(50, 50)), path)
    whole = path.read_bytes()
    for length in (0, 3, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="file'"):
            checkpoint.load_checkpoint(path)
    path.write_bytes(b"no checkpoint at all" * 50)
    with pytest.raises(ValueError, match="file'"):
        checkpoint.load_checkpoint(path)
    torch.save(torch.ones(3), path)
    with pytest.raises(ValueError, match=r"file'.*Tensor"):
        checkpoint.load_checkpoint(path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        checkpoint.load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="None"):
        checkpoint.load_checkpoint(None)
    with pytest.raises(FileNotFoundError, match=tmp_path.name):
        utils.resume_from_checkpoint(tmp_path, nn.Linear(1, 1))


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"\0\0"])
def test_a_damaged_note_names_no_checkpoint(content, tmp_path):
    (tmp_path / "checkpoint").write_bytes(content)
    assert checkpoint.last_checkpoint(tmp_path) is None


def test_last_checkpoint_stays_in_its_folder(tmp_path):
    (tmp_path / "run").mkdir()
    checkpoint.save({"epoch": 1}, tmp_path / "outside")
    (tmp_path / "run" / "checkpoint").write_text("../outside\n")
    assert checkpoint.last_checkpoint(tmp_path / "run") is None


def test_weights_that_do_not_fit(tmp_path):
    checkpoint.save_checkpoint(state_of(nn.Linear(2, 2)), tmp_path)
    weights = checkpoint.load_checkpoint(tmp_path / "model.pth.tar-3")["state_dict"]
    with pytest.raises(ValueError, match=r"file'.*size mismatch"):
        checkpoint.load_weights(nn.Linear(3, 2), weights, "file")
    with pytest.raises(ValueError, match=r"\['0.weight', '0.bias'\].*\['weight', 'bias'\]"):
        checkpoint.load_weights(nn.Sequential(nn.Linear(2, 2)), weights, "file")


def test_pretrained_weights_load_where_shapes_agree(tmp_path, caplog):
    source = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 5))
    checkpoint.save({"state_dict": source.state_dict()}, tmp_path / "file")
    target = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    before = target[1].weight.detach().clone()
    utils.load_pretrained_weights(target, tmp_path / "file")
    assert torch.equal(target[0].weight, source[0].weight)
    assert torch.equal(target[1].weight, before)
    assert "['1.bias', '1.weight']" in caplog.text
    with pytest.raises(ValueError, match="file"):
        utils.load_pretrained_weights(nn.Conv2d(1, 1, 1), tmp_path / "file")


def test_only_the_state_with_objects_is_dropped(tmp_path, warned):
    """Dassl's warm-up schedule holds another schedule object."""
    state = {"state_dict": {"w": torch.ones(1)}, "epoch": 3, "optimizer": {"lr": 0.1}, "scheduler": {"next": object()}}
    checkpoint.save_checkpoint(state, tmp_path)
    loaded = checkpoint.load_checkpoint(tmp_path / "model.pth.tar-3")
    assert (loaded["optimizer"], loaded["scheduler"]) == ({"lr": 0.1}, None)
    assert "'scheduler.next'" in warned()[0]
