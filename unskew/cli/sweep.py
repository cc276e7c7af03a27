"""The command `unskew sweep`: several runs, then their table."""

import argparse
import os
from collections.abc import Sequence
from operator import itemgetter
from typing import TYPE_CHECKING

from unskew.cli.arguments import add_runs, launcher_options, names, numbers
from unskew.cli.data import Commands

if TYPE_CHECKING:
    from unskew.runs.run import Run


def add(commands: Commands) -> None:
    """Add the command to the parser of `unskew`."""
    p = commands.add_parser("sweep", help="trainers x shots x seeds, then one table")
    p.add_argument("-d", "--dataset", required=True, help="a name from configs/datasets, or a plugin's")
    trainers = "names from configs/trainers: CoOp GLA, or CoOp,GLA"
    p.add_argument("-t", "--trainers", nargs="+", required=True, metavar="TRAINER", help=trainers)
    shots = "1 4 16, 1,4,16, 'all' (1 2 4 8 16), or -1 for all images; default: 16, and -1 for a long-tailed dataset"
    p.add_argument("--shots", nargs="+", default=[], help=shots)
    backbones = "several share one table; 'members': the members of Backdoor"
    p.add_argument("-b", "--backbone", nargs="+", default=[], help=backbones)
    p.add_argument("--columns", nargs="+", default=[], metavar="METRIC", help="of the table, instead of the shots")
    add_runs(p)
    p.set_defaults(command=_sweep)


def _sweep(arguments: argparse.Namespace) -> None:
    from unskew.runs import launch, launchers, tables
    from unskew.runs.tables import text_tables

    options = launcher_options(arguments)
    shots, backbones, wanted = names(arguments.shots), names(arguments.backbone), names(arguments.columns)
    runs = launch.plan(
        arguments.dataset,
        names(arguments.trainers),
        backbones=backbones or [""],
        shots=launch.ALL_SHOTS if shots == ["all"] else numbers("shots", shots),
        seeds=numbers("seeds", arguments.seeds),
        root=arguments.root,
        output=arguments.output,
        opts=arguments.opts,
        plugins=arguments.plugin,
    )
    if arguments.dry_run:
        print(launch.overview(runs))
        return
    tables.check_columns(wanted, others=bool(arguments.plugin))
    check_output(arguments.output, runs)
    launcher = launchers.build(options, arguments.output)
    outcomes = dict(launch.launch(runs, launcher))
    rows = [outcome for _, outcome in sorted(outcomes.items(), key=itemgetter(0)) if isinstance(outcome, dict)]
    if rows:
        # A dataset without groups of classes has no columns for them.
        known: set[str] = set().union(*rows)
        columns = [name for name in wanted if name in known or not (tables.is_group(name) or tables.is_target(name))]
        together = backbones == ["members"] or len(backbones) > 1
        print(f"\n{text_tables.table(rows, columns=columns, together=together)}")
    launch.check_outcomes(outcomes.values(), len(runs))


def check_output(folder: str, runs: Sequence["Run"]) -> None:
    """Create the output folder of runs.

    Raises:
        ValueError: it cannot be written, and a run is not finished.
    """
    problem = ""
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        problem = f"cannot create the output folder '{folder}' ({error.strerror})"
    if not problem and not os.access(folder, os.W_OK):
        problem = f"the output folder '{folder}' is not writable"
    if problem and not all(run.is_finished for run in runs):
        raise ValueError(f"{problem}; choose another")
