"""The engine with a small network on small images: hooks, files, resuming, selection, precision, processes."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from unskew.config import get_cfg_default
from unskew.dassl.engine import TrainerXU
from unskew.data.dataset import DATASET_REGISTRY, DatasetBase, Datum
from unskew.data.images import read_image
from unskew.engine.accelerator import collect_env_info
from unskew.engine.loop import TrainerBase
from unskew.engine.meters import AverageMeter, MetricMeter
from unskew.engine.optim import build_lr_scheduler, build_optimizer
from unskew.engine.prediction import Prediction
from unskew.engine.trainer import TRAINER_REGISTRY, TrainerX, build_trainer
from unskew.utils.logging import setup_logger
from unskew.utils.seeds import set_random_seed

CLASSES = 3


@DATASET_REGISTRY.register()
class EngineToy(DatasetBase):
    """Noisy 8 x 8 images whose class is their brightest channel; the files are written at first use."""

    def __init__(self, cfg):
        root = Path(cfg.DATASET.ROOT)
        items = [self._image(root / f"{i:02d}.png", i) for i in range(36)]
        val = items[12:18] if cfg.DATASET.NUM_VAL_SHOTS != 0 else []
        super().__init__(train_x=items[:12], train_u=items[:9], val=val, test=items[18:])

    @staticmethod
    def _image(path, number):
        label = number % CLASSES
        if not path.exists():
            pixels = np.random.default_rng(number).integers(0, 120, (8, 8, 3), dtype=np.uint8)
            pixels[..., label] += 100
            Image.fromarray(pixels).save(path)
        return Datum(str(path), label, 0, f"class {label}")


class ToyMixin:
    """A linear classifier with dropout, that records its hooks."""

    dropout = 0.3

    def build_model(self):
        self.calls = []
        self.model = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Dropout(self.dropout), torch.nn.Linear(192, CLASSES)
        )
        with torch.no_grad():
            self.model[2].weight.normal_(0, 0.01, generator=self.generator)
            self.model[2].bias.zero_()
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("net", self.model, self.optim, self.sched)

    def step(self, images, labels):
        with self.accelerator.autocast():
            logits = self.model(images)
        loss = F.cross_entropy(logits.float(), labels)
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.detach()}


@TRAINER_REGISTRY.register()
class EngineToyX(ToyMixin, TrainerX):
    def forward_backward(self, batch):
        images, labels, _ = self.parse_batch_train(batch)
        return self.step(images, labels)


@TRAINER_REGISTRY.register()
class EngineToyXU(ToyMixin, TrainerXU):
    def forward_backward(self, batch_x, batch_u):
        images, labels, unlabelled = self.parse_batch_train(batch_x, batch_u)
        self.calls.append(len(unlabelled))
        return self.step(images, labels)


@pytest.fixture
def make_cfg(tmp_path):
    (tmp_path / "data").mkdir()

    def make(*pairs):
        cfg = get_cfg_default()
        settings = {
            "OUTPUT_DIR": str(tmp_path / "run"),
            "USE_CUDA": False,
            "VERBOSE": False,
            "INPUT.SIZE": (8, 8),
            "INPUT.TRANSFORMS": ["random_flip"],
            "DATASET.ROOT": str(tmp_path / "data"),
            "DATASET.NAME": "EngineToy",
            "DATALOADER.TRAIN_X.BATCH_SIZE": 4,
            "DATALOADER.TEST.BATCH_SIZE": 5,
            "OPTIM.NAME": "sgd",
            "OPTIM.LR": 0.1,
            "OPTIM.LR_SCHEDULER": "cosine",
            "OPTIM.MAX_EPOCH": 5,
            "OPTIM.WARMUP_EPOCH": 1,
            "TRAINER.NAME": "EngineToyX",
        }
        cfg.merge_from_list([item for pair in settings.items() for item in pair])
        cfg.merge_from_list(list(pairs))
        cfg.freeze()
        return cfg

    return make


def weights(trainer):
    return trainer.state_dict()["net"]


def assert_same_bits(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


# --- the loop ----------------------------------------------------------------------------------------


def test_hooks_run_in_dassls_order(make_cfg):
    calls = []

    class Recorder(EngineToyX):
        pass

    def recorded(name):
        def hook(self):
            calls.append((name, self.epoch))
            return getattr(super(Recorder, self), name)()

        return hook

    for name in ("before_train", "before_epoch", "run_epoch", "after_epoch", "after_train"):
        setattr(Recorder, name, recorded(name))
    trainer = Recorder(make_cfg("OPTIM.MAX_EPOCH", 2))
    trainer.epoch_callbacks.append(lambda t: calls.append(("callback", t.epoch)))
    trainer.train()
    each = ("before_epoch", "run_epoch", "after_epoch", "callback")
    expected = [("before_train", 0), *((name, epoch) for epoch in (0, 1) for name in each), ("after_train", 1)]
    assert calls == expected


def coop_accuracies(log):
    """CoOp's rule: after a line that is exactly "Finish training", the numbers of "* accuracy: 65.6%"."""
    found, ready = [], False
    for line in log.read_text().splitlines():
        ready = ready or line.strip() == "Finish training"
        match = re.compile(r"\* accuracy: ([\.\deE+-]+)%").search(line.strip())
        if match and ready:
            found.append(float(match.group(1)))
    return found


