"""Weights that are bound to classes load only for the same classes."""

import pytest
import torch
from building import build
from torch import nn

from unskew.engine.checkpoint import bind_to_classes
from unskew.engine.clip_trainer import CLIPTrainer
from unskew.engine.trainer import TRAINER_REGISTRY
from unskew.runs.evaluate import evaluate
from unskew.runs.run import Run, execute

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


@pytest.mark.parametrize("declared", [None, True, False])
def test_an_undeclared_head_is_not_tested_on_as_many_other_classes(declared, data_root, tmp_path, monkeypatch):
    class Head(CLIPTrainer):
        def build_model(self):
            self.head = nn.Linear(self.zeroshot_weights.shape[1], self.num_classes)
            self.register_for_training("head", self.head)

        def logits(self, image_features):
            return self.head(image_features)

    if declared is not None:
        Head.class_bound = declared
    monkeypatch.setitem(TRAINER_REGISTRY._table, "ZeroshotCLIP", Head)

    def run(half, **more):
        opts = ("DATASET.SUBSAMPLE_CLASSES", half, *SHORT[:4])
        return Run("digits", "ZeroshotCLIP", shots=1, seed=1, root=data_root, opts=opts, **more)

    execute(run("base", folder=str(tmp_path)), console=False)
    if declared is False:
        evaluate(run("new"), str(tmp_path), console=False)
        return
    with pytest.raises(ValueError, match="class_bound" if declared is None else "single classes"):
        evaluate(run("new"), str(tmp_path), console=False)


def test_the_order_of_the_classes_counts_and_published_weights_load():
    one, other, published = (nn.Linear(2, 3) for _ in range(3))
    bind_to_classes(one, ["cat", "dog", "hen"])
    bind_to_classes(other, ["dog", "cat", "hen"])
    with pytest.raises(ValueError, match="classes"):
        other.load_state_dict(one.state_dict())
    other.load_state_dict(published.state_dict())
    assert torch.equal(other.weight, published.weight)
