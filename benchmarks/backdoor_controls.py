"""Controls of the backdoor adjustment: combinations of members compared with the best member and with seeds.

    python benchmarks/backdoor_controls.py --plot docs/backdoor_controls.png

For each world of `worlds.py` and each seed the script trains the members of the Backdoor config and further seeds of
the member that is best on val, and computes all combinations from their logits. Temperatures, priors and weights use
labels of train and val only. The row "best member" takes in each column the member with the best mean on test.
"""

import argparse
import itertools
import json
import logging
import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
import worlds
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm

from unskew import config
from unskew.clip import backbones
from unskew.debias import GLA
from unskew.debias.metrics import classification_metrics, group_accuracies
from unskew.debias.mixture import COMBINE, combine_members, fit_member_weights
from unskew.debias.temperature import fit_temperature
from unskew.engine.evaluator import labels_of
from unskew.engine.trainer import build_trainer
from unskew.runs.tables import mean_and_deviation
from unskew.trainers.backdoor import member_config, parse_member
from unskew.utils.files import write_atomically
from unskew.utils.seeds import set_random_seed

WORLDS = ("shapes_lt", "digits_lt", "unseen_shapes_lt", "unseen_digits_lt")
COLUMNS = ("accuracy", "d_many", "d_medium", "d_few", "ece")

Logits = dict[str, Tensor]  # [N, C] by split


# --- one run ----------------------------------------------------------------------------------------


@dataclass(eq=False)
class Record:
    """Labels and uncalibrated logits of a trained member."""

    name: str
    labels: dict[str, Tensor]  # [N] by split
    f: Logits
    zs: Logits
    groups: dict[str, Tensor]


def world_config(world: str, opts: Sequence):
    """Return the config of Backdoor on a world, or on any dataset."""
    if world in worlds.WORLDS:
        return worlds.load_config(world, "Backdoor", "", opts)
    return config.load(world, trainer="Backdoor", opts=opts)


def record(cfg, name: str, folder: str) -> Record:
    derived = member_config(cfg, parse_member(name), f"{folder}/{name.replace('/', '-')}")
    set_random_seed(derived.SEED)
    trainer = build_trainer(derived)
    trainer.show_progress = False
    trainer.fit()
    data = trainer.dataset
    items = {"train": data.train_x, "val": data.val, "test": data.test}
    paths = {split: [item.impath for item in images] for split, images in items.items()}
    result = Record(
        name,
        {split: labels_of(images) for split, images in items.items()},
        {split: trainer.predict(paths[split]).cpu() for split in ("val", "test")},
        {split: trainer.zeroshot_logits(files).cpu() for split, files in paths.items()},
        {key: classes.cpu() for key, classes in trainer.class_groups().items()},
    )
    del trainer
    backbones.release()
    return result


def records(world: str, seed: int, root: str, opts: Sequence[str]) -> tuple[list[Record], list[Record]]:
    """Return the members sorted by accuracy on val, best first, and as many seeds of the best."""
    with tempfile.TemporaryDirectory() as folder:
        cfg = world_config(world, (*opts, "SEED", seed, "DATASET.ROOT", root, "OUTPUT_DIR", folder))
        models = [record(cfg, name, folder) for name in cfg.TRAINER.BACKDOOR.MEMBERS]
        models.sort(key=lambda r: float((r.f["val"].argmax(1) == r.labels["val"]).double().mean()), reverse=True)
        seeds = [record(cfg, f"{models[0].name}#{k}", folder) for k in range(1, len(models))]
    return models, [models[0], *seeds]


# --- a member's score -------------------------------------------------------------------------------


@cache
def gla(r: Record) -> GLA:
    """Return GLA as ``DEBIAS`` fits it over a member."""
    halves = r.zs["val"], r.f["val"], r.labels["val"]
    return GLA(prior="map", combine="fitted").fit(*halves, zs_train=r.zs["train"], y_train=r.labels["train"])


def minus_prior(r: Record) -> Logits:
    return {split: logits / gla(r).ft_temperature_ - gla(r).log_q_ for split, logits in r.f.items()}


SCORES: dict[str, Callable[[Record], Logits]] = {
    "f": lambda r: r.f,
    "f - log q": minus_prior,
    "DEBIAS": lambda r: {split: gla(r).decision_function(r.zs[split], logits) for split, logits in r.f.items()},
}


# --- combinations -----------------------------------------------------------------------------------