def test_training_learns_and_writes_dassls_files_and_log_lines(make_cfg, tmp_path):
    run = tmp_path / "run"
    cfg = make_cfg("TRAIN.CHECKPOINT_FREQ", 2, "TRAIN.KEEP", -1, "TRAIN.PRINT_FREQ", 2, "OPTIM.MAX_EPOCH", 15)
    with setup_logger(run, console=False):
        trainer = build_trainer(cfg)
        trainer.train()
    assert trainer.results["accuracy"] > 90
    assert coop_accuracies(run / "log.txt") == [round(trainer.results["accuracy"], 1)]
    number = r"\d+\.\d+"
    line = rf"epoch \[2/15\] batch \[2/3\] time {number} \({number}\) data {number} \({number}\) "
    line += rf"loss {number} \({number}\) lr 1\.0000e-01 eta \d:\d\d:\d\d"
    assert re.search(f"^{line}$", (run / "log.txt").read_text(), re.MULTILINE)
    names = sorted(path.name for path in (run / "net").iterdir())
    assert names == sorted(["checkpoint", "model.pth.tar-15", *(f"model.pth.tar-{e}" for e in range(2, 15, 2))])
    assert (run / "net" / "checkpoint").read_text().strip() == "model.pth.tar-15"
    assert list((run / "tensorboard").glob("events*"))


def test_learning_rate_follows_the_schedule(make_cfg):
    rates = []
    trainer = EngineToyX(make_cfg("TEST.NO_TEST", True, "OPTIM.WARMUP_TYPE", "constant"))
    trainer.before_epoch = lambda: rates.append(trainer.get_current_lr())
    trainer.train()
    expected = [1e-5] + [0.05 * (1 + np.cos(np.pi * e / 5)) for e in range(4)]
    assert rates == pytest.approx(expected)
    assert not trainer.results


@pytest.mark.parametrize(("count", "batches"), [("train_x", 4), ("train_u", 3), ("smaller_one", 3)])
def test_labelled_and_unlabelled(make_cfg, count, batches):
    settings = ("TRAIN.COUNT_ITER", count, "DATALOADER.TRAIN_X.BATCH_SIZE", 3, "OPTIM.MAX_EPOCH", 1)
    trainer = build_trainer(make_cfg("TRAINER.NAME", "SomeName", "TRAINER.CLASS", "EngineToyXU", *settings))
    trainer.train()
    assert trainer.calls == [3] * batches
    with pytest.raises(ValueError, match="COUNT_ITER"):
        EngineToyXU(make_cfg("TRAIN.COUNT_ITER", "train")).train()


