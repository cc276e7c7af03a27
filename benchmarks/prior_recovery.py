"""How well is the class bias recovered, and what is it worth? On worlds that no method was designed on, too.

    python benchmarks/prior_recovery.py --plot docs/prior_recovery.png

The logits of several bases on the worlds of `worlds.py` are recorded once (`records.py`). Every method then sees the
same logits: the zero-shot model's on train and val, both models' on val. Nothing but the printed numbers sees a test
label; `transductive` methods see the test images without labels. In the exact worlds GLA's theorem holds.
"""

import argparse
import itertools
import json
import logging
import multiprocessing
import statistics
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import worlds
from records import BACKBONES, BALANCED, BASES, SHOTS, Key, keys, write_all
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm

from unskew.debias import GLA, estimate_log_prior, fit_temperature
from unskew.debias.joint import fit_joint
from unskew.debias.rivals import fit_bcts, fit_stacking
from unskew.utils.files import write_atomically

EXACT = tuple(f"{classes} classes, imbalance {imbalance}" for classes in (2, 10, 50) for imbalance in (1, 10, 100))

Record = dict[str, dict[str, Tensor]]


# --- the methods --------------------------------------------------------------------------------------


def accuracies(r: Record) -> dict[str, float]:
    """Return the test accuracy in percent of every method."""
    train, val, test = r["train"], r["val"], r["test"]
    fit = {"zs_train": train["zs"], "y_train": train["y"]}
    logits: dict[str, Tensor] = {}

    def parts(gla: GLA) -> dict[str, Tensor]:
        return gla.fit(val["zs"], val["ft"], val["y"], **fit).parts(test["zs"], test["ft"])

    paper = parts(GLA(prior="convex", combine="sum", temperature="confidence"))
    logits |= {"zero-shot": paper["zs"], "fine-tuned": paper["ft"], "ensemble": paper["ensemble"]}
    logits |= {"zs - log q, convex": paper["debiased"], "GLA, the paper's sum": paper["gla"]}
    fitted = parts(GLA(prior="convex", combine="fitted", temperature="confidence"))
    logits["GLA, convex and fitted"] = fitted["gla"]
    sample = torch.cat([train["zs"], val["zs"]]), torch.cat([train["y"], val["y"]])
    bcts = fit_bcts(*sample)
    scaled = {s: r[s]["zs"] / bcts.temperature - bcts.bias for s in ("val", "test")}
    t_zs, t_ft = fit_temperature(*sample), fit_temperature(val["ft"], val["y"])
    logits["BCTS"] = scaled["test"]
    for name, zs in (("stacking", {s: r[s]["zs"] / t_zs for s in scaled}), ("BCTS and stacking", scaled)):
        a, b, _ = fit_stacking(zs["val"], val["ft"] / t_ft, val["y"], deviation=0.0)
        logits[name] = a * test["ft"] / t_ft + b * zs["test"]
    ours = parts(GLA())
    logits |= {"zs - log q, map": ours["debiased"], "GLA": ours["gla"]}
    logits["GLA, unlabelled *"] = parts(GLA(prior="unlabelled"))["gla"]
    logits["GLA, otter *"] = parts(GLA(combine="otter"))["gla"]
    return {name: 100 * float((z.argmax(1) == test["y"]).double().mean()) for name, z in logits.items()}


RIVALS = ("zero-shot", "fine-tuned", "ensemble", "zs - log q, convex", "GLA, the paper's sum", "BCTS", "stacking")
RIVALS += ("BCTS and stacking",)


