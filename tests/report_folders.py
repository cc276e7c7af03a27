"""Finished run folders without training: drawn logits in the files of a run."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from unskew import config
from unskew.runs import tables

CONFIG = {"DATASET": {"ROOT": "data"}, "MODEL": {"BACKBONE": {"NAME": "micro"}}}
CLASSES = ("cat", "dog", "owl", "fox", "bee", "ant")


def logits_of(labels, classes, quality, bias, seed):
    """Logits whose true class is ahead by a quality, plus a bias of the classes."""
    drawn = np.random.default_rng(seed).normal(size=(len(labels), classes))
    drawn[np.arange(len(labels)), labels] += quality
    return (drawn + bias).astype(np.float32)


def make_run(
    output, trainer="GLA", shots=16, seed=1, dataset="pets", classnames=CLASSES, images=120, quality=1.5, labels=None
):
    """Write a finished run below a folder and return its folder.

    A trainer whose name begins with GLA has its halves, as formulas where a run has them, and a prior.csv.
    """
    count = len(classnames)
    folder = Path(output) / dataset / trainer / f"micro_{shots}shots" / f"seed{seed}"
    folder.mkdir(parents=True)
    if labels is None:
        labels = np.arange(images) % count  # the same test images for all runs of a dataset
    log_q = np.log(np.linspace(1, 0.05, count) / np.linspace(1, 0.05, count).sum()).astype(np.float32)
    tensors = {"labels": labels, "logits": logits_of(labels, count, quality, 0, seed)}
    formulas = {}
    numbers = {}
    if trainer.startswith("GLA"):
        zs = logits_of(labels, count, 1.0, log_q, seed + 100)
        ft = logits_of(labels, count, 1.2, log_q / 2, seed + 200)
        tensors |= {"zs": zs, "ft": ft, "debiased.term": -log_q}
        formulas = {"gla": "logits", "ensemble": "ft + zs", "debiased": "zs + debiased.term"}
        numbers = {f"{name}_accuracy": accuracy(tensors[name], labels) for name in ("zs", "ft")}
        numbers["gla_accuracy"] = accuracy(tensors["logits"], labels)
        rows = [f'"{name}",{q},0.2,{5 + place}' for place, (name, q) in enumerate(zip(classnames, log_q, strict=True))]
        (folder / "prior.csv").write_text("class,log_q,log_q_deviation,count\n" + "\n".join(rows) + "\n")
    save_file(tensors, folder / "predictions.safetensors", formulas)
    row = {"dataset": dataset, "trainer": trainer, "backbone": "micro", "shots": shots, "longtail": False, "seed": seed}
    row |= {"accuracy": accuracy(tensors["logits"], labels), "ece": 5.0, "seconds": 1.5, **numbers}
    tables.write_metrics(folder / "metrics.json", {**row, "classnames": list(classnames)})
    tree = {**CONFIG, "SEED": seed, "DATASET": {"NAME": dataset, "ROOT": "data", "NUM_SHOTS": shots}}
    tree["TRAINER"] = {"NAME": trainer, "GLA": {"BASE": "CoOp"}}
    (folder / "config.yaml").write_text(json.dumps(tree))  # JSON is YAML
    assert config.read_yaml(folder / "config.yaml") == tree
    (folder / "done").write_text("0123456789abcdef\nmetrics.json\npredictions.safetensors\n")
    return folder


def accuracy(logits, labels):
    return float(100 * (logits.argmax(1) == labels).mean())


def write_history(folder, epochs=3):
    """Write a history.csv with a validation score in every second epoch."""
    rows = [f"{e},{2 / e},{50 + e},{0.1 / e},{60 + e if e % 2 else ''}" for e in range(1, epochs + 1)]
    (Path(folder) / "history.csv").write_text("epoch,loss,accuracy,lr,val_score\n" + "\n".join(rows) + "\n")


def make_sweep(output, seeds=(1, 2), shots=(1, 16), **options):
    """Write runs of GLA, CoOp and ZeroshotCLIP, with CoOp far below GLA; return their folders."""
    quality = {"GLA": 3.0, "CoOp": 1.0, "ZeroshotCLIP": 0.8}
    return [
        make_run(output, trainer, k, seed, quality=value, **options)
        for trainer, value in quality.items()
        for k in shots
        for seed in seeds
    ]