def evaluate(members: Sequence[Record], score: str, how: str = "logits", weigh: bool = False) -> dict[str, float]:
    """Return test metrics of the combined members, in percent."""
    val, test = members[0].labels["val"], members[0].labels["test"]
    scores = [SCORES[score](r) for r in members]
    temperatures = [fit_temperature(logits["val"], val, method="nll") for logits in scores]
    on_val, on_test = (  # [M, N, C]
        torch.stack([logits[split].float() / t for logits, t in zip(scores, temperatures, strict=True)])
        for split in ("val", "test")
    )
    weights = fit_member_weights(on_val, val, how) if weigh else torch.full((len(members),), 1 / len(members))
    temperature = fit_temperature(combine_members(on_val, weights, how), val, method="nll")
    combined = combine_members(on_test, weights, how) / temperature
    metrics = classification_metrics(combined, test)
    groups = group_accuracies(combined.argmax(1) == test, test, members[0].groups)
    return {"accuracy": metrics["accuracy"], "ece": metrics["ece"], **groups}


def controls(models: list[Record], seeds: list[Record]) -> list[dict]:
    """Evaluate each model alone, and 1 to M models and seeds of the best, with each score."""
    rows = []
    for score in SCORES:
        for r in models:
            rows.append({"study": "members", "score": score, "name": r.name, **evaluate([r], score)})
        for count in range(1, len(models) + 1):
            name = "1 model, the best on val" if count == 1 else f"{count} models"
            rows.append({"study": "controls", "score": score, "name": name, **evaluate(models[:count], score)})
        for count in range(2, len(seeds) + 1):
            name = f"{count} seeds of the best"
            rows.append({"study": "controls", "score": score, "name": name, **evaluate(seeds[:count], score)})
    return rows


def ways(models: list[Record]) -> list[dict]:
    """Evaluate all models with every way to combine them."""
    rows = []
    for score, how, weigh in itertools.product(("f", "DEBIAS"), COMBINE, (False, True)):
        name = f"{how}, P(m) {'on val' if weigh else 'uniform'}, DEBIAS {score == 'DEBIAS'}"
        rows.append({"study": "ways", "score": score, "name": name, **evaluate(models, score, how, weigh)})
    return rows


# --- tables and the plot ----------------------------------------------------------------------------


def chosen(rows: Sequence[dict], **wanted: str) -> list[dict]:
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def table(lines: dict[str, Sequence[str]], columns: Sequence[str]) -> str:
    return markdown([[name, *values] for name, values in lines.items()], ["", *map(heading, columns)])