def recovery(r: Record) -> dict[str, dict[str, float | None]]:
    """Return how close each estimate of log q is to the true one: slope, correlation, KL in nats, coverage."""
    zs = torch.cat([r["train"]["zs"], r["val"]["zs"]])
    labels, truth = torch.cat([r["train"]["y"], r["val"]["y"]]), r["truth"].double()
    scaled = zs / fit_temperature(zs, labels)
    estimates = {
        name: (estimate_log_prior(scaled, labels, method=name).log_q.double(), None)
        for name in ("convex", "eigen", "released")
    }
    for name, shared in (("map, classes independent", (0.0,)), ("map", (0.0, 0.25, 0.5, 0.75))):
        fit = fit_joint(zs, labels, shared=shared)
        estimates[name] = fit.log_q, fit.log_q_deviation
    found = {}
    centred = truth - truth.mean()
    for name, (log_q, deviation) in estimates.items():
        bias = log_q - log_q.mean()
        spread, size = float(bias.norm()), float(centred.norm())
        found[name] = {
            "slope": float(bias @ centred) / size**2 if size else None,
            "correlation": float(bias @ centred) / (size * spread) if size * spread > 1e-9 else None,
            "kl": float((truth.exp() * (truth - log_q)).sum()),
        }
        if deviation is not None:
            found[name]["coverage"] = float(((log_q - truth).abs() < 1.96 * deviation).double().mean())
    return found


# --- all runs -----------------------------------------------------------------------------------------


def run(key: Key, folder: Path) -> tuple[Key, dict[str, float], dict[str, dict[str, float | None]]]:
    """Return a run with its accuracies and, for the first base, the recovery of the prior, which all bases share."""
    torch.set_num_threads(1)
    logging.getLogger("unskew").setLevel(logging.ERROR)
    if key.world in worlds.WORLDS:
        r = torch.load(key.path(folder))
    else:
        r = worlds.exact(*map(int, key.world.split()[::3]), key.shots, key.seed)
    return key, accuracies(r), recovery(r) if key.base in (BASES[0], "") else {}


def study(runs: list[Key], folder: Path, jobs: int) -> list[dict]:
    """Return a row of each run, ``jobs`` at a time."""
    rows = []
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        found = pool.map(run, runs, itertools.repeat(folder), chunksize=4)
        for key, accuracy, recovered in tqdm(found, total=len(runs), unit="run"):
            if key.world in worlds.WORLDS:
                family = worlds.WORLDS[key.world].family
            else:
                family = "exact, no bias" if key.world.endswith("imbalance 1") else "exact, biased"
            rows.append({"family": family, **vars(key), "accuracy": accuracy, "recovery": recovered})
    return rows


# --- tables and the plot --------------------------------------------------------------------------------


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Return mean and standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return statistics.fmean(values), error


def by_shots(rows: list[dict], family: str, shots: list[int]) -> list[list[dict]]:
    """Return the rows of a family, by shots."""
    return [[row for row in rows if (row["family"], row["shots"]) == (family, k)] for k in shots]


def accuracy_table(rows: list[dict], family: str, shots: list[int]) -> str:
    """Tabulate mean accuracies; below, the difference of GLA to its best rival with its paired standard error."""
    cells = by_shots(rows, family, shots)
    means = {
        name: [statistics.fmean(row["accuracy"][name] for row in cell) for cell in cells]
        for name in rows[0]["accuracy"]
    }
    lines = [[name, *(f"{mean:.1f}" for mean in values)] for name, values in means.items()]
    rivals, gains = [], []
    for i, cell in enumerate(cells):
        rival = sorted(RIVALS, key=lambda name: means[name][i])[-1]
        rivals.append(rival)
        differences = [row["accuracy"]["GLA"] - row["accuracy"][rival] for row in cell]
        gains.append("{:+.2f} ± {:.2f}".format(*mean_and_error(differences)))
    lines += [["best rival", *rivals], ["GLA - best rival", *gains]]
    return tabulate(lines, [family, *map(str, shots)], "github", disable_numparse=True)


def recovery_table(rows: list[dict], family: str, shots: list[int]) -> str:
    """Tabulate slope, correlation, KL and coverage by estimator and shots, as means."""
    lines = []
    for name, metric in itertools.product(rows[0]["recovery"], ("slope", "correlation", "kl", "coverage")):
        cells = [[row["recovery"][name].get(metric) for row in cell] for cell in by_shots(rows, family, shots)]
        known = [[value for value in cell if value is not None] for cell in cells]
        if any(known):
            lines.append([name, metric, *(f"{statistics.fmean(cell):.2f}" if cell else "" for cell in known)])
    return tabulate(lines, [family, "", *map(str, shots)], "github", disable_numparse=True)


