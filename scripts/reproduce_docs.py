"""Run the commands whose output the docs show, and write the output between the marks of a page.

    bash scripts/reproduce_docs.sh --list            # names, pages and commands
    bash scripts/reproduce_docs.sh --only adjust     # one entry
    bash scripts/reproduce_docs.sh --work output/docs   # all entries, in a folder from which they can be resumed
    bash scripts/reproduce_docs.sh --speed           # the times, on a machine without other work

The marks of a table are `<!-- NAME:begin -->` and `<!-- NAME:end -->`.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from build_results import around, replace

ROOT = Path(__file__).resolve().parent.parent

Take = Callable[[str], str]  # from the output of a command to the text between the marks


# --- what a page shows of an output -----------------------------------------------------------------------


def lines(output: str, first: str = ".", count: int | None = None) -> str:
    """Return the lines from the first that matches ``first`` on, as a code block."""
    found = output.strip().splitlines()
    start = next((number for number, line in enumerate(found) if re.match(first, line)), None)
    if start is None:
        raise ValueError(f"no line of the output matches {first!r}:\n{output}")
    return "\n".join(["```", *(line.rstrip() for line in found[start:][:count]), "```"])


def table(output: str, caption: str, code: bool = False) -> str:
    """Return the table below the first caption that starts with ``caption``; as a code block with the caption."""
    found = re.search(rf"^({re.escape(caption)}.*)\n\n((?:\|.*\n?)+)", output, re.MULTILINE)
    if not found:
        raise ValueError(f"the output has no table with the caption {caption!r}:\n{output}")
    return f"```\n{found[1]}\n\n{found[2].strip()}\n```" if code else found[2].strip()


def cells(output: str) -> list[list[list[str]]]:
    """Return the cells of all tables of an output, without the line below the header."""
    blocks = re.findall(r"(?:^\|.*\n?)+", output, re.MULTILINE)
    rows = [[line for line in block.splitlines() if not line.startswith("|-")] for block in blocks]
    return [[[cell.strip() for cell in line.strip("|").split("|")] for line in block] for block in rows]


def printed(output: str, places: Sequence[int], columns: Sequence[str] = ()) -> str:
    """Return the tables of an output at some places below each other; all columns, or those that ``columns`` names."""
    found = cells(output)
    head = found[places[0]][0]
    kept = [head.index(name) for name in columns or head]
    rows = [head, *(row for place in places for row in found[place][1:])]
    return markdown([[row[number] for number in kept] for row in rows])


def markdown(rows: list[list[str]]) -> str:
    """Return rows as a Markdown table; the first is the header."""
    head, *rest = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, f"|{' --- |' * len(rows[0])}", *rest])


def families(output: str) -> str:
    """Return the accuracies of `prior_recovery.py`: two families of worlds beside each other."""
    found = [[row for row in rows if row[0] not in LEFT_OUT] for rows in cells(output) if rows[0][1]]
    text = []
    for first, second in zip_longest(found[::2], found[1::2], fillvalue=None):
        (family, *shots), *rows = first
        head, names, empty = ["shots", *shots], ["", family], [""] * (len(shots) - 1)
        names += empty
        if second:
            head, names = [*head, "", *shots], [*names, "", second[0][0], *empty]
            rows = [[*row, "", *other[1:]] for row, other in zip(rows, second[1:], strict=True)]
        text.append(markdown([head, names, *map(accuracies, rows)]))
    return "\n\n".join(text)


LEFT_OUT = ("zs - log q, map", "best rival")


def accuracies(row: list[str]) -> list[str]:
    """Return a row as the page shows it: GLA in bold, differences with one digit."""
    name = "**GLA**" if row[0] == "GLA" else row[0].replace("*", r"\*")
    return [name, *(re.sub(r"\d+\.\d+", lambda number: f"{float(number[0]):.1f}", cell) for cell in row[1:])]


def recovery(output: str) -> str:
    """Return how well `convex` and `map` recover the true prior, the exact worlds first."""
    found = {rows[0][0]: rows for rows in cells(output) if not rows[0][1]}
    exact = found.pop("exact, biased")
    del found["exact, no bias"]  # it has no slope and no correlation
    rows = [
        [family, f"`{name}`", metric.replace("kl", "KL"), *numbers]
        for family, estimates in {"exact, biased": exact, **found}.items()
        for name, metric, *numbers in estimates[1:]
        if name in ("convex", "map")
    ]
    return markdown([["worlds", "estimate", "", *exact[0][2:]], *rows])


# --- the entries ------------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """A command, and the parts of its output that a page shows, by mark; without marks the command writes the page."""

    page: str
    command: str
    marks: dict[str, Take]


ADJUST = """
unskew train -d digits -t ZeroshotCLIP --shots 16 --seed 1 >/dev/null
unskew train -d digits -t ResidualPrompt --shots 16 --seed 1 >/dev/null
RUN=output/digits/ResidualPrompt/micro_16shots/seed1
Z=output/digits/ZeroshotCLIP/micro_16shots/seed1/predictions.safetensors F=$RUN/predictions.safetensors
unskew adjust --zeroshot $Z --finetuned $F --labels $F --checkpoints init $RUN
"""
EMBEDDED = """
unskew protocol few_shot --datasets {datasets} --shots all --output {output} --trainers \\
    ZeroshotCLIP DebiasedZeroshot BCTS LinearProbe CoOp ProGrad ResidualPrompt CLIPAdapter TaskRes TipAdapter \\
    TipAdapterF CLAP LPPlusPlus GDA CLIPLoRA TransCLIP Ensemble Stacking GLAPaper GLA
