"""Runs on the first half of the digits, and their evaluation on other images."""

import shutil

from unskew.data.dataset import build_dataset
from unskew.runs.evaluate import evaluate, with_settings_of
from unskew.runs.run import Run, execute

SHORT = ("OPTIM.MAX_EPOCH", 1, "INPUT.VIEWS", 1, "DATALOADER.NUM_WORKERS", 0)
NAMES = ["four", "one", "three"]  # alphabetical, as folders are; not the order of the run's classes
OVER_COOP = tuple(
    word for name in ("BACKDOOR", "GLA", "ENSEMBLE", "STACKING") for word in (f"TRAINER.{name}.BASE", "CoOp")
)
CHEAP = ("TRAINER.BACKDOOR.BASE", "TaskRes", "TRAINER.BACKDOOR.MEMBERS", ["micro"])


def train(name, data_root, folder, *opts, half="base"):
    opts = (*SHORT, *CHEAP, "DATASET.SUBSAMPLE_CLASSES", half, *opts)
    run = Run("digits", name, shots=2, seed=1, root=data_root, folder=str(folder), opts=opts)
    execute(run, console=False)
    return run


def evaluated(run, dataset, root, *opts):
    """Return the metrics and the predictions of an evaluation."""
    target = with_settings_of(str(run.path), Run(dataset, "", root=str(root), opts=opts))
    metrics, folder = evaluate(target, str(run.path), console=False)
    return metrics, Run(dataset, run.trainer, folder=str(folder)).predictions


def copy_images(data_root, root):
    """Write class folders with copies of six test images of some digits, two of them as train; return other rows."""
    rows = []
    test = build_dataset(
        Run("digits", "ZeroshotCLIP", root=data_root, opts=("DATASET.SUBSAMPLE_CLASSES", "base")).config
    )
    for name in NAMES:
        found = [row for row, item in enumerate(test.test) if item.classname == name][:6]
        for place, row in enumerate(found):
            split = "train" if place < 2 else "test"
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(test.test[row].impath, folder / f"{place}.png")
            rows += [row] if split == "test" else []
    return rows
