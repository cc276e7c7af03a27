"""A script written for Dassl (tests/dassl/dassl_style), run unmodified by `python -m unskew.dassl`."""

import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from items import dump_fewshot
from PIL import Image

from unskew.utils.safe_pickle import read_fewshot

HERE = Path(__file__).parent / "dassl_style"
CLASSES = ("bark", "felt", "sand")
DEPLOYED = "Deploy the model with the best val performance"
EPOCHS, BATCHES = 25, 2  # 3 images of each class to train on, in batches of 4; the incomplete one is dropped


def start(*arguments, cwd=HERE, path=(), **extra):
    """Start a process; ``path`` has more folders to import from."""
    folders = os.pathsep.join([str(Path(__file__).parents[2]), *map(str, path)])
    environment = {**os.environ, "PYTHONPATH": folders, "OMP_NUM_THREADS": "1", **extra}
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = [sys.executable, "-m", "unskew.dassl", *map(str, arguments)]
    return subprocess.Popen(command, cwd=cwd, env=environment, **pipe)


def finish(process):
    """Return the output of a process that ends without an error."""
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    return output


def write_images(folder):
    """12 images of 32 x 32 per class: 4 to train on, 2 for val, 6 to test."""
    draws = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(12):
            pixels = draws.integers(0, 120, (32, 32, 3), dtype=np.uint8)
            pixels[..., label] += 100
            Image.fromarray(pixels).save(folder / name / f"{number:02d}.png")


def write_real_dassl(folder):
    """Create a package that stands for an installed Dassl."""
    (folder / "dassl").mkdir(parents=True)
    (folder / "dassl" / "__init__.py").write_text("__version__ = 'real'\n")
    return folder


def write_weights(folder):
    """Save random weights of the script's CLIP."""
    sys.path.insert(0, str(HERE))
    try:
        from tinyclip import CLIP
    finally:
        sys.path.remove(str(HERE))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(CLIP().state_dict(), folder / "tiny.pt")


def accuracy_of(log):
    """Return the last accuracy after the end of training, as CoOp's parse_test_res."""
    ended, found = False, None
    for line in log.splitlines():
        ended = ended or line.strip() == "Finish training"
        match = re.search(r"\* accuracy: ([\.\deE+-]+)%", line.strip())
        found = float(match[1]) if match and ended else found
    return found