def markdown(cells: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    return tabulate(cells, header, "github", disable_numparse=True)


def heading(key: str) -> str:
    return key.replace("_", " ")


def means(groups: dict[str, Sequence[dict]], columns: Sequence[str]) -> str:
    return table({name: [spread(rows, key) for key in columns] for name, rows in groups.items()}, columns)


def spread(rows: Sequence[dict], key: str = "accuracy") -> str:
    return mean_and_deviation([row[key] for row in rows])


def by_name(rows: Sequence[dict]) -> dict[str, list[dict]]:
    return {name: chosen(rows, name=name) for name in dict.fromkeys(row["name"] for row in rows)}


def best_member(rows: Sequence[dict], score: str, columns: Sequence[str]) -> list[dict]:
    """Return rows, by seed, that hold in each column the member with the best mean over the seeds."""
    members = by_name(chosen(rows, study="members", score=score)).values()
    best = {}
    for key in columns:
        order = sorted(members, key=lambda found: sum(row[key] for row in found))
        best[key] = order[0 if key == "ece" else -1]
    return [{key: found[i][key] for key, found in best.items()} for i in range(len(next(iter(members))))]


def difference(first: Sequence[dict], second: Sequence[dict], columns: Sequence[str]) -> list[str]:
    """Return for each column the mean difference over the seeds and its standard error."""
    cells = []
    for key in columns:
        values = [a[key] - b[key] for a, b in zip(first, second, strict=True)]
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        cells.append(f"{statistics.mean(values):+.1f} ± {error:.1f}")
    return cells


# --- the tables of docs/BACKDOOR.md -------------------------------------------------------------------


def control_table(world: str, rows: Sequence[dict]) -> str:
    """Tabulate the accuracy of several models and of several seeds of the best, by score."""
    found = [by_name(chosen(rows, world=world, study="controls", score=score)) for score in SCORES]
    cells = [[name, *(spread(runs[name]) for runs in found)] for name in found[0]]
    return markdown(cells, [f"accuracy (%) on `{world}`", "f", "f - log q", "`DEBIAS`"])


def gain_table(rows: Sequence[dict], columns: Sequence[str]) -> str:
    """Tabulate the difference of Backdoor to its best member, by world and setting; a world may lack a column."""
    cells = []
    for world, here in by_world(rows):
        known = [key for key in columns if key in here[0]]
        best = best_member(here, "f", known)
        for setting, debias in (("default", True), ("`DEBIAS False`", False)):
            runs = chosen(here, study="ways", name=f"logits, P(m) on val, DEBIAS {debias}")
            gains = dict(zip(known, difference(runs, best, known), strict=True))
            cells.append([f"`{world}`" if debias else "", setting, *(gains.get(key, "") for key in columns)])
    return markdown(cells, ["world", "setting", *map(heading, columns)])


def rule_table(rows: Sequence[dict]) -> str:
    """Tabulate the accuracy of the best member and of every way to combine the members, by world."""
    lines: dict[str, list[str]] = {}
    for _, here in by_world(rows):
        best = {f"best member, DEBIAS {s == 'DEBIAS'}": best_member(here, s, ["accuracy"]) for s in ("f", "DEBIAS")}
        for name, runs in (best | by_name(chosen(here, study="ways"))).items():
            short = name.replace(", DEBIAS False", "").replace("DEBIAS True", "`DEBIAS`")
            lines.setdefault(short, []).append(spread(runs))
    worlds = [f"`{world}`" for world, _ in by_world(rows)]
    return markdown([[name, *values] for name, values in lines.items()], ["accuracy (%)", *worlds])


def by_world(rows: Sequence[dict]) -> list[tuple[str, list[dict]]]:
    return [(world, chosen(rows, world=world)) for world in dict.fromkeys(row["world"] for row in rows)]


def print_world(world: str, rows: Sequence[dict], columns: Sequence[str]) -> None:
    """Print the ways to combine, their paired differences, and the controls."""
    found = by_name(chosen(rows, study="ways"))
    best, debiased = (best_member(rows, score, columns) for score in ("f", "DEBIAS"))
    print(f"\n{world}, mean ± standard deviation over the seeds\n")
    print(means({"best member": best, "best member, DEBIAS": debiased, **found}, columns))
    name = "logits, P(m) {}, DEBIAS {}".format
    default, plain = found[name("on val", True)], found[name("on val", False)]
    pairs = {
        "default - best member": (default, best),
        "default - best member with DEBIAS": (default, debiased),
        "P(m) on val, DEBIAS False - best member": (plain, best),
        "P(m) on val - uniform, DEBIAS False": (plain, found[name("uniform", False)]),
        "P(m) on val - uniform, DEBIAS True": (default, found[name("uniform", True)]),
        "DEBIAS True - False, P(m) on val": (default, plain),
    }
    print(f"\n{world}, mean difference ± standard error over the seeds\n")
    print(table({text: difference(*pair, columns) for text, pair in pairs.items()}, columns))
    for score in SCORES:
        print(f"\n{world}, models and seeds, {score}\n")
        print(means(by_name(chosen(rows, study="controls", score=score)), columns))


def plot(rows: Sequence[dict], path: str) -> None:
    """Plot accuracy by number of members, over all classes and over the rarest."""
    from matplotlib.figure import Figure

    rows = chosen(rows, study="controls")
    figure = Figure(figsize=(10, 4), layout="constrained")
    shown = [metric for metric in ("accuracy", "d_few", "p_few") if metric in rows[0]]
    for axis, metric in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for score, colour in zip(SCORES, ("C0", "C1", "C2"), strict=True):
            for kind, line in (("model", "-"), ("seeds", ":")):
                values: dict[int, list[float]] = {}
                for row in chosen(rows, score=score):
                    count = int(row["name"].split()[0])
                    if kind in row["name"] or count == 1:
                        values.setdefault(count, []).append(row[metric])
                heights = [statistics.mean(runs) for runs in values.values()]
                label = score if kind == "model" else None
                axis.plot(list(values), heights, line, color=colour, marker="o", markersize=3, label=label)
        axis.set(title=f"{metric.replace('_', ' ')} (%)", xlabel="members", xticks=sorted(values))
        axis.spines[["top", "right"]].set_visible(False)
    axis.plot([], [], ":", color="black", label="seeds of the best model")
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", nargs="+", default=WORLDS, help="worlds or datasets; the plot shows the first")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 1")
    parser.add_argument("--root", default="data", help="folder of the datasets")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="config overrides")
    parser.add_argument("--json", default="", help="write all numbers to this file")
    parser.add_argument("--plot", default="", help="plot accuracy by number of members to this file")
    arguments = parser.parse_args()
    logging.getLogger("unskew").setLevel(logging.ERROR)

    rows = []
    for world in arguments.worlds:
        for seed in tqdm(range(1, arguments.seeds + 1), desc=world, unit="seed"):
            models, seeds = records(world, seed, arguments.root, arguments.opts)
            found = controls(models, seeds) + ways(models)
            rows += [{"world": world, "seed": seed, "best": models[0].name, **row} for row in found]
        here = chosen(rows, world=world)
        print_world(world, here, [key for key in COLUMNS if key in here[0]])
    print(f"\nModels and seeds\n\n{control_table(arguments.worlds[0], rows)}")
    print(f"\nDifference to the best member\n\n{gain_table(rows, COLUMNS[:-1])}")
    print(f"\nRules\n\n{rule_table(rows)}")
    if arguments.json:
        write_atomically(arguments.json, json.dumps({"rows": rows}) + "\n")
    if arguments.plot:
        plot(chosen(rows, world=arguments.worlds[0]), arguments.plot)


if __name__ == "__main__":
    main()
