"""How well is the pre-training prior recovered, and what is it worth? On the embedded world, where it is known.

    python benchmarks/prior_recovery.py --plot docs/prior_recovery.png

For each dataset, number of shots and seed the residual prompt is trained as GLA's config says, and the logits of its
epochs are kept. Then every estimator of log q is compared with the truth, and every way to combine the two models with
every other, on the same logits. Nothing but the accuracies that are printed sees a test label.
"""

import argparse
import json
import logging
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm

from unskew import config
from unskew.debias.combination import SUM, Combination, combine, fit_weights, remaining_bias
from unskew.debias.metrics import selection_score
from unskew.debias.prior import estimate_log_prior
from unskew.debias.temperature import fit_temperature
from unskew.engine.evaluator import labels_of
from unskew.engine.trainer import build_trainer
from unskew.micro import true_log_prior
from unskew.utils.files import write_atomically
from unskew.utils.seeds import set_random_seed

# name -> arguments of estimate_log_prior; without "labels" the estimator is given none.
ESTIMATORS = {
    "convex, strength 0": {"method": "convex", "strength": 0.0, "labels": True},
    "convex, strength 1": {"method": "convex", "strength": 1.0, "labels": True},
    "convex, strength 10": {"method": "convex", "strength": 10.0, "labels": True},
    "convex, strength cv": {"method": "convex", "strength": "cv", "labels": True},
    "em, no labels": {"method": "em", "strength": 1.0},
    "eigen": {"method": "eigen", "strength": 1.0, "labels": True},
    "eigen, no labels": {"method": "eigen", "strength": 1.0},
    "released": {"method": "released", "strength": 1.0, "labels": True},
}
# Those of the plot: strength 0 and 10 and em lie on the default's line.
DRAWN = ("convex, strength 1", "convex, strength cv", "eigen", "released", "eigen, no labels")


# --- one run ----------------------------------------------------------------------------------------


@dataclass
class Record:
    """Logits of a run by split: ``sample`` (train + val, what q is fitted on), ``val``, ``test``."""

    labels: dict[str, Tensor]
    zs: dict[str, Tensor]  # [N, C]
    epochs: list[dict[str, Tensor]]  # of the fine-tuned model, after each epoch: val and test
    truth: Tensor  # [C]


def record(dataset: str, shots: int, seed: int, root: str) -> Record:
    with tempfile.TemporaryDirectory() as folder:
        opts = ("DATASET.NUM_SHOTS", shots, "SEED", seed, "DATASET.ROOT", root, "OUTPUT_DIR", folder)
        cfg = config.load(dataset, trainer="ResidualPrompt", opts=opts)
        set_random_seed(seed)
        trainer = build_trainer(cfg)
        trainer.show_progress = False
        data = trainer.dataset
        items = {"sample": [*data.train_x, *data.val], "val": data.val, "test": data.test}
        paths = {split: [item.impath for item in part] for split, part in items.items()}
        epochs: list[dict[str, Tensor]] = []
        trainer.epoch_callbacks.append(
            lambda t: epochs.append({split: t.predict(paths[split]).cpu() for split in ("val", "test")})
        )
        trainer.fit()
        zs = {split: trainer.zeroshot_logits(part).cpu() for split, part in paths.items()}
    labels = {split: labels_of(part) for split, part in items.items()}
    return Record(labels, zs, epochs, true_log_prior(cfg.MODEL.BACKBONE.NAME, dataset))


def accuracy(logits: Tensor, labels: Tensor) -> float:
    return 100 * (logits.argmax(1) == labels).double().mean().item()


# --- ways to combine the two models -----------------------------------------------------------------
# Each gives, from the fine-tuned logits of an epoch, the final logits of val and test.

Combine = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def gla(r: Record, log_q: Tensor, fit: str = "all", temperature: str = "confidence") -> Combine:
    """The trainer's rule (``all``), the paper's (``none``), and what lies between: ``rho`` or ``weights`` alone."""
    t_zs = fit_temperature(r.zs["sample"], r.labels["sample"], method=temperature)
    zs = {s: r.zs[s] / t_zs for s in ("val", "test")}

    def combine_epoch(epoch: dict[str, Tensor]) -> dict[str, Tensor]:
        t_ft = fit_temperature(epoch["val"], r.labels["val"], method=temperature)
        ft = {s: epoch[s] / t_ft for s in epoch}
        rho, a, b, _ = SUM
        if fit in ("all", "rho"):
            rho = remaining_bias(ft["val"], r.labels["val"], log_q)
        if fit in ("all", "weights"):
            a, b = fit_weights(zs["val"] - log_q, ft["val"] - rho * log_q, r.labels["val"])
        return {s: combine(zs[s], ft[s], log_q, Combination(rho, a, b)) for s in ft}

    return combine_epoch


def fine_tuned(r: Record) -> Combine:
    return lambda ft: ft


def best_on_val(r: Record, combine: Combine) -> float:
    """Test accuracy of the epoch that is best on val, ties by cross entropy, as GLA keeps it."""
    best, kept = -float("inf"), None
    for ft in r.epochs:
        logits = combine(ft)
        score = selection_score(logits["val"], r.labels["val"])
        if score > best:
            best, kept = score, logits["test"]
    return accuracy(kept, r.labels["test"])


# --- the two questions ------------------------------------------------------------------------------


