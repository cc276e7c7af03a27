"""Weights that are bound to classes load only for the same classes."""

import pytest
import torch
from building import build
from torch import nn

from unskew.engine.checkpoint import bind_to_classes

CSC = {name: (f"TRAINER.{name.upper()}.CSC", True) for name in ("CoOp", "ProGrad")}
BOUND = [
    *("CLAP", "FineTune", "GDA", "LPPlusPlus", "LinearProbe", "ResidualPrompt", "TaskRes", "TipAdapter", "TipAdapterF"),
    *CSC,
]
SHORT = ("OPTIM.MAX_EPOCH", 1, "INPUT.VIEWS", 1, "TEST.NO_TEST", True)


def of(classes, name, data_root, folder, *opts):
    return build(name, data_root, folder, "DATASET.SUBSAMPLE_CLASSES", classes, *SHORT, *opts, shots=1)


@pytest.mark.parametrize("name", BOUND)
def test_weights_of_as_many_other_classes_are_refused(name, data_root, tmp_path):
    opts = CSC.get(name, ())
    trained = of("base", name, data_root, tmp_path, *opts)
    trained.train()
    other = of("new", name, data_root, tmp_path / "new", *opts)
    assert other.num_classes == trained.num_classes
    with pytest.raises(ValueError, match="classes"):
        other.load_model(str(tmp_path))
    of("base", name, data_root, tmp_path / "same", *opts).load_model(str(tmp_path))


@pytest.mark.parametrize("name", ["CoOp", "ProGrad", "CLIPAdapter"])
def test_shared_weights_load_for_other_classes(name, data_root, tmp_path):
    of("base", name, data_root, tmp_path).train()
    of("new", name, data_root, tmp_path / "new").load_model(str(tmp_path))


def test_the_order_of_the_classes_counts_and_published_weights_load():
    one, other, published = (nn.Linear(2, 3) for _ in range(3))
    bind_to_classes(one, ["cat", "dog", "hen"])
    bind_to_classes(other, ["dog", "cat", "hen"])
    with pytest.raises(ValueError, match="classes"):
        other.load_state_dict(one.state_dict())
    other.load_state_dict(published.state_dict())
    assert torch.equal(other.weight, published.weight)
