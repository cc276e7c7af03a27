"""Behaviour of Dassl's trainers that ours lack, with a linear classifier of small images."""

import math
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from unskew.dassl import engine
from unskew.dassl.config import get_cfg_default
from unskew.dassl.data import DATASET_REGISTRY, DatasetBase, Datum
from unskew.dassl.modeling import BACKBONE_REGISTRY, Backbone
from unskew.dassl.optim import build_lr_scheduler, build_optimizer

CLASSES = 3


@DATASET_REGISTRY.register()
class DasslToy(DatasetBase):
    """8 x 8 images, one colour per class: 12 to train on, 6 for val, 12 to test."""

    def __init__(self, cfg):
        items = []
        for number in range(30):
            label = number % CLASSES
            path = f"{cfg.DATASET.ROOT}/{number:02d}.png"
            pixels = np.random.default_rng(number).integers(0, 120, (8, 8, 3), dtype=np.uint8)
            pixels[..., label] += 100
            Image.fromarray(pixels).save(path)
            items.append(Datum(path, label, classname=f"class {label}"))
        super().__init__(train_x=items[:12], train_u=items[12:18], val=items[12:18], test=items[18:])


class ToyMixin:
    def build_model(self):
        self.model = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(192, CLASSES))
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("net", self.model, self.optim, self.sched)
        self.seen = []

    def step(self, batch):
        self.seen.append(batch["index"].tolist())
        loss = F.cross_entropy(self.model(batch["img"]), batch["label"])
        self.model_backward_and_update(loss)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}


@engine.TRAINER_REGISTRY.register()
class DasslToyX(ToyMixin, engine.TrainerX):
    def forward_backward(self, batch):
        return self.step(batch)


@engine.TRAINER_REGISTRY.register()
class DasslToyXU(ToyMixin, engine.TrainerXU):
    def forward_backward(self, batch_x, batch_u):
        self.parse_batch_train(batch_x, batch_u)
        return self.step(batch_x)


@engine.TRAINER_REGISTRY.register()
class DasslPlain(engine.TrainerX):
    """A trainer with the default model."""

    def forward_backward(self, batch):
        image, label, _ = self.parse_batch_train(batch)
        loss = F.cross_entropy(self.model(image), label)
        self.model_backward_and_update(loss)
        return {"loss": loss.item()}


@pytest.fixture
def make(tmp_path):
    """Return a function that builds a trainer, seeded as scripts do."""

    def make(trainer="DasslToyX", *pairs):
        cfg = get_cfg_default()
        places = ("DATASET.ROOT", str(tmp_path), "OUTPUT_DIR", str(tmp_path / "run"))
        cfg.merge_from_list(["DATASET.NAME", "DasslToy", "TRAINER.NAME", trainer, *places, "INPUT.SIZE", (8, 8)])
        cfg.merge_from_list(["USE_CUDA", False, "DATALOADER.TRAIN_X.BATCH_SIZE", 4, "OPTIM.MAX_EPOCH", 4])
        cfg.merge_from_list(["OPTIM.LR", 0.01, "INPUT.TRANSFORMS", ["random_flip", "normalize"], "SEED", 3, *pairs])
        cfg.freeze()
        random.seed(3), np.random.seed(3), torch.manual_seed(3)  # noqa: NPY002
        return engine.build_trainer(cfg)

    return make


@pytest.fixture
def lines(caplog, monkeypatch):
    """Return a function that returns the log lines so far."""
    monkeypatch.setattr(engine.logger, "propagate", True)
    caplog.set_level("INFO", "unskew")
    return lambda: [record.getMessage() for record in caplog.records]


def weights(trainer):
    return next(iter(trainer.state_dict().values()))


# --- random draws ------------------------------------------------------------------------------------


def test_the_order_of_images_is_that_of_pytorchs_global_generator(make):
    trainer = make()
    trainer.model[1].p = 0.0
    torch.manual_seed(5)
    loader = torch.utils.data.DataLoader(range(12), 4, sampler=torch.utils.data.RandomSampler(range(12)))
    expected = []
    for _ in range(4):
        for batch in loader:
            expected.append(batch.tolist())
            torch.rand(4)  # the flips; drawn after the batch's indices, before the next one's
    torch.manual_seed(5)
    trainer.train()
    assert trainer.seen == expected


def test_loaders_draw_from_the_global_generator_before_training_too(make, monkeypatch):
    seen = []

    def build_model(self):
        torch.manual_seed(7)
        seen.extend(index for batch in self.train_loader_x for index in batch["index"].tolist())
        ToyMixin.build_model(self)

    monkeypatch.setattr(DasslToyX, "build_model", build_model)
    make("DasslToyX", "INPUT.TRANSFORMS", ["normalize"])
    torch.manual_seed(7)
    loader = torch.utils.data.DataLoader(range(12), 4, sampler=torch.utils.data.RandomSampler(range(12)))
    assert seen == [index for batch in loader for index in batch.tolist()]