def recovery(r: Record) -> dict[str, dict[str, float]]:
    """For each estimator, and for the true and the uniform prior: closeness to the truth, and accuracies."""
    temperature = fit_temperature(r.zs["sample"], r.labels["sample"])
    scaled, classes = r.zs["sample"] / temperature, r.zs["sample"].shape[1]
    priors = {}
    for name, arguments in ESTIMATORS.items():
        labels = r.labels["sample"] if "labels" in arguments else None
        options = {key: arguments[key] for key in ("method", "strength")}
        priors[name] = estimate_log_prior(scaled, labels, **options).log_q
    priors |= {"true": r.truth, "uniform": torch.full((classes,), 1 / classes).log()}
    found = {}
    for name, log_q in priors.items():
        spread = float(log_q.std())
        found[name] = {
            "correlation": float(torch.corrcoef(torch.stack([log_q, r.truth]))[0, 1]) if spread > 1e-6 else 0.0,
            "kl": float((r.truth.exp() * (r.truth - log_q)).sum()),
            "debiased": accuracy(r.zs["test"] / temperature - log_q, r.labels["test"]),
            "gla": best_on_val(r, gla(r, log_q)),
        }
    return found


def combinations(r: Record) -> dict[str, dict[str, float]]:
    """With the default estimate of q: what to do with it."""
    t_zs = fit_temperature(r.zs["sample"], r.labels["sample"])
    log_q = estimate_log_prior(r.zs["sample"] / t_zs, r.labels["sample"]).log_q
    none = torch.zeros_like(log_q)
    ways = {
        "fine-tuned": fine_tuned(r),
        "ensemble": gla(r, none, "none"),
        "GLA, the paper's sum": gla(r, log_q, "none"),
        "GLA, sum, T by nll": gla(r, log_q, "none", "nll"),
        "GLA, rho fitted": gla(r, log_q, "rho"),
        "GLA, weights fitted": gla(r, log_q, "weights"),
        "GLA (both fitted)": gla(r, log_q),
    }
    test, zs = r.labels["test"], r.zs["test"]
    found = {"zero-shot": accuracy(zs, test), "zero-shot - log q": accuracy(zs / t_zs - log_q, test)}
    found |= {name: best_on_val(r, combine) for name, combine in ways.items()}
    last = r.epochs[-1]
    t_ft = fit_temperature(last["val"], r.labels["val"])
    rho = 100 * remaining_bias(last["val"] / t_ft, r.labels["val"], log_q)
    return {name: {"accuracy": value} for name, value in found.items()} | {"rho, last epoch (%)": {"accuracy": rho}}


# --- tables and the plot ----------------------------------------------------------------------------


def table(rows: list[dict], dataset: str, study: str, metric: str) -> str:
    rows = [row for row in rows if (row["dataset"], row["study"]) == (dataset, study)]
    shots = sorted({row["shots"] for row in rows})
    lines = []
    for name in dict.fromkeys(row["name"] for row in rows):
        cells = [[row[metric] for row in rows if (row["name"], row["shots"]) == (name, k)] for k in shots]
        digits = 1 if metric in ("accuracy", "gla", "debiased") else 3
        lines.append([name, *(f"{statistics.fmean(cell):.{digits}f}" for cell in cells)])
    return tabulate(lines, ["", *map(str, shots)], "github", disable_numparse=True)


TITLES = {
    ("recovery", "correlation"): "correlation of log q with the true log prior",
    ("recovery", "kl"): "KL(true || q) in nats",
    ("recovery", "debiased"): "accuracy (%) of zero-shot - log q",
    ("recovery", "gla"): "accuracy (%) of GLA with that q",
    ("combination", "accuracy"): "accuracy (%) of the ways to combine",
}


def plot(rows: list[dict], dataset: str, path: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.subplots(1, 2)
    shots = sorted({row["shots"] for row in rows})
    for axis, metric in zip(axes, ("correlation", "gla"), strict=True):
        known = {} if metric == "correlation" else {"true": "--", "uniform": ":"}
        for name in (*DRAWN, *known):
            cells = [
                [row[metric] for row in rows if (row["dataset"], row["name"], row["shots"]) == (dataset, name, k)]
                for k in shots
            ]
            style = {"color": "black", "linestyle": known[name]} if name in known else {}
            axis.plot(shots, [statistics.fmean(cell) for cell in cells], marker="o", markersize=3, label=name, **style)
        axis.set(xscale="log", xticks=shots, xticklabels=shots, xlabel="shots")
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set(title=f"{dataset}: correlation with the true log prior")
    axes[1].set(title=f"{dataset}: accuracy of GLA with that prior (%)")
    axes[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", nargs="+", default=["shapes", "patterns", "digits"])
    parser.add_argument("--shots", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--seeds", type=int, default=10, help="how many, from 1")
    parser.add_argument("--root", default="data", help="folder of the datasets")
    parser.add_argument("--json", default="", help="write every number there")
    parser.add_argument("--plot", default="", help="draw the first dataset there")
    arguments = parser.parse_args()
    logging.getLogger("unskew").setLevel(logging.ERROR)

    rows = []
    runs = [(d, k, s) for d in arguments.datasets for k in arguments.shots for s in range(1, arguments.seeds + 1)]
    for dataset, shots, seed in tqdm(runs, unit="run"):
        r = record(dataset, shots, seed, arguments.root)
        for study, found in (("recovery", recovery(r)), ("combination", combinations(r))):
            where = {"dataset": dataset, "shots": shots, "seed": seed, "study": study}
            rows += [{**where, "name": name, **values} for name, values in found.items()]
    for dataset in arguments.datasets:
        for (study, metric), title in TITLES.items():
            print(f"\n{dataset}: {title}, by shots, mean over {arguments.seeds} seeds\n")
            print(table(rows, dataset, study, metric))
    if arguments.json:
        write_atomically(arguments.json, json.dumps({"rows": rows}) + "\n")
    if arguments.plot:
        plot(rows, arguments.datasets[0], arguments.plot)


if __name__ == "__main__":
    main()