def batches_of(log):
    """Return ``{(epoch, batch): the loss, accuracy and learning rate of the line}``."""
    pattern = r"^epoch \[(\d+)/\d+\] batch \[(\d+)/\d+\] time .* (loss .* acc .* lr \S+) eta \d+:\d\d:\d\d$"
    return {(int(epoch), int(batch)): rest for epoch, batch, rest in re.findall(pattern, log, re.MULTILINE)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """An uninterrupted run whose best epoch is tested again, and the same run killed and resumed."""
    folder = tmp_path_factory.mktemp("dassl")
    images = folder / "data" / "tiny_textures" / "images"
    write_images(images)
    write_weights(folder)
    # An old few-shot file of CoOp: of each class images 1 to 3.
    old = [(str(images / name / f"{n:02d}.png"), label, name) for label, name in enumerate(CLASSES) for n in (1, 2, 3)]
    dump_fewshot(images.parent / "split_fewshot" / "shot_3-seed_1.pkl", train=old, val=old[:6])

    def run(name, *flags, seed=1, precision="fp32", before=(), script="train.py", path=()):
        files = ("--dataset-config-file", "configs/dataset.yaml", "--config-file", "configs/trainer.yaml")
        own = ("--root", folder / "data", "--output-dir", folder / name, "--trainer", "CoOp", "--seed", seed)
        pairs = ("DATASET.NUM_SHOTS", 3, "USE_CUDA", False, "TRAINER.COOP.PREC", precision)
        return start(*before, script, *own, *files, *flags, *pairs, path=path, TINYCLIP=str(folder))

    # Without a GPU PyTorch's own mixed precision computes in full precision, so that both are the same run.
    whole, killed = run("whole"), run("resumed", precision="amp")
    note = folder / "resumed" / "prompt_learner" / "checkpoint"
    until = time.monotonic() + 60
    while not note.is_file() and killed.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    before = (folder / "resumed" / "log.txt").read_text()
    epoch = torch.load(note.with_name(note.read_text().strip()), weights_only=True)["epoch"]
    resumed, outputs = run("resumed", precision="amp"), {"whole": finish(whole)}
    keys = run("keys", script="train_own_defaults.py", path=[Path(__file__).parents[1]])
    tested = ("--eval-only", "--model-dir", folder / "whole")
    tested = run("tested", *tested, seed=7, before=["--force"], path=[write_real_dassl(folder / "real")])
    outputs |= {"resumed": finish(resumed), "tested": finish(tested), "keys": finish(keys)}
    logs = {name: (folder / name / "log.txt").read_text() for name in outputs}
    facts = {"killed": killed.returncode, "epoch": epoch, "before": before}
    return SimpleNamespace(folder=folder, outputs=outputs, logs=logs, **facts)


def test_the_log_has_every_printed_line_once(runs):
    log, output = runs.logs["whole"], runs.outputs["whole"]
    for line in ("Loading trainer: CoOp", "Loading CLIP (backbone: Tiny)", "Finish training", DEPLOYED):
        assert log.splitlines().count(line) == 1
        assert output.splitlines().count(line) == 1
    assert "No checkpoint found, train from scratch" in log
    assert "Setting fixed seed: 1" not in log  # printed before setup_logger


def test_log_lines_are_dassls(runs):
    batches = batches_of(runs.logs["whole"])
    # Fewer batches than PRINT_FREQ: each has its line.
    assert list(batches) == [(epoch, batch) for epoch in range(1, EPOCHS + 1) for batch in range(1, BATCHES + 1)]
    assert "deprecated" not in runs.outputs["resumed"]


def test_the_schedule_is_stepped_after_an_epochs_last_batch(runs):
    batches = batches_of(runs.logs["whole"])
    for epoch in range(1, EPOCHS):  # the schedule counts from 0; its first epoch is the warm-up
        rate = 1e-5 if epoch == 1 else 0.1 * (1 + math.cos(math.pi * (epoch - 2) / EPOCHS)) / 2
        then = 0.1 * (1 + math.cos(math.pi * (epoch - 1) / EPOCHS)) / 2
        assert batches[epoch, 1].endswith(f" lr {rate:.4e}")
        assert batches[epoch, BATCHES].endswith(f" lr {then:.4e}")


def test_a_killed_and_resumed_run_equals_an_uninterrupted_run(runs):
    assert runs.killed == -signal.SIGKILL
    assert 1 <= runs.epoch < EPOCHS
    log = runs.logs["resumed"]
    assert log.startswith(runs.before)  # appended to
    assert "will resume training" in log[len(runs.before) :]
    again = batches_of(log[len(runs.before) :])
    assert next(iter(again)) == (runs.epoch + 1, 1)
    whole = batches_of(runs.logs["whole"])
    assert again == {place: line for place, line in whole.items() if place[0] > runs.epoch}
    assert batches_of(log) == whole
    states = [
        torch.load(runs.folder / name / "prompt_learner" / f"model.pth.tar-{EPOCHS}", weights_only=True)
        for name in ("resumed", "whole")
    ]
    assert torch.equal(states[0]["state_dict"]["ctx"], states[1]["state_dict"]["ctx"])
    assert states[0]["epoch"] == EPOCHS


def test_a_script_with_its_own_copy_of_dassls_keys_gets_the_same_losses(runs):
    assert batches_of(runs.logs["keys"]) == batches_of(runs.logs["whole"])
    assert accuracy_of(runs.logs["keys"]) == accuracy_of(runs.logs["whole"])
    printed = runs.logs["keys"].partition("** System info **")[0]
    assert "COUNT_ITER" in printed and "ACCUMULATE" not in printed


def test_scripts_can_parse_the_results(runs):
    accuracy = accuracy_of(runs.logs["whole"])
    assert accuracy > 100 / len(CLASSES) + 1
    assert accuracy_of(runs.logs["resumed"]) == accuracy


def test_the_best_epoch_is_deployed_and_tested_again(runs):
    log, again = runs.logs["whole"], runs.logs["tested"]
    assert DEPLOYED in log
    epochs = re.findall(r"Loading weights to prompt_learner from .*model-best.pth.tar. \(epoch = (\d+)\)", log)
    assert len(epochs) == 1
    assert f"(epoch = {epochs[0]})" in again
    assert "Finish training" not in again
    assert f"* accuracy: {accuracy_of(log):.1f}%" in again


def test_fewshot_files_go_both_ways(runs):
    folder = runs.folder / "data" / "tiny_textures" / "split_fewshot"
    assert f"Loading preprocessed few-shot data from {folder / 'shot_3-seed_1.pkl'}" in runs.logs["whole"]
    assert re.search(r"# train_x +9\n# val +6\n# test +18\n", runs.logs["whole"])
    assert f"Saving preprocessed few-shot data to {folder / 'shot_3-seed_7.pkl'}" in runs.logs["tested"]
    written = read_fewshot(folder / "shot_3-seed_7.pkl")
    assert {split: len(items) for split, items in written.items()} == {"train": 9, "val": 6}


# --- the command itself ------------------------------------------------------------------------------


@pytest.fixture
def script(tmp_path):
    """Return a function that runs a script with an installed Dassl, so that torch is not loaded."""
    installed = write_real_dassl(tmp_path / "installed")

    def run(text, *arguments, **extra):
        (tmp_path / "script.py").write_text(text)
        process = start("script.py", *arguments, cwd=tmp_path, path=[installed], **extra)
        return process.communicate(timeout=60)[0], process.returncode

    return run


def test_a_script_sees_itself_as_the_program(script, tmp_path):
    text = "import sys; print(sys.argv, sys.path[0], __name__); sys.exit(7)"
    output, code = script(text, "--force", "-h", "3")
    assert f"['script.py', '--force', '-h', '3'] {tmp_path.resolve()} __main__" in output
    assert code == 7


def test_an_installed_dassl_is_used_unless_forced(script, runs):
    output, code = script("import dassl, sys; print(dassl.__version__, 'torch' in sys.modules)")
    assert (output.splitlines()[-1], code) == ("real False", 0)
    assert re.match(r"unskew: .*dassl/__init__\.py.*--force", output)
    assert "=> result" in runs.outputs["tested"]  # forced, where there is one


# An error of PyTorch in a call of this engine.
LIBRARY_ERROR = """
from unskew.config import get_cfg_default
from unskew.data.loaders import build_data_loader
build_data_loader(get_cfg_default(), data_source=["an image"], batch_size=0)
"""


def test_errors_of_the_engine_are_one_line_and_errors_of_the_script_have_a_traceback(script):
    text = "from unskew.utils.registry import Registry; Registry('animal').get('cat')"
    output, code = script(text)
    assert (
        re.fullmatch(r"unskew: error: .*'cat'.*UNSKEW_DEBUG.*", output.splitlines()[-1]) and "Traceback" not in output
    )
    assert code == 2
    output, code = script(LIBRARY_ERROR)
    assert output.splitlines()[-1].startswith("unskew: error: batch_size should be") and code == 2  # PyTorch's message
    output, code = script("a, b = [1]")
    assert 'File "script.py", line 1' in output
    assert code == 1
    output, code = script(text, UNSKEW_DEBUG="1")
    assert "Traceback" in output
    assert code == 1


def test_without_a_script(tmp_path):
    process = start(cwd=tmp_path)
    assert process.communicate(timeout=60)[0].startswith(
        "usage: python -m unskew.dassl [--force | --theirs] [--trust FILE]"
    )
    assert process.returncode == 2
    process = start("no.py", cwd=tmp_path)
    assert process.communicate(timeout=60)[0] == "unskew: error: there is no script 'no.py'\n"
    assert process.returncode == 2
