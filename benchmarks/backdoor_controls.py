"""Controls of the backdoor adjustment: different models compared with seeds of the best model.

    python benchmarks/backdoor_controls.py --plot docs/backdoor_controls.png

For each seed the script trains every member of the dataset's Backdoor config and further seeds of the member that is
best on val. It computes all combinations from their logits. Temperatures, priors, weights and the choice of the best
member use val only.
"""

import argparse
import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm

from unskew import config
from unskew.clip import backbones
from unskew.debias.combination import SUM, combine, fit_combination
from unskew.debias.metrics import classification_metrics, group_accuracies
from unskew.debias.mixture import combine_members, fit_member_weights
from unskew.debias.prior import estimate_log_prior
from unskew.debias.temperature import fit_temperature
from unskew.engine.evaluator import labels_of
from unskew.engine.trainer import build_trainer
from unskew.runs.report import mean_and_deviation
from unskew.trainers.backdoor import member_config, parse_member
from unskew.utils.files import write_atomically
from unskew.utils.seeds import set_random_seed

GROUPS = ("d_many", "d_medium", "d_few", "p_many", "p_medium", "p_few")
SPLITS = ("val", "test")

Logits = dict[str, Tensor]  # [N, C] by split


# --- one run ----------------------------------------------------------------------------------------


@dataclass
class Record:
    """Labels and uncalibrated logits of a trained member."""

    name: str
    labels: dict[str, Tensor]  # [N] by split
    f: Logits
    zs: Logits
    groups: dict[str, Tensor]


def record(cfg, name: str, folder: str) -> Record:
    derived = member_config(cfg, parse_member(name), f"{folder}/{name.replace('/', '-')}")
    set_random_seed(derived.SEED)
    trainer = build_trainer(derived)
    trainer.show_progress = False
    trainer.fit()
    items = {split: getattr(trainer.dataset, split) for split in SPLITS}
    paths = {split: [item.impath for item in images] for split, images in items.items()}
    result = Record(
        name,
        {split: labels_of(images) for split, images in items.items()},
        {split: trainer.predict(files).cpu() for split, files in paths.items()},
        {split: trainer.zeroshot_logits(files).cpu() for split, files in paths.items()},
        {key: classes.cpu() for key, classes in trainer.class_groups().items()},
    )
    del trainer
    backbones.release()
    return result


def accuracy(logits: Tensor, labels: Tensor) -> float:
    return 100 * (logits.argmax(1) == labels).double().mean().item()


