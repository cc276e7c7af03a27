"""Memory of `unskew adjust`: the inputs, the output and a block of rows."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from unskew.cli import adjust
from unskew.cli.main import main
from unskew.debias import _predicting
from unskew.debias.gla import GLA
from unskew.utils.files import write_atomically

SAMPLES, CLASSES = 40_000, 500  # 80 MB in float32

# The first run, on few samples, imports and allocates all that does not depend on the size.
PROGRAM = """
import sys
from unskew.cli.main import main

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) // 1024

folder = sys.argv[1]
def adjust(prefix):
    files = {"zeroshot": prefix + "zs", "finetuned": prefix + "ft", "labels": prefix + "y"}
    files |= {"val-zeroshot": "few_zs", "val-finetuned": "few_ft", "val-labels": "few_y"}
    flags = [word for flag, name in files.items() for word in (f"--{flag}", f"{folder}/{name}.npy")]
    assert main(["adjust", *flags, "--out", f"{folder}/out.safetensors"]) == 0

adjust("few_")
before = peak()
adjust("")
print(peak() - before)
"""


def write(folder, prefix, samples, classes):
    rng = np.random.default_rng(0)
    labels = np.arange(samples) % classes
    for name in ("zs", "ft"):
        logits = rng.normal(size=(samples, classes)).astype(np.float32)
        logits[np.arange(samples), labels] += 3
        np.save(folder / f"{prefix}{name}.npy", logits)
    np.save(folder / f"{prefix}y.npy", labels)


@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM")
def test_the_peak_is_the_inputs_the_output_and_a_block(tmp_path):
    write(tmp_path, "", SAMPLES, CLASSES)
    write(tmp_path, "few_", 1000, CLASSES)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) < 3 * 80 + 100


def test_blocks_do_not_change_the_output(tmp_path, monkeypatch, capsys):
    write(tmp_path, "", 300, 7)
    flags = [f"--{flag}={tmp_path}/{name}.npy" for flag, name in (("zeroshot", "zs"), ("finetuned", "ft"))]
    outputs, said = [], []
    for block in (2**20, 50):
        monkeypatch.setattr(_predicting, "BLOCK", block)
        command = ["adjust", *flags, f"--labels={tmp_path}/y.npy", f"--out={tmp_path}/out.safetensors"]
        assert main(command) == 0
        outputs.append(load_file(tmp_path / "out.safetensors"))
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert all(torch.equal(outputs[0][name], outputs[1][name]) for name in ("logits", "log_q"))


def test_the_output_is_written_from_its_memory(tmp_path, monkeypatch):
    write(tmp_path, "", 300, 7)
    contents = []

    def write_and_see(path, content):
        contents.append(content)
        write_atomically(path, content)

    monkeypatch.setattr(adjust, "write_atomically", write_and_see)
    flags = [f"--{flag}={tmp_path}/{name}.npy" for flag, name in (("zeroshot", "zs"), ("finetuned", "ft"))]
    assert main(["adjust", *flags, f"--out={tmp_path}/out.safetensors"]) == 0
    assert callable(contents[0])  # not bytes, which would be a copy
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert {name: file.get_slice(name).get_shape() for name in file.keys()} == {"logits": [300, 7], "log_q": [7]}  # noqa: SIM118
        assert float(file.metadata()["zs_weight"]) == 0.7


@pytest.mark.parametrize("options", [{}, {"combine": "otter"}, {"prior": "unlabelled"}, {"combine": "sum"}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_an_estimator_predicts_the_same_in_blocks(monkeypatch, options, dtype):
    if "otter" in options.values():
        pytest.importorskip("ot")
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 5
    zs, ft = ((3 * torch.eye(5)[labels] + torch.randn(120, 5, generator=generator)).to(dtype) for _ in range(2))
    gla, target = GLA(**options).fit(zs.float(), ft.float(), labels), torch.tensor([3.0, 2, 1, 1, 1]).log_softmax(0)
    found = []
    for block in (2**20, 35):
        monkeypatch.setattr(_predicting, "BLOCK", block)
        results = [*gla.parts(zs, ft, log_target=target).values(), gla.fitted_logits(zs, ft), gla.log_q_for(zs)]
        for call in (gla.decision_function, gla.predict_proba, gla.predict):
            results += [call(zs, ft, log_target=target), call(zs, log_target=target)]
        found.append(results)
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    assert len(found[0]) == 13