def below_zero_shot(rows: list[dict], name: str) -> list[str]:
    """Return the cells (mean over seeds) in which a method is more than 0.3 points below zero-shot."""
    cells = defaultdict(list)
    for row in rows:
        cell = tuple(str(row[key]) for key in ("world", "backbone", "base", "shots"))
        cells[cell].append(row["accuracy"][name] - row["accuracy"]["zero-shot"])
    low = {cell: statistics.fmean(v) for cell, v in cells.items() if statistics.fmean(v) < -0.3}
    worst = sorted(low, key=low.__getitem__)
    return [f"{name}: {len(low)} of {len(cells)} cells", *(f"  {' '.join(c)}: {low[c]:+.1f}" for c in worst[:5])]


DRAWN = ("GLA", "GLA, convex and fitted", "GLA, the paper's sum", "BCTS", "BCTS and stacking", "ensemble")


def plot(rows: list[dict], shots: list[int], path: str) -> None:
    """Draw the gain over zero-shot by family and shots."""
    from matplotlib.figure import Figure

    families = list(dict.fromkeys(row["family"] for row in rows))
    columns = -(-len(families) // 2)
    figure = Figure(figsize=(2 + 3 * columns, 6), layout="constrained")
    for axis, family in zip(figure.subplots(2, columns, squeeze=False).flat, families, strict=False):
        for name in DRAWN:
            gains = [
                statistics.fmean(row["accuracy"][name] - row["accuracy"]["zero-shot"] for row in cell)
                for cell in by_shots(rows, family, shots)
            ]
            style = {"color": "black", "linewidth": 2.5} if name == "GLA" else {}
            axis.plot(shots, gains, marker="o", markersize=3, label=name, **style)
        axis.set(xscale="log", xticks=shots, xticklabels=shots, title=family)
        axis.minorticks_off()
        axis.axhline(0, color="grey", linewidth=0.8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("shots")
    figure.supylabel("points above zero-shot")
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", nargs="+", default=BALANCED, choices=BALANCED, help="beside the exact ones")
    parser.add_argument("--backbones", nargs="+", default=BACKBONES)
    parser.add_argument("--bases", nargs="+", default=BASES)
    parser.add_argument("--shots", nargs="+", type=int, default=list(SHOTS))
    parser.add_argument("--seeds", type=int, default=2, help="how many, from 1")
    parser.add_argument("--root", default="data", help="folder of the datasets")
    parser.add_argument("--records", type=Path, default=Path("output/records"), help="folder of the recorded logits")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--json", default="", help="write every number there")
    parser.add_argument("--plot", default="", help="draw the gains over zero-shot there")
    arguments = parser.parse_args()
    logging.getLogger("unskew").setLevel(logging.ERROR)

    shots, seeds = arguments.shots, arguments.seeds
    recorded = keys(range(1, seeds + 1), arguments.worlds, arguments.backbones, arguments.bases, shots)
    write_all(recorded, arguments.records, arguments.root, arguments.jobs)
    exact = keys(range(1, 4 * seeds + 1), EXACT, [""], [""], shots)
    rows = study([*recorded, *exact], arguments.records, arguments.jobs)
    recovered = [row for row in rows if row["recovery"]]
    for family in dict.fromkeys(row["family"] for row in rows):
        print("\nAccuracy (%), by shots; * sees the test images without labels\n")
        print(accuracy_table(rows, family, shots))
        print("\nRecovery of the true log prior, by shots\n")
        print(recovery_table(recovered, family, shots))
    print("\nMore than 0.3 points below zero-shot, mean over seeds\n")
    for name in rows[0]["accuracy"]:
        print("\n".join(below_zero_shot(rows, name)))
    if arguments.json:
        write_atomically(arguments.json, json.dumps({"rows": rows}) + "\n")
    if arguments.plot:
        plot(rows, shots, arguments.plot)


if __name__ == "__main__":
    main()