def test_both_loaders_start_before_the_first_batch(make):
    trainer = make("DasslToyXU", "INPUT.TRANSFORMS", ["normalize"], "OPTIM.MAX_EPOCH", 1, "TEST.NO_TEST", True)
    trainer.model[1].p = 0.0
    labelled, unlabelled = (
        torch.utils.data.DataLoader(range(count), 4, sampler=torch.utils.data.RandomSampler(range(count)))
        for count in (12, 6)
    )
    torch.manual_seed(5)
    passes = iter(labelled), iter(unlabelled)
    expected = [batch.tolist() for batch in passes[0]]
    torch.manual_seed(5)
    trainer.train()
    assert trainer.seen == expected


@pytest.mark.parametrize("final", ["last_step", "best_val"])
def test_a_resumed_run_equals_an_uninterrupted_run(make, final, tmp_path):
    class Killed(Exception):
        pass

    def kill(trainer):
        if trainer.epoch == 1:
            raise Killed

    pairs = ("TRAIN.CHECKPOINT_FREQ", 1, "TEST.FINAL_MODEL", final)
    whole = make("DasslToyX", *pairs, "OUTPUT_DIR", str(tmp_path / "whole"))
    whole.train()
    first = make("DasslToyX", *pairs)
    first.epoch_callbacks.append(kill)
    with pytest.raises(Killed):
        first.train()
    second = make("DasslToyX", *pairs)
    second.train()
    assert (second.start_epoch, second.seen) == (2, whole.seen[6:])
    assert all(torch.equal(weights(second)[key], value) for key, value in weights(whole).items())
    assert second.results == whole.results


def test_the_pickled_schedule_of_a_checkpoint_of_dassl_is_ignored(make, warned):
    pairs = ("TRAIN.CHECKPOINT_FREQ", 1, "OPTIM.LR_SCHEDULER", "cosine", "OPTIM.WARMUP_EPOCH", 1, "OPTIM.MAX_EPOCH", 4)
    first = make("DasslToyX", *pairs)
    rates = []
    first.epoch_callbacks.append(lambda trainer: rates.append(trainer.get_current_lr()))
    first.train()
    folder = Path(first.output_dir) / "net"
    state = torch.load(folder / "model.pth.tar-2", weights_only=True)
    torch.save({key: state[key] for key in ("state_dict", "epoch")}, folder / "model.pth.tar-2")
    (folder / "checkpoint").write_text("model.pth.tar-2\n")
    second, again = make("DasslToyX", *pairs), []
    second.epoch_callbacks.append(lambda trainer: again.append(trainer.get_current_lr()))
    second.train()
    assert second.start_epoch == 2 and len(set(rates)) == 4
    assert again == pytest.approx(rates[2:])
    (message,) = warned()
    assert "optimizer" in message and str(folder / "model.pth.tar-2") in message


# --- the loop ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("frequency, logged", [(1, [1, 2, 3]), (2, [2]), (3, [3]), (5, [1, 2, 3])])
def test_an_epoch_of_fewer_batches_than_print_freq_has_a_line_for_each(make, lines, frequency, logged):
    make("DasslToyX", "TRAIN.PRINT_FREQ", frequency, "OPTIM.MAX_EPOCH", 1, "TEST.NO_TEST", True).train()
    batches = [line for line in lines() if line.startswith("epoch [1/1]")]
    assert [line.split(" time ")[0] for line in batches] == [f"epoch [1/1] batch [{batch}/3]" for batch in logged]


def test_a_loss_that_is_not_finite_stops_before_its_step(make):
    trainer = make()
    before = weights(trainer)
    with pytest.raises(FloatingPointError, match="NaN"):
        trainer.model_backward_and_update(trainer.model[2].weight.sum() * math.nan)
    assert all(torch.equal(weights(trainer)[key], value) for key, value in before.items())


def test_labelled_and_unlabelled_images(make, lines):
    trainer = make("DasslToyXU", "OPTIM.MAX_EPOCH", 1)
    trainer.train()
    assert len(trainer.seen) == 3
    assert "Loading trainer: DasslToyXU" in lines()
    assert f"Initialize tensorboard (log_dir={trainer.output_dir}/tensorboard)" in lines()


def test_prograds_step_in_closed_form(make):
    trainer = make("DasslToyX", "OPTIM.NAME", "sgd", "OPTIM.LR", 1.0, "OPTIM.MOMENTUM", 0.0, "OPTIM.WEIGHT_DECAY", 0.0)
    linear = trainer.model[2]
    a, b = torch.randn(CLASSES, 192), torch.randn(CLASSES, 192)
    b -= 3 * a  # they disagree on the weight, and on the bias they agree
    before, bias = linear.weight.detach().clone(), linear.bias.detach().clone()
    loss_a = (linear.weight * a).sum() + linear.bias.sum()
    loss_b = (linear.weight * b).sum() + 2 * linear.bias.sum()
    trainer.prograd_backward_and_update(loss_a, loss_b, 0.5)
    step = a - 0.5 * (a * b).sum() / b.square().sum() * b
    torch.testing.assert_close(linear.weight, before - step)
    torch.testing.assert_close(linear.bias, bias - 1)


