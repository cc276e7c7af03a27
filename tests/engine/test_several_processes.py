"""Runs with two real processes on the CPU equal runs with one."""

import collections
import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from building import without_costs
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from torchvision import transforms as T

from unskew import config
from unskew.clip import dropout
from unskew.data.dataset import build_dataset
from unskew.data.loaders import build_data_loader, seed_loader
from unskew.runs import devices
from unskew.runs.run import Run, execute, train
from unskew.utils import processes
from unskew.utils.processes import Share

ACCELERATE = (sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2")
UNSKEW = ("-m", "unskew")

# A batch of 7 images has shares of 4 and 3, and each of the 20 images is in two epochs.
SHORT = ("OPTIM.MAX_EPOCH", "3", "DATALOADER.TRAIN_X.BATCH_SIZE", "7", "INPUT.VIEWS", "2")


def environment(folder, **more):
    kept = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**kept, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore", **more}


def start(command, folder, **more):
    """Run a command in a folder; its standard error has the launcher's lines too."""
    words = list(map(str, command))
    return subprocess.run(
        words, cwd=folder, env=environment(folder, **more), capture_output=True, text=True, timeout=300
    )


def numbers(file):
    with Path(file).open(newline="") as opened:
        return [[float(value) for value in row if value] for row in list(csv.reader(opened))[1:]]


def files_of(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if "tfevents" not in path.name)


def assert_same_run(one, two):
    """Compare the files, the losses of each epoch and member, the metrics and the predictions of two run folders."""
    assert files_of(one) == files_of(two)
    for file in Path(one).rglob("history.csv"):
        torch.testing.assert_close(numbers(file), numbers(Path(two) / file.relative_to(one)), rtol=1e-5, atol=1e-5)
    first, second = (json.loads((Path(folder) / "metrics.json").read_text()) for folder in (one, two))
    assert first.keys() == second.keys()
    for key, value in without_costs(first).items():
        assert second[key] == (pytest.approx(value, abs=1e-3) if isinstance(value, float) else value), key
    first, second = (load_file(Path(folder) / "predictions.safetensors") for folder in (one, two))
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=1e-4, atol=1e-4)


COUNT = """
import os
from unskew.clip import features

read = features._Views.__getitem__

def noted(self, index):
    with open({folder!r} + "/rank" + os.environ.get("RANK", "0"), "a") as file:
        file.write(f"{{self.paths[index]}} {{self.views}}\\n")
    return read(self, index)

features._Views.__getitem__ = noted
"""


def counting_plugin(folder):
    """Return a plugin that notes each image that a process decodes for the image tower."""
    folder.mkdir()
    plugin = folder / "count.py"
    plugin.write_text(COUNT.format(folder=str(folder)))
    return plugin


# --- whole runs --------------------------------------------------------------------------------------