def test_a_step_without_accumulation_needs_no_number_of_batches(make_cfg):
    trainer = build_trainer(make_cfg("OPTIM.MOMENTUM", 0.0, "OPTIM.WEIGHT_DECAY", 0.0))
    weight = trainer.model[2].weight
    for trainer.batch_idx in (0, 1, 5):  # num_batches stays at 1
        before = weight.detach().clone()
        trainer.model_backward_and_update(2 * weight.sum())
        torch.testing.assert_close(weight.detach(), before - 2 * trainer.get_current_lr())


@pytest.mark.parametrize("batch_idx", [1, 2, 5])
def test_accumulation_needs_the_number_of_batches(make_cfg, batch_idx):
    trainer = build_trainer(make_cfg("TRAIN.ACCUMULATE", 2))
    trainer.batch_idx = batch_idx
    with pytest.raises(ValueError, match=f"batch {batch_idx + 1} of 1 .*num_batches"):
        trainer.model_backward_and_update(trainer.model[2].weight.sum())


def test_the_error_for_an_unknown_trainer_suggests_a_name(make_cfg):
    with pytest.raises(ValueError, match="did you mean EngineToyX"):
        build_trainer(make_cfg("TRAINER.NAME", "EngineToyy"))


# --- seeds and resuming ------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bits(make_cfg, tmp_path):
    def run(seed, folder):
        trainer = EngineToyX(make_cfg("SEED", seed, "OUTPUT_DIR", str(tmp_path / folder), "TEST.NO_TEST", True))
        trainer.train()
        return weights(trainer)

    first = run(0, "a")
    assert_same_bits(first, run(0, "b"))
    assert not torch.equal(first["2.weight"], run(1, "c")["2.weight"])


class Crash(Exception):
    pass


@pytest.mark.parametrize("final", ["last_step", "best_val"])
def test_a_resumed_run_ends_in_the_same_bits(make_cfg, tmp_path, final):
    settings = ("TEST.FINAL_MODEL", final, "TRAIN.CHECKPOINT_FREQ", 1, "OPTIM.MAX_EPOCH", 6)
    whole = EngineToyX(make_cfg(*settings, "OUTPUT_DIR", str(tmp_path / "whole")))
    whole.train()

    def crash(trainer):
        if trainer.epoch == 2:
            raise Crash

    cut = EngineToyX(make_cfg(*settings))
    cut.epoch_callbacks.append(crash)
    with pytest.raises(Crash):
        cut.train()
    torch.manual_seed(12345)  # whatever happened since
    resumed = EngineToyX(make_cfg(*settings))
    resumed.train()
    assert resumed.start_epoch == 3
    assert_same_bits(weights(whole), weights(resumed))
    assert resumed.best_result == whole.best_result
    assert resumed.results == whole.results


def test_checkpoints_of_different_epochs_are_not_resumed(make_cfg):
    class Two(EngineToyX):
        def build_model(self):
            super().build_model()
            self.register_model("other", torch.nn.Linear(1, 1))

    trainer = Two(make_cfg("OPTIM.MAX_EPOCH", 1))
    trainer.train()
    last = Path(trainer.output_dir) / "other" / "model.pth.tar-1"
    state = torch.load(last, weights_only=True)
    torch.save({**state, "epoch": 9}, last)
    assert Two(make_cfg()).resume_model_if_exist(trainer.output_dir) == 0


def test_load_model_by_epoch_best_and_last(make_cfg):
    trainer = EngineToyX(make_cfg("TRAIN.CHECKPOINT_FREQ", 1, "TRAIN.KEEP", 2, "OPTIM.MAX_EPOCH", 3))
    seen = []
    trainer.epoch_callbacks.append(lambda t: seen.append(weights(t)))
    trainer.train()
    other = EngineToyX(make_cfg())
    other.load_model(trainer.output_dir, epoch=2)
    assert_same_bits(weights(other), seen[1])
    other.load_model(trainer.output_dir)
    assert_same_bits(weights(other), seen[2])
    trainer.save_model(0, trainer.output_dir, val_result=1.0, model_name="model-best.pth.tar")
    trainer.load_state_dict({"net": seen[0]})
    trainer.load_model(trainer.output_dir)
    assert_same_bits(weights(trainer), seen[2])
    with pytest.raises(FileNotFoundError, match="tar-7"):
        other.load_model(trainer.output_dir, epoch=7)


