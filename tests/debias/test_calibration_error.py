"""The expected calibration error against torchmetrics, which the package itself does not need."""

import subprocess
import sys

import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from unskew.debias.metrics import ECE_BINS, classification_metrics
from unskew.utils import blocks


def scores(seed, images, classes):
    generator = torch.Generator().manual_seed(seed)
    logits = 8 * torch.rand(images, 1, generator=generator) * torch.randn(images, classes, generator=generator)
    return logits, torch.randint(0, classes, (images,), generator=generator)


def kinds():
    logits, labels = scores(0, 3000, 7)
    certain = logits.clone()
    certain[::3, 2] += 200  # a confidence of exactly 1
    ruled_out = logits.clone()
    ruled_out[:, 6] = -torch.inf
    return {
        "float32": (logits, labels),
        "float64": (logits.double(), labels),
        "float16": (logits.half(), labels),
        "ties": (logits.round(), labels),
        "confidence of 1": (certain, labels),
        "minus infinity": (ruled_out, labels),
        "one image": (logits[:1], labels[:1]),
        "two classes": scores(1, 500, 2),
        "labels in a byte": (scores(2, 900, 300)[0], scores(2, 900, 200)[1].byte()),
    }


@pytest.mark.parametrize("kind", kinds())
def test_it_is_torchmetrics_to_the_bit(kind):
    logits, labels = kinds()[kind]
    probabilities = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(1).float()
    expected = multiclass_calibration_error(probabilities, labels.long(), logits.shape[1], ECE_BINS, "l1")
    assert classification_metrics(logits, labels)["ece"] == 100 * expected.double().item()


def test_blocks_of_rows_have_the_same_bits(monkeypatch):
    logits, labels = scores(3, 1000, 30)
    whole = classification_metrics(logits, labels)
    monkeypatch.setattr(blocks, "MOST_NUMBERS", 30 * 70)
    assert len(blocks.row_blocks(*logits.shape)) == 15
    assert classification_metrics(logits, labels) == whole


SCRIPT = """
import sys
sys.modules["torchmetrics"] = None  # importing it is an error
import torch
from unskew.debias.metrics import classification_metrics

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

classification_metrics(torch.randn(100, 10), torch.zeros(100, dtype=torch.long))
logits = torch.randn(20_000, 3_000)  # 229 MiB
labels = logits.argmax(1)
open("/proc/self/clear_refs", "w").write("5")
before = peak()
print(classification_metrics(logits, labels)["accuracy"], (peak() - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_metrics_need_no_torchmetrics_and_little_memory():
    found = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout.split()
    assert float(found[0]) == 100
    assert int(found[1]) < 150  # MiB; the softmax of all logits would take 229 MiB
