"""Files that a script's run leaves for tables and the report."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import unskew
from unskew.dassl import engine
from unskew.dassl.config import get_cfg_default
from unskew.dassl.data import DATASET_REGISTRY, DatasetBase, Datum
from unskew.dassl.optim import build_lr_scheduler, build_optimizer
from unskew.engine import prediction_file
from unskew.engine.run_dir import RunDir
from unskew.runs import tables
from unskew.runs.report.gather import ReportRun

CLASSES = ("bark", "felt", "sand")


@DATASET_REGISTRY.register()
class ResultsToy(DatasetBase):
    """8 x 8 images, one colour per class: 12 to train on, 6 for val, 12 to test."""

    def __init__(self, cfg):
        items = []
        for number in range(30):
            label = number % len(CLASSES)
            path = f"{cfg.DATASET.ROOT}/{number:02d}.png"
            pixels = np.random.default_rng(number).integers(0, 120, (8, 8, 3), dtype=np.uint8)
            pixels[..., label] += 100
            Image.fromarray(pixels).save(path)
            items.append(Datum(path, label, classname=CLASSES[label]))
        super().__init__(train_x=items[:12], val=items[12:18], test=items[18:])


@engine.TRAINER_REGISTRY.register()
class ResultsLinear(engine.TrainerX):
    """A linear classifier of pixels."""

    def build_model(self):
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(192, len(CLASSES)))
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("net", self.model, self.optim, self.sched)

    def forward_backward(self, batch):
        loss = F.cross_entropy(self.model(batch["img"]), batch["label"])
        self.model_backward_and_update(loss)
        return {"loss": loss.item()}


@engine.TRAINER_REGISTRY.register()
class ResultsOwnLoop(ResultsLinear):
    """A trainer that overrides `train`, `test` and `load_model`, as CLAP and AD-CLIP do."""

    def train(self):
        for self.epoch in range(2):
            self.num_batches = len(self.train_loader_x)
            for batch in self.train_loader_x:
                self.forward_backward(batch)
        self.save_model(1, self.output_dir)
        self.test("val")
        self.test()
        self.test("val")  # its results are not those of the run

    @torch.no_grad()
    def test(self, split=None):
        loader = self.val_loader if split == "val" else self.test_loader
        hits = [self.model(batch["img"]).argmax(1) == batch["label"] for batch in loader]
        return 100.0 if split == "val" else 100 * torch.cat(hits).double().mean().item()

    def load_model(self, directory, epoch=None):
        super().load_model(directory, epoch)


@pytest.fixture
def make(tmp_path):
    """Return a function that builds a trainer as scripts do."""

    def make(name="ResultsLinear", *pairs, folder="run"):
        cfg = get_cfg_default()
        cfg.merge_from_list(["DATASET.NAME", "ResultsToy", "DATASET.ROOT", str(tmp_path), "TRAINER.NAME", name])
        cfg.merge_from_list(["OUTPUT_DIR", str(tmp_path / folder), "INPUT.SIZE", (8, 8), "USE_CUDA", False, "SEED", 3])
        cfg.merge_from_list(["DATALOADER.TRAIN_X.BATCH_SIZE", 4, "OPTIM.MAX_EPOCH", 2, *pairs])
        cfg.freeze()
        torch.manual_seed(3)
        return engine.build_trainer(cfg)

    return make


def test_a_finished_run_has_the_files_of_unskew_train(make, tmp_path):
    trainer = make()
    trainer.train()
    folder = RunDir(tmp_path / "run")
    metrics, predictions = tables.read_metrics(folder.metrics), prediction_file.read(folder.predictions)
    expected = {"dataset": "ResultsToy", "trainer": "ResultsLinear", "seed": 3, "shots": -1, "labelled_images": 4}
    assert folder.is_finished and expected.items() <= metrics.items()
    assert metrics["accuracy"] == trainer.results["accuracy"] and metrics["classnames"] == list(CLASSES)
    assert metrics["trained_parameters"] == 192 * 3 + 3
    logits, labels = predictions["logits"], predictions["labels"]
    assert labels.tolist() == [0, 1, 2] * 4
    assert metrics["accuracy"] == pytest.approx(100 * (logits.argmax(1) == labels).double().mean().item())


def test_a_folder_of_another_run_is_refused_and_stays(make, tmp_path):
    make().train()
    before = (tmp_path / "run" / "metrics.json").read_bytes()
    with pytest.raises(ValueError, match="finished run of ResultsLinear on ResultsToy"):
        make("ResultsOwnLoop").train()
    make().train()  # the same run again
    RunDir(tmp_path / "run").config.write_text("of unskew train", encoding="utf-8")
    with pytest.raises(ValueError, match="another output folder"):
        make().train()
    assert json.loads(before)["accuracy"] == tables.read_metrics(tmp_path / "run" / "metrics.json")["accuracy"]


def test_tables_and_the_report_see_the_run(make, tmp_path):
    make().train()
    rows = tables.collect(tmp_path)
    assert [(row["trainer"], row["folder"]) for row in rows] == [("ResultsLinear", str(tmp_path / "run"))]
    found = ReportRun(rows[0], tmp_path / "run")
    assert found.predictions is not None and found.classnames == list(CLASSES)
    assert len(unskew.results(tmp_path)) == 1


def test_a_trainer_with_its_own_loop_and_test_has_its_accuracy(make, tmp_path):
    trainer = make("ResultsOwnLoop")
    trainer.train()
    accuracy = trainer.test()
    (row,) = tables.collect(tmp_path)
    assert row["accuracy"] == accuracy != 100
    assert not RunDir(tmp_path / "run").predictions.exists()  # its test keeps none


@pytest.mark.parametrize("name", ["ResultsLinear", "ResultsOwnLoop"])
def test_an_evaluation_is_no_run(make, tmp_path, name):
    make(name).train()
    before = RunDir(tmp_path / "run").metrics.read_text()
    for folder, place in (("other", "other"), ("run", "run/eval/ResultsToy")):
        trainer = make(name, folder=folder)
        trainer.load_model(str(tmp_path / "run"))
        accuracy = trainer.test()
        found = tables.read_metrics(tmp_path / place / "metrics.json")
        assert (found["evaluated_from"], found["accuracy"]) == (str(tmp_path / "run"), accuracy)
    runs, evaluations = tables.collect_both(tmp_path)
    assert (len(runs), len(evaluations)) == (1, 2)
    assert RunDir(tmp_path / "run").metrics.read_text() == before


def test_a_script_may_set_the_shots_to_none(make, tmp_path):
    make("ResultsLinear", "DATASET.NUM_SHOTS", None).train()  # the key of Prompt-based-Distribution-Alignment
    assert tables.collect(tmp_path)[0]["shots"] == -1


def test_a_test_without_weights_is_a_run(make, tmp_path):
    trainer = make()
    trainer.test()
    assert not tables.collect(tmp_path)  # its model is random
    trainer._models.clear()  # a zero-shot method
    trainer.test()
    assert len(tables.collect(tmp_path)) == 1


def test_a_run_that_fails_is_not_finished_and_its_checkpoints_stay(make, tmp_path):
    make().train()
    trainer = make("ResultsLinear", "OPTIM.MAX_EPOCH", 4)
    trainer.forward_backward = lambda batch: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert trainer.start_epoch == 2  # resumed, as in Dassl
    assert tables.collect(tmp_path) == [] and not (tmp_path / "run" / "metrics.json").exists()
    make("ResultsLinear", "OPTIM.MAX_EPOCH", 4).train()
    assert len(tables.collect(tmp_path)) == 1


def test_results_that_cannot_be_computed_stop_no_script(make, tmp_path, caplog):
    trainer = make()
    trainer.test_names = lambda: {0: object()}
    trainer.train()
    assert "no metrics.json" in caplog.text and tables.collect(tmp_path) == []