# --- selection and test labels -----------------------------------------------------------------------


def test_best_val_keeps_the_best_epoch(make_cfg):
    trainer = EngineToyX(make_cfg("TEST.FINAL_MODEL", "best_val", "OPTIM.MAX_EPOCH", 4))
    scores, seen = iter([10.0, 50.0, 50.0, 20.0]), []
    trainer.validate = lambda: next(scores)
    trainer.epoch_callbacks.append(lambda t: seen.append(weights(t)))
    trainer.train()
    assert_same_bits(weights(trainer), seen[1])  # a tie keeps the earlier one
    assert trainer.best_result == 50.0


def test_validate_is_the_accuracy_on_val(make_cfg):
    trainer = EngineToyX(make_cfg())
    trainer.train()
    items = trainer.dm.dataset.val
    right = trainer.predict([item.impath for item in items]).argmax(1) == torch.tensor([i.label for i in items])
    assert trainer.validate() == pytest.approx(100 * right.double().mean().item())


def test_best_val_without_val_is_refused(make_cfg):
    trainer = EngineToyX(make_cfg("TEST.FINAL_MODEL", "best_val", "DATASET.NUM_VAL_SHOTS", 0))
    with pytest.raises(ValueError, match=r"TEST\.FINAL_MODEL"):
        trainer.train()
    with pytest.raises(ValueError, match="val split"):
        trainer.test(split="val")
    with pytest.raises(ValueError, match=r"TEST\.SPLIT"):
        trainer.test(split="train")


def test_predictions_cannot_see_test_labels(make_cfg):
    seen = []

    class Curious(EngineToyX):
        def parse_batch_test(self, batch):
            seen.extend(zip(batch["label"].tolist(), batch["domain"].tolist(), strict=True))
            return super().parse_batch_test(batch)

        def predict(self, paths):
            assert all(type(path) is str for path in paths)
            self.last = super().predict(paths)
            return self.last

    trainer = Curious(make_cfg())
    trainer.train()
    accuracy, logits = trainer.results["accuracy"], trainer.last
    dataset = trainer.dm.dataset
    wrong = [Datum(item.impath, (item.label + 1) % CLASSES, 0, item.classname) for item in dataset.test]
    dataset.test = wrong
    assert trainer.test() < accuracy
    assert torch.equal(trainer.last, logits)
    assert set(seen) == {(-1, -1)}


def test_prediction_equals_the_model_on_the_test_transform(make_cfg):
    trainer = EngineToyX(make_cfg())
    trainer.train()
    paths = [item.impath for item in trainer.dm.dataset.test]
    images = torch.stack([trainer.dm.tfm_test(read_image(path)) for path in paths])
    with torch.no_grad():
        expected = trainer.model.eval()(images)
    assert torch.allclose(trainer.predict(paths), expected, atol=1e-6)


def test_the_parts_of_a_prediction_are_reported(make_cfg, caplog):
    caplog.set_level(logging.INFO, logger="unskew")

    class Three(EngineToyX):
        def predict_parts(self, paths):
            logits = self.predict(paths)
            return Prediction(logits, {"zs": -logits, "ft": logits.roll(1, 1), "gla": logits})

    trainer = Three(make_cfg())
    trainer.train()
    results = trainer.results
    assert results["gla_accuracy"] == results["accuracy"]
    assert results["zs_accuracy"] < results["accuracy"]
    assert f"* ft accuracy: {results['ft_accuracy']:.1f}%" in caplog.messages


def test_a_missing_image_names_file_and_dataset(make_cfg):
    trainer = EngineToyX(make_cfg())
    with pytest.raises(FileNotFoundError, match=r"gone\.png.*EngineToy"):
        trainer.predict(["gone.png"])