python scripts/build_results.py {output} {mark}
"""
RESULTS = EMBEDDED.format(datasets="digits shapes patterns", output="embedded", mark="results")
EMOJI = EMBEDDED.format(datasets="emoji", output="embedded_emoji", mark="emoji")
BACKDOOR: dict[str, Take] = {
    "controls": partial(table, caption="Models and seeds"),
    "gains": partial(table, caption="Difference to the best member"),
    "rules": partial(table, caption="Rules"),
}
GLA = {"families": families, "recovery": recovery}
AVERAGE = partial(table, caption="average accuracy", code=True)
DOMAINS = "SEEDS=1 bash scripts/domain_generalisation.sh shapes shapes_shifted"
TARGETS = "SEEDS=1 bash scripts/cross_dataset.sh shapes patterns digits shapes_shifted"
LONG_TAIL = "SEEDS=1 bash scripts/run_longtail.sh shapes_lt"
# By name. The protocols read the runs of the entries above them.
ENTRIES = {
    "readme": Entry("README.md", "bash scripts/run_fewshot.sh emoji 16", {"fewshot": lines}),
    "results": Entry("docs/RESULTS.md", RESULTS, {}),
    "emoji": Entry("docs/RESULTS.md", EMOJI, {}),
    "examples": Entry("docs/EXAMPLES.md", "python scripts/build_examples.py", {}),
    "adjust": Entry("docs/ADJUST.md", ADJUST, {"adjust": partial(lines, first=r"\d+ samples")}),
    "verify": Entry("docs/DATASETS.md", "unskew data verify digits", {"verify": lines}),
    "gla": Entry("docs/GLA.md", "python benchmarks/prior_recovery.py --plot docs/prior_recovery.png", GLA),
    "bias": Entry(
        "docs/GLA.md",
        "unskew train -d digits -t GLA --shots 16 --output-dir bias",
        {"bias": partial(lines, first="class bias", count=2)},
    ),
    "longtail": Entry(
        "docs/BACKDOOR.md",
        "bash scripts/run_longtail.sh shapes_lt",
        {"longtail": partial(table, caption="balanced test images", code=True)},
    ),
    "backdoor": Entry(
        "docs/BACKDOOR.md", "python benchmarks/backdoor_controls.py --plot docs/backdoor_controls.png", BACKDOOR
    ),
    "one_model": Entry(
        "docs/BACKDOOR.md",
        "unskew sweep -d patterns -t GLA Backdoor -b members --shots 16 --seeds 1-3 TRAINER.GLA.BASE FineTune",
        {"one_model": partial(table, caption="accuracy", code=True)},
    ),
    "few_shot": Entry("docs/PROTOCOLS.md", "SEEDS=1 bash scripts/run_fewshot.sh all 16", {"few_shot": AVERAGE}),
    "base_to_new": Entry(
        "docs/PROTOCOLS.md", 'SEEDS=1 bash scripts/base_to_new.sh "digits shapes"', {"base_to_new": lines}
    ),
    "cross_dataset": Entry("docs/PROTOCOLS.md", TARGETS, {"cross_dataset": lines}),
    "domains": Entry("docs/PROTOCOLS.md", DOMAINS, {"domains": lines}),
    "long_tail": Entry("docs/PROTOCOLS.md", LONG_TAIL, {"long_tail": lines}),
}

RUNS = """
python benchmarks/fewshot_run.py --dataset shapes --trainers CoOp
python benchmarks/fewshot_run.py --dataset digits --trainers CoOp ProGrad GLA
"""
SIZES = "python benchmarks/imagenet_size.py --sweep --trainers ZeroshotCLIP LinearProbe GLA TipAdapter"
VIEWS = "python benchmarks/views.py --opts DATASET.NUM_VAL_SHOTS 16"
FOUR_VIEWS = """
python benchmarks/views.py --datasets digits shapes patterns --shots 1 4 16 --views 4 8 --against 8 \\
    --trainers CoOp ProGrad ResidualPrompt CLIPAdapter TaskRes FineTune GLA --opts DATASET.NUM_VAL_SHOTS 16