def test_coop_with_accelerate_launch_equals_one_process(data_root, tmp_path):
    plugin = counting_plugin(tmp_path / "counts")
    flags = ("-d", "digits", "-t", "CoOp", "--shots", "2", "--root", data_root, "--plugin", plugin)
    flags = (*flags, "--output-dir", tmp_path / "two", *SHORT)
    done = start((*ACCELERATE, *UNSKEW, "train", *flags), tmp_path, UNSKEW_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Deploy the last-epoch model") == done.stdout.count("\naccuracy ") == 1
    opts = config_values(SHORT)
    one = train("digits", "CoOp", shots=2, root=data_root, folder=tmp_path / "one", opts=opts, plugins=[])
    assert_same_run(one.path, tmp_path / "two")

    shares = [(tmp_path / "counts" / f"rank{rank}").read_text().splitlines() for rank in range(2)]
    encoded = collections.Counter(line for share in shares for line in share)
    assert set(encoded.values()) == {1}  # no image was encoded twice
    assert abs(len(shares[0]) - len(shares[1])) <= 3  # one for each call
    metrics = json.loads((tmp_path / "two" / "metrics.json").read_text())
    views = sum(2 if line.endswith("[0, 1]") else 1 for line in encoded)
    assert views - 20 <= metrics["images_encoded"] <= views  # the temperature in model.json needs images of val later
    assert metrics["images_cached"] == 0
    blocks = list((tmp_path / "cache" / "features").rglob("*.safetensors"))
    names = [block.name.split("-")[0] for block in blocks]
    folders = {block.parent for block in blocks}
    assert len(names) == len(set(zip(names, (block.parent for block in blocks), strict=True)))
    assert len(folders) == 3  # two views, and the crop for tests


def config_values(words):
    return [int(word) if word.isdecimal() else word for word in words]


def test_finetune_and_backdoor_equal_one_process(data_root, tmp_path):
    """FineTune trains on augmented images; Backdoor has one such member and one on features."""
    opts = (*SHORT, "TRAINER.BACKDOOR.MEMBERS", "['micro-vit','micro-a']", "TEST.FINAL_MODEL", "best_val")
    sweep = ("sweep", "-d", "digits", "-t", "FineTune", "Backdoor", "--shots", "2", "--seeds", "1", "--root", data_root)
    done = start((*ACCELERATE, *UNSKEW, *sweep, "--output", "two", *opts), tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("labelled/class") == 2  # a table for each backbone, once
    values = (*config_values(SHORT), "TEST.FINAL_MODEL", "best_val")
    members = ("TRAINER.BACKDOOR.MEMBERS", ["micro-vit", "micro-a"])
    for trainer, backbone in (("FineTune", ""), ("Backdoor", "")):
        one = Run("digits", trainer, backbone, 2, 1, data_root, str(tmp_path / "one"), opts=(*values, *members))
        execute(one, console=False)
        assert_same_run(one.path, tmp_path / "two" / one.path.relative_to(tmp_path / "one"))


def test_an_error_in_one_process_ends_all_with_one_line(data_root, tmp_path):
    """Each image is in the share of one process."""
    cfg = Run("digits", "FineTune", "micro-vit", 2, 1, str(tmp_path / "data")).config
    dataset = build_dataset(cfg)
    damaged = Path(dataset.train_x[3].impath)
    damaged.write_bytes(damaged.read_bytes()[:60])
    flags = ("-d", "digits", "-b", "micro-vit", "-t", "FineTune", "--shots", "2", "--seed", "1", "--root", "data")
    done = start((sys.executable, *UNSKEW, "train", "--devices", "2", *flags, "--output-dir", "out", *SHORT), tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("unskew: error: ") and damaged.name in line
    assert not (tmp_path / "out" / "done").exists()


@pytest.mark.world
def test_a_sweep_continues_in_all_processes_after_an_error(data_root, tmp_path):
    cfg = Run("digits", "FineTune", "micro-vit", 2, 1, str(tmp_path / "data")).config
    damaged = Path(build_dataset(cfg).train_x[3].impath)
    damaged.write_bytes(damaged.read_bytes()[:60])
    sweep = ("sweep", "-d", "digits", "-b", "micro-vit", "-t", "FineTune", "CoOp", "--shots", "2", "--seeds", "1")
    done = start((*ACCELERATE, *UNSKEW, *sweep, "--root", "data", *SHORT), tmp_path)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("run ")]
    assert [damaged.name in line or "failed as run 1 did" in line for line in lines] == [True, True]


SEPARATE = """
import os

if "RANK" in os.environ:  # not the launcher
    os.environ["UNSKEW_CACHE"] += os.environ["RANK"]
"""


@pytest.mark.world
def test_processes_with_separate_caches_train_as_one_does(data_root, tmp_path):
    """Two computers may have a cache each; the main process's cache alone gets the features."""
    (tmp_path / "separate.py").write_text(SEPARATE)
    flags = ("-d", "digits", "-t", "CoOp", "--shots", "2", "--root", data_root, "--plugin", "separate.py", *SHORT)
    for count in (1, 2):
        words = ("train", "--devices", count, *flags, "--output-dir", f"run{count}")
        done = start((sys.executable, *UNSKEW, *words), tmp_path, UNSKEW_CACHE=str(tmp_path / f"cache{count}-"))
        assert done.returncode == 0, done.stderr[-3000:]
    assert_same_run(tmp_path / "run1", tmp_path / "run2")
    assert len(list((tmp_path / "cache2-0" / "features").rglob("*.safetensors"))) >= 3
    assert not list((tmp_path / "cache2-1" / "features").rglob("*.safetensors"))


@pytest.mark.world
def test_all_trainers_equal_one_process(data_root, tmp_path):
    names = [name for name in config.names("trainers") if name != "ImageNet"]
    values = (*SHORT, "TRAINER.CLIPLORA.ITERATIONS", "4", "TRAINER.CLIPLORA.DROPOUT", "0.5", "OPTIM.MAX_EPOCH", "2")
    sweep = ("-d", "digits", "-t", *names, "--shots", "2", "--seeds", "1", "--root", data_root)
    for folder, launcher in (("two", ACCELERATE), ("one", (sys.executable,))):
        done = start((*launcher, *UNSKEW, "sweep", *sweep, "--output", folder, *values), tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
    runs = [file.parent for file in (tmp_path / "one").rglob("metrics.json")]
    assert len(runs) == len(names)
    for one in runs:
        assert_same_run(one, tmp_path / "two" / one.relative_to(tmp_path / "one"))


@pytest.mark.world
@pytest.mark.parametrize(
    ("trainer", "opts"),
    [
        ("CLIPLoRA", ("TRAINER.CLIPLORA.ITERATIONS", "8", "OPTIM.LR", "0.01", "TRAINER.CLIPLORA.DROPOUT", "0.5")),
        ("FineTune", ("TRAIN.ACCUMULATE", "2")),
        ("FineTune", ("DATALOADER.TRAIN_X.BATCH_SIZE", "1")),  # the second process has no image
        ("GLA", ("TRAINER.GLA.BASE", "FineTune", "TEST.FINAL_MODEL", "best_val")),
        ("CoOp", ("INPUT.VIEWS", "0", "TEST.CROPS", "5")),
    ],
)
def test_special_cases_equal_one_process(trainer, opts, data_root, tmp_path):
    flags = ("-d", "digits", "-b", "micro-vit", "-t", trainer, "--shots", "2", "--root", data_root, *SHORT, *opts)
    for count in (1, 2):
        words = ("train", "--devices", count, *flags, "--output-dir", f"run{count}")
        done = start((sys.executable, *UNSKEW, *words), tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
    assert_same_run(tmp_path / "run1", tmp_path / "run2")


@pytest.mark.world
def test_mixed_precision_is_nearly_equal(data_root, tmp_path):
    flags = ("-d", "digits", "-t", "CoOp", "--shots", "2", "--root", data_root, *SHORT, "TRAINER.PREC", "amp")
    for count in (1, 2):
        done = start((sys.executable, *UNSKEW, "train", "--devices", count, *flags, "--output-dir", count), tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (torch.tensor(numbers(tmp_path / f"{count}" / "history.csv"))[:, 1] for count in (1, 2))
    torch.testing.assert_close(one, two, rtol=1e-2, atol=0)


@pytest.mark.world
def test_two_processes_resume_what_one_has_begun(data_root, tmp_path):
    flags = ("-d", "digits", "-b", "micro-vit", "-t", "FineTune", "--shots", "2", "--root", data_root, *SHORT)
    flags = (*flags, "TRAIN.CHECKPOINT_FREQ", "1", "TRAIN.KEEP", "-1")
    done = start((sys.executable, *UNSKEW, "train", *flags, "--output-dir", "whole"), tmp_path)
    assert done.returncode == 0, done.stderr
    begun = tmp_path / "begun" / "finetune"
    begun.mkdir(parents=True)
    for name in ("config.yaml", "history.csv"):
        (begun.parent / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    last = "model.pth.tar-2"
    (begun / last).write_bytes((tmp_path / "whole" / "finetune" / last).read_bytes())
    (begun / "checkpoint").write_text(f"{last}\n")
    words = ("train", "--devices", "2", *flags, "--resume", "begun", "--output-dir", "resumed")
    done = start((sys.executable, *UNSKEW, *words), tmp_path)
    assert done.returncode == 0 and "will resume training" in done.stdout
    torch.testing.assert_close(*(numbers(tmp_path / name / "history.csv") for name in ("whole", "resumed")))


# --- --devices ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def long_run(folder, data_root):
    words = ("train", "--devices", "2", "-d", "digits", "-t", "CoOp", "--shots", "2", "--root", data_root)
    command = (sys.executable, *UNSKEW, *words, "--output-dir", "long", "OPTIM.MAX_EPOCH", "5000")
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=folder, env=environment(folder), start_new_session=True, **streams)
    children = []
    try:
        next(line for line in process.stdout if line.startswith("epoch "))
        children = children_of(process)
        assert len(children) == 2
        yield process, children
    finally:
        for number in filter(is_running, [process.pid, *children]):
            os.kill(number, signal.SIGKILL)
        process.communicate()


def children_of(process):
    """Return the processes that a launcher has started; each is in a session of its own."""
    return list(map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()))


def is_running(number):
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
        return state not in "ZX"  # a zombie in a container without init
    return False


def assert_all_have_ended(numbers):
    last = time.monotonic() + 30
    while any(map(is_running, numbers)):
        assert time.monotonic() < last, "a process of the run still exists"
        time.sleep(0.1)


@pytest.mark.world
@pytest.mark.parametrize("target", ["group", "launcher", "main", "other"])
def test_an_interrupt_ends_all_processes_with_one_line(target, data_root, tmp_path):
    with long_run(tmp_path, data_root) as (process, children):
        if target == "group":  # a terminal signals it
            os.killpg(process.pid, signal.SIGINT)
        else:
            numbers = dict(zip(("launcher", "main", "other"), (process.pid, *children), strict=True))
            os.kill(numbers[target], signal.SIGINT)
        _, error = process.communicate(timeout=60)
        assert process.returncode == 130
        assert [line for line in error.splitlines() if line] == [
            "unskew: interrupted; run the same command again to resume (finished runs are kept)"
        ]
        assert_all_have_ended(children)


@pytest.mark.world
def test_a_killed_process_ends_the_run_with_one_line(data_root, tmp_path):
    with long_run(tmp_path, data_root) as (process, children):
        os.kill(children[1], signal.SIGKILL)
        _, error = process.communicate(timeout=60)
        assert process.returncode == 128 + signal.SIGKILL
        (line,) = error.splitlines()
        assert "SIGKILL" in line
        assert_all_have_ended(children)


@pytest.mark.world
def test_a_killed_command_leaves_no_processes(data_root, tmp_path):
    with long_run(tmp_path, data_root) as (process, children):
        process.kill()
        assert_all_have_ended(children)


@pytest.mark.world
def test_an_interrupt_during_the_imports_is_one_line(tmp_path):
    """PyTorch cannot be imported a second time after an interrupt."""
    (tmp_path / "plugin.py").write_text(
        "import os, signal, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch.nn':\n"
        "            sys.meta_path.remove(self)\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
    )
    code = "import plugin, sys; from unskew.cli.main import main; sys.exit(main())"
    words = ("train", "-d", "digits", "-t", "CoOp", "--shots", "2")
    more = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "1", "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.getcwd()}"}
    done = start((sys.executable, "-c", code, *words), tmp_path, **more)
    assert done.returncode == 130 and "interrupted" in done.stderr
    assert len(done.stderr.split("\n")) == 3, done.stderr


@pytest.mark.world
def test_an_evaluation_with_two_processes_equals_one(data_root, tmp_path):
    flags = ("-d", "digits", "-b", "micro-vit", "-t", "FineTune", "--shots", "2", "--root", data_root, *SHORT)
    assert start((sys.executable, *UNSKEW, "train", *flags, "--output-dir", "run"), tmp_path).returncode == 0
    for count in (1, 2):
        words = ("train", "--devices", count, "--eval-only", "--model-dir", "run", "--output-dir", f"eval{count}")
        done = start((sys.executable, *UNSKEW, *words), tmp_path)
        assert done.returncode == 0 and done.stdout.count("accuracy ") == 1, done.stderr
    assert_same_run(tmp_path / "eval1", tmp_path / "eval2")


def test_a_wrong_number_of_devices_is_an_error(monkeypatch):
    with pytest.raises(ValueError, match="at least 1"):
        devices.check(0, use_cuda=True)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(1))
    assert not devices.check(1, use_cuda=False) and devices.check(2, use_cuda=False)
    with pytest.raises(ValueError, match="--devices 100 is more than the 1 CPU cores"):
        devices.check(100, use_cuda=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(3))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.check(2, use_cuda=True) and devices.check(3, use_cuda=False)
    with pytest.raises(ValueError, match="2 visible GPUs"):
        devices.check(3, use_cuda=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not devices.check(2, use_cuda=True)
    with pytest.raises(ValueError, match="launcher with 2 processes"):
        devices.check(3, use_cuda=True)


def test_processes_on_a_cpu_share_its_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8))
    devices._share_threads(3, gpus=0)
    assert os.environ["OMP_NUM_THREADS"] == "2"
    devices._share_threads(2, gpus=0)  # the user's number stays
    assert os.environ["OMP_NUM_THREADS"] == "2"


# --- shares ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "world"), [(7, 2), (8, 3), (2, 3), (1, 1)])
def test_weighted_means_of_shares_are_the_mean_of_the_batch(size, world):
    values = torch.rand(size, dtype=torch.float64)
    shares = [Share.of(size, rank, world) for rank in range(world)]
    mean = sum(share.weight * values[list(share.rows)].mean() for share in shares) / world
    torch.testing.assert_close(mean, values.mean())
    seen = sorted(row for share in shares if share.weight for row in share.rows)
    assert seen == list(range(size))


@pytest.mark.parametrize("batch_first", [True, False])
def test_processes_draw_the_dropout_of_the_whole_batch(batch_first):
    x = torch.randn(7, 3, 4) if batch_first else torch.randn(3, 7, 4).transpose(0, 1)
    torch.manual_seed(0)
    whole, after = F.dropout(x, 0.25), torch.rand(2)
    for rank in range(3):
        torch.manual_seed(0)
        with dropout.of_batch(Share.of(7, rank, 3)):
            part = x[rank::3]
            part = part.clone() if batch_first else part.transpose(0, 1).contiguous().transpose(0, 1)
            assert torch.equal(dropout.dropout(part, 0.25), whole[rank::3])
        assert torch.equal(torch.rand(2), after)


def test_an_augmentation_depends_on_the_image_and_the_epoch_alone(data_root):
    cfg = Run("digits", "FineTune", shots=2, seed=1, root=data_root).config
    items = build_dataset(cfg).train_x
    transform = T.Compose([T.RandomResizedCrop(16), T.ToTensor()])

    def epoch(number, batch_size, workers=0):
        loader = build_data_loader(cfg, "SequentialSampler", items, batch_size, tfm=transform)
        seed_loader(loader, 1, number)
        loader = DataLoader(loader.dataset, batch_size, num_workers=workers)
        torch.rand(batch_size)  # draws in between do not matter
        return torch.cat([batch["img"] for batch in loader])

    first = epoch(0, 10)
    assert torch.equal(first, epoch(0, 5)) and torch.equal(first, epoch(0, 10, workers=2))
    assert not torch.equal(first, epoch(1, 10))


def test_without_a_group_nothing_is_exchanged():
    assert processes.exchange(3) == [3] and processes.from_main(lambda: 4) == 4
    with pytest.raises(KeyError), processes.together():
        raise KeyError("x")