def test_fit_trains_without_a_test(make_cfg, caplog):
    caplog.set_level(logging.INFO, logger="unskew")
    inner, outer = EngineToyX(make_cfg()), EngineToyX(make_cfg("OUTPUT_DIR", "unused"))
    inner.fit()
    assert not inner.results
    assert "Finish training" not in caplog.messages
    outer.load_state_dict(inner.state_dict())
    assert_same_bits(weights(inner), weights(outer))


# --- precision, anomalies, devices -------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["amp", "bf16"])
def test_mixed_precision_on_a_cpu_is_bfloat16(make_cfg, tmp_path, precision):
    kinds = set()

    def watch(trainer):
        def note(module, inputs, output):
            kinds.add((output.dtype, trainer.accelerator.mixed_precision))

        trainer.model[2].register_forward_hook(note)

    trainer = EngineToyX(make_cfg("TRAINER.PREC", precision, "OPTIM.MAX_EPOCH", 15))
    watch(trainer)
    plain = EngineToyX(make_cfg("OUTPUT_DIR", str(tmp_path / "plain")))  # another precision, built in between
    trainer.train()
    assert kinds == {(torch.bfloat16, "bf16")}
    assert trainer.results["accuracy"] > 90
    assert trainer.predict([trainer.dm.dataset.test[0].impath]).dtype == torch.float32
    kinds.clear()
    watch(plain)
    plain.train()
    assert kinds == {(torch.float32, "no")}


def test_fp16_on_a_cpu_runs_in_fp32_with_one_warning(make_cfg, caplog):
    kinds = set()
    for _ in range(2):
        trainer = EngineToyX(make_cfg("TRAINER.PREC", "fp16"))
        trainer.model[2].register_forward_hook(lambda module, inputs, output: kinds.add(output.dtype))
    trainer.train()
    assert kinds == {torch.float32}
    assert sum("fp16 needs a GPU" in message for message in caplog.messages) <= 1
    with pytest.raises(ValueError, match="fp32, fp16, bf16, amp"):
        EngineToyX(make_cfg("TRAINER.PREC", "half"))


@pytest.mark.parametrize("batch_idx", [0, 2])  # before and after the epoch's last log line
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run(make_cfg, value, batch_idx):
    class Explodes(EngineToyX):
        def forward_backward(self, batch):
            loss = self.model(batch["img"]).sum() * (value if (self.epoch, self.batch_idx) == (1, batch_idx) else 1.0)
            self.model_backward_and_update(loss)
            return {"loss": loss.detach()}

    trainer = Explodes(make_cfg("TRAIN.CHECKPOINT_FREQ", 1, "TRAIN.PRINT_FREQ", 2))
    with pytest.raises(FloatingPointError, match=r"infinite or NaN! \(epoch 2\)"):
        trainer.train()
    assert [p.name for p in (Path(trainer.output_dir) / "net").glob("model*")] == ["model.pth.tar-1"]
    with pytest.raises(FloatingPointError):
        trainer.detect_anomaly(torch.tensor([1.0, value]))


def test_meters_wait_for_the_device_only_when_read():
    meter = MetricMeter()
    meter.update({"loss": torch.ones((), device="meta")})  # a tensor whose value cannot be had
    with pytest.raises(RuntimeError):
        str(meter)


def test_meters_average():
    meter = MetricMeter()
    for value in (1.0, 2.0, 6.0):
        meter.update({"loss": torch.tensor([value]), "acc": 10 * value})
    assert str(meter) == "loss 6.0000 (3.0000) acc 60.0000 (30.0000)"
    assert (meter.meters["loss"].val, meter.meters["loss"].avg) == (6.0, 3.0)
    smooth = AverageMeter(ema=True)
    smooth.update(1.0)
    smooth.update(3.0)
    assert smooth.avg == pytest.approx(0.1 * 0.9 + 0.3)
    with pytest.raises(TypeError, match="dict"):
        meter.update([1.0])


# --- registering, logging ----------------------------------------------------------------------------


