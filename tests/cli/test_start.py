"""Commands that train nothing import no library of training, and read each file once."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unskew.engine.run_dir import RunDir
from unskew.micro import downstream
from unskew.runs import launch, tables

# Run a command with an audit hook; then print the loaded modules, and the files opened and the folders listed by name.
WATCH = """
import atexit, collections, json, os, sys

opened, listed = collections.Counter(), collections.Counter()

def hook(event, arguments):
    if event == "open" and isinstance(arguments[0], str):
        opened[arguments[0]] += 1
    elif event in ("os.listdir", "os.scandir") and isinstance(arguments[0], str | os.PathLike):
        listed[os.path.basename(arguments[0])] += 1

sys.addaudithook(hook)
seen = lambda: json.dumps([sorted(sys.modules), opened, listed])
atexit.register(lambda: print("\\n" + seen(), file=sys.stderr))
from unskew.cli.main import main
sys.exit(main())
"""

TRAINING = {"torch", "torchvision", "torchmetrics", "open_clip", "timm", "accelerate", "sklearn", "scipy", "pandas"}
FINISHED = ["ZeroshotCLIP", "GLA"]
SEEDS = range(1, 11)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Finished runs below "output", as a sweep leaves them, drawn digits below "data", and a user's images."""
    root = tmp_path_factory.mktemp("start")
    for run in launch.plan("digits", FINISHED, shots=[1, 2], seeds=SEEDS, output=root / "output"):
        place = RunDir(run.path)
        place.prepare(run.config)
        names = {"dataset": "digits", "trainer": run.trainer, "backbone": "micro", "shots": run.shots, "seed": run.seed}
        tables.write_metrics(place.metrics, {**names, "accuracy": 50.0 + run.seed, "seconds": 1.0})
        place.finish(run.config)
    downstream.files(root / "data" / "digits", "digits")
    pixels = iter(np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8))
    for split in ("train", "test"):
        for name in ("wren", "crow"):
            (root / "birds" / split / name).mkdir(parents=True)
            for number in (1, 2):
                Image.fromarray(next(pixels)).save(root / "birds" / split / name / f"{number}.png")
    return root


def answer(folder, *argv):
    """(exit code, output, modules, opened files, listed folders) of a command."""
    done = subprocess.run([sys.executable, "-c", WATCH, *argv], cwd=folder, capture_output=True, text=True)
    modules, opened, listed = json.loads(done.stderr.splitlines()[-1])
    return done.returncode, done.stdout, set(modules), opened, listed


SWEEP = ["sweep", "-d", "digits", "-t", *FINISHED, "--shots", "1", "2", "--seeds", "1-10"]
TRAIN = ["train", "-d", "digits", "-t", "GLA", "--shots", "1"]
COMMANDS = [  # exit code, modules that this command has no use for either, command
    (0, {"tqdm", "requests", "numpy"}, [*TRAIN, "--output-dir", "output/digits/GLA/micro_1shots/seed1"]),
    (0, {"requests", "numpy"}, SWEEP),
    (0, {"tqdm", "requests", "numpy"}, [*SWEEP, "--dry-run"]),
    (0, {"tqdm", "requests", "numpy"}, ["table", "output"]),
    (0, {"requests"}, ["report", "output"]),
    (0, {"requests"}, ["data", "list"]),
    (0, {"requests", "unskew.datasets.imagenet"}, ["data", "verify", "digits"]),
    (0, {"requests", "unskew.datasets.imagenet"}, ["data", "verify", "folder", "--root", "birds"]),
    (2, {"requests", "unskew.datasets.imagenet"}, ["data", "verify", "dtd"]),
    (0, {"tqdm", "yaml", "yacs"}, ["--help"]),
    (0, {"tqdm", "yaml", "yacs"}, ["--version"]),
    (0, {"tqdm", "yaml", "yacs"}, ["train", "--help"]),
    (0, {"tqdm", "yaml", "yacs"}, ["data", "import", "hf", "--help"]),
    (2, {"requests", "datasets", "pyarrow"}, ["data", "import", "webdataset", "none.tar", "--out", "new"]),
    (2, {"tqdm", "yaml", "yacs"}, ["train", "--nothing"]),
    (2, {"tqdm", "requests", "numpy"}, [*TRAIN, "OPTIM.LRR", "1"]),
    (2, {"tqdm", "requests", "numpy"}, ["sweep", "-d", "digits", "-t", "Coops"]),
    (2, {"tqdm", "requests", "numpy"}, ["train", "-d", "digitz", "-t", "GLA", "-b", "micro"]),
    (2, {"tqdm", "requests", "numpy"}, [*TRAIN, "-b", "micr"]),
    (0, {"tqdm", "requests", "numpy"}, ["sweep", "-d", "digits", "-t", "Backdoor", "--shots", "all", "--dry-run"]),
    (2, {"tqdm", "requests", "numpy"}, ["train", "-d", "folder", "-t", "GLA", "-b", "micro", "--root", "nowhere"]),
    (2, {"tqdm", "requests", "numpy"}, ["table", "nowhere"]),
    (2, {"tqdm", "requests", "numpy"}, ["predict", "nowhere", "1.png"]),
    (2, {"requests"}, ["micro", "pretrain", "nothing"]),
]


@pytest.mark.parametrize(("code", "others", "argv"), COMMANDS)
def test_a_command_that_does_not_train_imports_nothing_for_it(code, others, argv, folder):
    found, output, modules, *_ = answer(folder, *argv)
    assert found == code and ("finished earlier" in output) == ("--output-dir" in argv)
    assert modules & (TRAINING | others) == set()


def test_a_finished_sweep_reads_each_yaml_once_and_lists_no_folder_for_each_key(folder):
    _, _, _, opened, listed = answer(folder, *SWEEP)
    yamls = {path: count for path, count in opened.items() if path.endswith(".yaml")}
    assert len(yamls) > 20 and set(yamls.values()) == {1}
    assert not [path for path in yamls if Path(path).name == "config.yaml"]  # the file `done` is enough
    runs = len(FINISHED) * 2 * len(SEEDS)
    metrics = [count for path, count in opened.items() if path.endswith("metrics.json")]
    assert len(metrics) == runs and max(metrics) <= 4
    assert max(listed[axis] for axis in ("datasets", "backbones", "trainers")) < 30 * runs