def records(dataset: str, seed: int, root: str, opts: Sequence[str]) -> tuple[list[Record], list[Record]]:
    """Return the members sorted by accuracy on val, best first, and as many seeds of the best."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ("SEED", seed, "DATASET.ROOT", root, "OUTPUT_DIR", folder)
        cfg = config.load(dataset, trainer="Backdoor", opts=(*opts, *flags))
        models = [record(cfg, name, folder) for name in cfg.TRAINER.BACKDOOR.MEMBERS]
        models.sort(key=lambda r: accuracy(r.f["val"], r.labels["val"]), reverse=True)
        seeds = [record(cfg, f"{models[0].name}#{k}", folder) for k in range(1, len(models))]
    return models, [models[0], *seeds]


# --- a member's score -------------------------------------------------------------------------------


def calibrated(logits: Logits, labels: Tensor, method: str = "confidence") -> Logits:
    temperature = fit_temperature(logits["val"], labels, method=method)
    return {split: values / temperature for split, values in logits.items()}


def halves(r: Record) -> tuple[Logits, Logits, Tensor]:
    """Return calibrated fine-tuned and zero-shot logits, and log q."""
    f, zs = calibrated(r.f, r.labels["val"]), calibrated(r.zs, r.labels["val"])
    return f, zs, estimate_log_prior(zs["val"], r.labels["val"]).log_q


def minus_prior(r: Record) -> Logits:
    f, _, log_q = halves(r)
    return {split: f[split] - log_q for split in SPLITS}


def gla(r: Record, fitted: bool = False) -> Logits:
    f, zs, log_q = halves(r)
    how = fit_combination(zs["val"], f["val"], r.labels["val"], log_q) if fitted else SUM
    return {split: combine(zs[split], f[split], log_q, how) for split in SPLITS}


SCORES: dict[str, Callable[[Record], Logits]] = {
    "f": lambda r: r.f,
    "f - log q": minus_prior,
    "DEBIAS (f + zs - log q)": gla,
    "f and zs weighted on val": lambda r: gla(r, fitted=True),
}
PLAIN = next(iter(SCORES))


# --- combinations -----------------------------------------------------------------------------------


def evaluate(
    members: Sequence[Record], score: str, how: str = "logits", calibrate: str = "nll", weigh: bool = False
) -> dict:
    """Return test metrics of the combined members, in percent."""
    val, test = members[0].labels["val"], members[0].labels["test"]
    scores = [SCORES[score](r) for r in members]
    if calibrate != "none":
        scores = [calibrated(logits, val, calibrate) for logits in scores]
    stacked = {split: torch.stack([logits[split] for logits in scores]) for split in SPLITS}  # [M, N, C]
    uniform = torch.full((len(members),), 1 / len(members))
    weights = fit_member_weights(stacked["val"], val, how) if weigh else uniform
    combined = combine_members(stacked["test"], weights, how)
    metrics = classification_metrics(combined, test)
    groups = group_accuracies(combined.argmax(1) == test, test, members[0].groups)
    return {"accuracy": metrics["accuracy"], "ece": metrics["ece"], **groups}


def controls(models: list[Record], seeds: list[Record]) -> list[dict]:
    """Evaluate 1 to M models, as many seeds of the best, and each model alone, with each score."""
    rows = []
    for score in SCORES:
        for count in range(1, len(models) + 1):
            name = "1 model, the best on val" if count == 1 else f"{count} models"
            rows.append({"score": score, "name": name, **evaluate(models[:count], score)})
        for count in range(2, len(seeds) + 1):
            rows.append({"score": score, "name": f"{count} seeds of the best", **evaluate(seeds[:count], score)})
        for r in sorted(models, key=lambda r: r.name):
            rows.append({"score": score, "name": f"{r.name} alone", **evaluate([r], score)})
    return [{"study": "controls", **row} for row in rows]


def ways(models: list[Record]) -> list[dict]:
    """Evaluate all models with every way to combine them."""
    rows = []
    for how in ("logits", "probs"):
        for calibrate in ("none", "confidence", "nll"):
            for weigh in (False, True):
                name = f"{how}, T by {calibrate}, P(m) {'on val' if weigh else 'uniform'}"
                rows.append({"score": PLAIN, "name": name, **evaluate(models, PLAIN, how, calibrate, weigh)})
    return [{"study": "ways", **row} for row in rows]


# --- tables and the plot ----------------------------------------------------------------------------


def table(rows: Sequence[dict], columns: Sequence[str]) -> str:
    lines = []
    for name in dict.fromkeys(row["name"] for row in rows):
        same = [row for row in rows if row["name"] == name]
        lines.append([name, *(mean_and_deviation([row[key] for row in same]) for key in columns)])
    return tabulate(lines, ["", *(key.replace("_", " ") for key in columns)], "github", disable_numparse=True)


def plot(rows: Sequence[dict], path: str) -> None:
    """Plot accuracy by number of members, over all classes and over the rarest."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if row["study"] == "controls" and "alone" not in row["name"]]
    figure = Figure(figsize=(10, 4), layout="constrained")
    shown = [metric for metric in ("accuracy", "d_few", "p_few") if metric in rows[0]]
    for axis, metric in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for score, colour in zip(SCORES, ("C0", "C1", "C2", "C3"), strict=True):
            for kind, line in (("model", "-"), ("seeds", ":")):
                values: dict[int, list[float]] = {}
                for row in rows:
                    count = int(row["name"].split()[0])
                    if row["score"] == score and (kind in row["name"] or count == 1):
                        values.setdefault(count, []).append(row[metric])
                means = [sum(runs) / len(runs) for runs in values.values()]
                label = score if kind == "model" else None
                axis.plot(list(values), means, line, color=colour, marker="o", markersize=3, label=label)
        axis.set(title=f"{metric.replace('_', ' ')} (%)", xlabel="members", xticks=sorted(values))
        axis.spines[["top", "right"]].set_visible(False)
    axis.plot([], [], ":", color="black", label="seeds of the best model")
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="shapes_lt")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 1")
    parser.add_argument("--root", default="data", help="folder of the datasets")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="config overrides")
    parser.add_argument("--json", default="", help="write all numbers to this file")
    parser.add_argument("--plot", default="", help="plot accuracy by number of members to this file")
    arguments = parser.parse_args()
    logging.getLogger("unskew").setLevel(logging.ERROR)

    rows = []
    for seed in tqdm(range(1, arguments.seeds + 1), unit="seed"):
        models, seeds = records(arguments.dataset, seed, arguments.root, arguments.opts)
        rows += [{"seed": seed, "best": models[0].name, **row} for row in controls(models, seeds) + ways(models)]
    columns = ["accuracy", *(name for name in GROUPS if name in rows[0])]
    over = f"mean ± standard deviation over {arguments.seeds} seeds"
    for score in SCORES:
        print(f"\n{arguments.dataset}, {score}, {over}\n")
        print(table([row for row in rows if (row["study"], row["score"]) == ("controls", score)], columns))
    print(f"\n{arguments.dataset}, all models, ways to combine {PLAIN}, {over}\n")
    print(table([row for row in rows if row["study"] == "ways"], ["accuracy", "ece", *columns[1:]]))
    print(f"\nbest on val, by seed: {', '.join({row['seed']: row['best'] for row in rows}.values())}")
    if arguments.json:
        write_atomically(arguments.json, json.dumps({"rows": rows}) + "\n")
    if arguments.plot:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