def test_registering_models(make_cfg):
    trainer = EngineToyX(make_cfg())
    assert trainer.get_model_names() == ["net"] == trainer.get_model_names("net")
    with pytest.raises(ValueError, match="'net'"):
        trainer.register_model("net", trainer.model)
    with pytest.raises(ValueError, match="no model named 'nte'"):
        trainer.get_model_names(["nte"])
    with pytest.raises(KeyError):
        trainer.set_model_mode("sleep")

    class Hasty(TrainerBase):
        def __init__(self):
            self.register_model("net", torch.nn.Linear(1, 1))

    with pytest.raises(AttributeError, match="super"):
        Hasty()


def test_each_run_has_its_own_log(tmp_path, capsys, monkeypatch):
    logger = logging.getLogger("unskew")
    before = (list(logger.handlers), logger.level, logger.propagate)
    shouting = logging.StreamHandler(sys.stdout)  # what logging.basicConfig leaves behind
    monkeypatch.setattr(logging.getLogger(), "handlers", [shouting])
    with setup_logger(tmp_path / "a"):
        logger.info("first")
    with setup_logger(tmp_path / "b", console=False):
        logger.info("second")
        logger.warning("watch out")
    logger.info("nowhere")
    assert (tmp_path / "a" / "log.txt").read_text() == "first\n"
    assert (tmp_path / "b" / "log.txt").read_text() == "second\nwatch out\n"
    out, err = capsys.readouterr()
    assert (out, err) == ("first\n", "watch out\n")
    assert (logger.handlers, logger.level, logger.propagate) == before


def test_an_output_folder_that_cannot_be_written_is_a_value_error(make_cfg, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="cannot be written"):
        EngineToyX(make_cfg("OUTPUT_DIR", str(tmp_path / "file" / "run"))).train()
    with pytest.raises(ValueError, match="cannot be written"):
        setup_logger(tmp_path / "file" / "run")


def test_random_seed():
    set_random_seed(0)
    zero = torch.rand(3), np.random.rand(3)  # noqa: NPY002
    set_random_seed(-1)  # does nothing
    after = torch.rand(3)
    set_random_seed(0)
    assert torch.equal(torch.rand(3), zero[0])
    assert np.array_equal(np.random.rand(3), zero[1])  # noqa: NPY002
    assert torch.equal(torch.rand(3), after)


def test_env_info_names_versions():
    assert f"torch {torch.__version__.split('+')[0]}" in collect_env_info()


# --- several processes -------------------------------------------------------------------------------

SCRIPT = """
import sys, torch
sys.path.insert(0, {folder!r})
import test_trainer
from unskew.config import read_yaml, get_cfg_default
cfg = get_cfg_default()
cfg.merge_from_file({config!r})
test_trainer.EngineToyX.dropout = 0.0
trainer = test_trainer.EngineToyX(cfg)
trainer.train()
if trainer.accelerator.is_main_process:
    torch.save({{**trainer.state_dict()["net"], "accuracy": trainer.results["accuracy"],
                "processes": trainer.accelerator.num_processes}}, {result!r})
"""


@pytest.mark.slow
def test_two_processes_train_like_one_with_the_same_batch(make_cfg, tmp_path, monkeypatch):
    common = ("INPUT.TRANSFORMS", [], "OPTIM.MAX_EPOCH", 3)
    cfg = make_cfg(*common, "DATALOADER.TRAIN_X.BATCH_SIZE", 5, "OUTPUT_DIR", str(tmp_path / "two"))
    (tmp_path / "config.yaml").write_text(cfg.dump())
    names = {"folder": str(Path(__file__).parent), "config": str(tmp_path / "config.yaml")}
    (tmp_path / "script.py").write_text(SCRIPT.format(**names, result=str(tmp_path / "result")))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "script.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    two = torch.load(tmp_path / "result", weights_only=True)
    assert two["processes"] == 2

    monkeypatch.setattr(EngineToyX, "dropout", 0.0)
    one = EngineToyX(make_cfg(*common, "DATALOADER.TRAIN_X.BATCH_SIZE", 5, "OUTPUT_DIR", str(tmp_path / "one")))
    one.train()
    for key, value in weights(one).items():
        assert torch.allclose(value, two[key], atol=1e-6)
    assert one.results["accuracy"] == pytest.approx(two["accuracy"])