# --- testing -----------------------------------------------------------------------------------------


def test_testing_goes_through_the_loader_and_the_evaluator_batch_by_batch(make):
    class Evaluator:
        def reset(self):
            self.sizes, self.right = [], 0

        def process(self, outputs, labels):
            logits, features = outputs
            assert features.shape == (len(labels), 192)
            self.sizes.append(len(labels))
            self.right += (logits.argmax(1) == labels).sum().item()

        def evaluate(self):
            return {"accuracy": 100 * self.right / sum(self.sizes), "sizes": len(self.sizes)}

    trainer = make("DasslToyX", "DATALOADER.TEST.BATCH_SIZE", 5)
    trainer.evaluator = Evaluator()
    trainer.model_inference = lambda images: (trainer.model(images), images.flatten(1))
    trainer.train()
    assert trainer.evaluator.sizes == [5, 5, 2]
    assert trainer.results["accuracy"] > 100 / CLASSES
    assert trainer.test("val") == trainer.results["accuracy"]
    assert trainer.evaluator.sizes == [5, 1]
    with pytest.raises(ValueError, match="'val'"):
        trainer.test("train")


def test_predict_equals_testing(make):
    trainer = make()
    accuracy = trainer.test()
    logits = trainer.predict([item.impath for item in trainer.dm.dataset.test])
    labels = torch.tensor([item.label for item in trainer.dm.dataset.test])
    assert 100 * (logits.argmax(1) == labels).double().mean().item() == pytest.approx(accuracy)


def test_a_trainer_may_build_its_loaders_without_a_data_manager(make, monkeypatch):
    def build_data_loader(self):
        engine.SimpleTrainer.build_data_loader(self)
        del self.dm

    monkeypatch.setattr(DasslToyX, "build_data_loader", build_data_loader)
    trainer = make("DasslToyX", "TEST.FINAL_MODEL", "best_val")
    trainer.train()
    assert trainer.results["accuracy"] > 100 / CLASSES


@pytest.mark.parametrize("has_dm", [True, False])
def test_a_trainer_may_use_other_names_for_its_loaders(make, monkeypatch, has_dm):
    def build_data_loader(self):
        engine.SimpleTrainer.build_data_loader(self)
        self.own, self.dm = self.train_loader_x, SimpleNamespace(num_classes=CLASSES)
        del self.train_loader_x, self.train_loader_u, self.val_loader
        if not has_dm:
            del self.dm

    def run_epoch(self):
        for batch in self.own:
            self.step(batch)

    monkeypatch.setattr(DasslToyX, "build_data_loader", build_data_loader)
    monkeypatch.setattr(DasslToyX, "run_epoch", run_epoch)
    trainer = make()
    trainer.train()
    assert len(trainer.seen) == 12
    assert trainer.results["accuracy"] > 100 / CLASSES
    with pytest.raises(ValueError, match="val"):
        trainer.test("val")


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_empty_split_is_refused(make, split):
    trainer = make("DasslToyX", "TEST.FINAL_MODEL", "best_val")
    if split == "train":
        trainer.train_loader_x, trainer.dm.dataset.train_x = None, []
    else:
        trainer.val_loader, trainer.dm.dataset.val = None, []
    with pytest.raises(ValueError, match={"train": "eval-only", "val": "FINAL_MODEL"}[split]):
        trainer.train()


# --- the default model -------------------------------------------------------------------------------


def test_the_default_model_is_backbone_head_and_classifier(make, monkeypatch, lines):
    class Flat(Backbone):
        def __init__(self):
            super().__init__()
            self._out_features = 192

        def forward(self, x):
            return x.flatten(1)

    monkeypatch.setattr(BACKBONE_REGISTRY, "_table", {"flat": lambda pretrained: Flat()})
    head = ("MODEL.HEAD.NAME", "mlp", "MODEL.HEAD.HIDDEN_LAYERS", (7,), "OPTIM.MAX_EPOCH", 1)
    trainer = make("DasslPlain", "MODEL.BACKBONE.NAME", "flat", *head)
    trainer.train()
    assert trainer.model.fdim == 7
    logits, features = trainer.model(torch.rand(2, 3, 8, 8), return_feature=True)
    assert (logits.shape, features.shape) == ((2, CLASSES), (2, 7))
    assert f"# params: {192 * 7 + 7 + 14 + 7 * CLASSES + CLASSES:,}" in lines()
    assert engine.SimpleNet(trainer.cfg, trainer.cfg.MODEL, 0)(torch.rand(2, 3, 8, 8)).shape == (2, 7)


def test_an_unknown_trainer_is_an_error(make):
    with pytest.raises(ValueError, match=r"'DasslToyY'.*DasslToyX"):
        make("DasslToyY")
