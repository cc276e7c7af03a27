"""Predictions in blocks of rows: the same logits as in one piece, in little more memory than they take."""

import subprocess
import sys

import pytest
import torch
from building import build

from unskew.debias import combine_members
from unskew.engine.clip_trainer import CLIPTrainer
from unskew.trainers import backdoor
from unskew.utils import blocks

ROWS = 32  # in a block of ten classes


def all_paths(trainer):
    return [item.impath for item in trainer.dataset.test]


@pytest.mark.parametrize(
    ("name", "crops"), [("ZeroshotCLIP", 1), ("ZeroshotCLIP", 5), ("LinearProbe", 1), ("TaskRes", 1), ("GLA", 1)]
)
def test_a_trainer_predicts_in_blocks_what_it_predicts_in_one_piece(name, crops, data_root, tmp_path, monkeypatch):
    trainer = build(name, data_root, tmp_path, "TEST.CROPS", crops, "OPTIM.MAX_EPOCH", 1)
    trainer.train()
    paths = all_paths(trainer)
    whole, sizes, mean = trainer.predict_parts(paths), [], CLIPTrainer._mean_over_crops

    def recorded(self, logits_of, paths):
        return mean(self, lambda features: sizes.append(len(features)) or logits_of(features), paths)

    monkeypatch.setattr(CLIPTrainer, "_mean_over_crops", recorded)
    monkeypatch.setattr(blocks, "MOST_NUMBERS", 10 * ROWS)
    found = trainer.predict_parts(paths)
    assert len(sizes) >= len(paths) * crops / (ROWS + crops) and max(sizes) <= ROWS + crops
    torch.testing.assert_close(found.logits, whole.logits, rtol=1e-5, atol=1e-5)
    assert list(found.parts) == list(whole.parts)
    for part, logits in whole.parts.items():
        torch.testing.assert_close(found.parts[part], logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("combine", ["logits", "probs"])
def test_backdoor_combines_its_members_in_blocks(combine, data_root, tmp_path, monkeypatch):
    opts = ("TRAINER.BACKDOOR.MEMBERS", ["micro-a", "micro-b"], "TRAINER.BACKDOOR.BASE", "ZeroshotCLIP")
    trainer = build("Backdoor", data_root, tmp_path, *opts, "TRAINER.BACKDOOR.COMBINE", combine)
    trainer.train()
    whole, shapes = trainer.predict_parts(all_paths(trainer)), []

    def recorded(logits, *rest):
        shapes.append(logits.shape)
        return combine_members(logits, *rest)

    monkeypatch.setattr(backdoor, "combine_members", recorded)
    monkeypatch.setattr(blocks, "MOST_NUMBERS", 10 * ROWS)
    found = trainer.predict_parts(all_paths(trainer))
    assert len(shapes) > 10 and all(shape[0] == 2 and shape[1] <= ROWS // 2 + 1 for shape in shapes)
    assert found.logits is found.parts["backdoor"]
    torch.testing.assert_close(found.logits, whole.logits, rtol=1e-5, atol=1e-5)
    for member in ("micro-a", "micro-b"):
        torch.testing.assert_close(found.parts[member], whole.parts[member], rtol=1e-5, atol=1e-5)


SCRIPT = """
import contextlib
from types import SimpleNamespace
import torch
from unskew.engine import testing
from unskew.engine.clip_trainer import CLIPTrainer

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

def predict(images, classes, kind):
    if kind == "features":
        weights = torch.randn(classes, 8)
        trainer = SimpleNamespace(num_classes=classes, dm=SimpleNamespace(tfm_crops=[None]))
        trainer._extract = lambda paths, transform: torch.ones(len(paths), 8)
        return CLIPTrainer._mean_over_crops(trainer, lambda features: features @ weights.T, ["path"] * images)
    loader = lambda paths: ({"img": torch.ones(len(paths[i : i + 100]), classes)} for i in range(0, images, 100))
    trainer = SimpleNamespace(dm=SimpleNamespace(tfm_crops=[None], path_loader=loader))
    trainer.accelerator = SimpleNamespace(num_processes=1, process_index=0, autocast=contextlib.nullcontext)
    trainer.parse_batch_test, trainer.model_inference = lambda batch: (batch["img"], None), lambda images: images
    return testing.predict_images(trainer, ["path"] * images)

for kind in ("features", "images"):
    predict(1000, 100, kind)
    open("/proc/self/clear_refs", "w").write("5")
    before = peak()
    size = predict(40_000, 2_000, kind).nbytes
    print(size // 2**20, (peak() - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_of_a_prediction_is_that_of_its_logits():
    found = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    for line in found.splitlines():  # of cached features and of images
        size, used = map(int, line.split())
        assert size == 305  # MiB
        assert used < size + 150
    assert len(found.splitlines()) == 2