"""
FLOORS = ("floor, s", "memory floor, s")
STEP = ("classes", "seconds", "reference", "times faster", "MiB", "reference MiB", *FLOORS)
FIT = ("", "images", "seconds", "passes", "floor, seconds", "peak memory / logits", "plain, seconds", "times faster")
SIZE = ("", "classes", "seconds", "CPU seconds", "peak MiB", "predictions MiB", "checkpoints MiB")


def timed(command: str, **marks: Take) -> Entry:
    """Return an entry of the page about speed."""
    return Entry("docs/PERFORMANCE.md", command, marks)


def first(*columns: str) -> Take:
    """Take the first table of an output."""
    return partial(printed, places=(0,), columns=columns)


SPEED = {
    "step": timed("python benchmarks/text_step.py", step=first(*STEP)),
    "runs": timed(RUNS, runs=partial(printed, places=(0, 2)), break_even=partial(printed, places=(1, 3))),
    "sizes": timed(SIZES, sizes=first(*SIZE)),
    "views": timed(VIEWS, views=first("views", "seconds", "accuracy on val (%)")),
    "four_views": timed(FOUR_VIEWS, four_views=partial(printed, places=(1,))),
    "growth": timed("python benchmarks/scaling.py", growth=first()),
    "fit": timed("python benchmarks/prior.py", fit=first(*FIT)),
    "listing": timed("python benchmarks/listing.py --files 1281167", listing=first()),
}

# The commands stand as in the docs, but run in a work folder.
PREAMBLE = r"""
python() { "$PYTHON" "$@"; }
unskew() { "$PYTHON" -m unskew.cli "$@"; }
"""


def run(entry: Entry, work: Path, root: Path = ROOT) -> None:
    """Run the command of an entry in a folder, and write its output between the marks of the page below ``root``."""
    page = root / entry.page
    for mark in entry.marks:  # a missing mark is an error before a long run
        around(page, mark)
    folders = r"(?<![\w./-])(scripts|benchmarks|docs)/"  # of the repository
    command = re.sub(folders, lambda match: f"{ROOT}/{match[1]}/", entry.command)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": path}
    words = ["bash", "-euo", "pipefail", "-c", PREAMBLE + command]
    output = subprocess.run(words, cwd=work, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    for mark, take in entry.marks.items():
        replace(page, mark, take(output))


def main() -> None:
    """List the entries, or run one or many of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print names, pages and commands, and run nothing")
    every = ENTRIES | SPEED
    parser.add_argument("--only", choices=every, metavar="NAME", help="run one entry")
    parser.add_argument("--speed", action="store_true", help="run the benchmarks of speed instead of the others")
    parser.add_argument("--work", help="the folder of runs, which are then resumed (default: a new one for each call)")
    arguments = parser.parse_args()
    chosen = {arguments.only: every[arguments.only]} if arguments.only else SPEED if arguments.speed else ENTRIES
    if arguments.list:
        for name, entry in every.items():
            print(f"{name}: {entry.page}\n    " + "\n    ".join(entry.command.strip().splitlines()))
        return
    with tempfile.TemporaryDirectory() as folder:
        work = Path(arguments.work or folder)
        work.mkdir(parents=True, exist_ok=True)
        for name, entry in chosen.items():
            print(f"{name}: {entry.page}", flush=True)
            run(entry, work)


if __name__ == "__main__":
    main()
