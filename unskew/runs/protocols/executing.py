"""Execution of a plan: its training runs, then its evaluations, then the table."""

from collections.abc import Mapping, Sequence
from operator import itemgetter

from unskew.data.snapshot import with_snapshot
from unskew.engine.run_dir import backbone_label, trainer_label
from unskew.runs import launch, tables
from unskew.runs.launchers import Launcher, Outcome, launch_jobs
from unskew.runs.protocols.plans import Plan
from unskew.runs.tables import protocol_tables, text_tables

_Outcomes = list[Outcome]


@with_snapshot
def overview(plan: Plan) -> str:
    """Return a table of the runs and evaluations of a plan with their states and folders."""
    from tabulate import tabulate

    lines, states = [], {run.path: launch.state(run) for run in plan.runs}
    for run in plan.runs:
        half = " (base classes)" if plan.protocol == "base_to_new" else ""
        lines.append([f"train on {run.dataset}{half}", *_of(run), states[run.path], run.path])
    for test in plan.evaluations:
        is_finished = states[test.source.path] == "finished" and test.finished() is not None
        half = f" ({test.half} classes)" if test.half else ""
        state = "finished" if is_finished else "new"
        lines.append([f"test on {test.dataset}{half}", *_of(test.source), state, test.place])
    table = tabulate(lines, ["task", "trainer", "backbone", "shots", "seed", "state", "folder"], "github")
    found = [line[5] for line in lines]
    trained, tested = (part.count("finished") for part in (found[: len(plan.runs)], found[len(plan.runs) :]))
    tests = f" and {tested} of {len(plan.evaluations)} evaluations" if plan.evaluations else ""
    text = f"{table}\n\n{trained} of {len(plan.runs)} runs{tests} are finished"
    if other := found.count(launch.OTHER):
        text += f"; {other} would fail: choose another output folder, or delete the folders with another config"
    return text


def _of(run: launch.Run) -> list:
    return [trainer_label(run.config), backbone_label(run.config), run.config.DATASET.NUM_SHOTS, run.config.SEED]


def execute(plan: Plan, launcher: Launcher | None = None) -> tuple[_Outcomes, _Outcomes]:
    """Train what is not finished, then evaluate; return the metrics or the error of each run and each evaluation.

    A failing run does not stop the others; its evaluations are not started. The metrics have the ``folder``.
    """
    trained = dict(launch.launch(plan.runs, launcher))
    done = {plan.runs[number].path for number, outcome in trained.items() if isinstance(outcome, dict)}
    evaluations = [test for test in plan.evaluations if test.source.path in done]
    tested = dict(launch_jobs(evaluations, "evaluation", launcher))
    return (
        _with_folders(trained, [run.path for run in plan.runs]),
        _with_folders(tested, [test.place for test in evaluations]),
    )


def _with_folders(outcomes: Mapping[int, Outcome], folders: Sequence) -> _Outcomes:
    """Return the outcomes in the order of the plan."""
    return [
        {**outcome, "folder": str(folders[number])} if isinstance(outcome, dict) else outcome
        for number, outcome in sorted(outcomes.items(), key=itemgetter(0))
    ]


def text(protocol: str, trained: _Outcomes, tested: _Outcomes, together: bool = False) -> str:
    """Return the tables of a protocol.

    Args:
        protocol: the name of the protocol.
        trained: the outcomes of the runs, as `execute` returns them.
        tested: the outcomes of the evaluations.
        together: put all backbones into one table, in few_shot and long_tail.
    """
    rows, evaluations = ([outcome for outcome in part if isinstance(outcome, dict)] for part in (trained, tested))
    if protocol == "few_shot":
        return text_tables.table(rows, together=together)
    if protocol != "long_tail":
        return protocol_tables.text(protocol, rows, evaluations)
    known = dict.fromkeys(name for row in rows for name in row)
    groups = ["accuracy", *(f"{kind}_{size}" for kind in "dp" for size in ("many", "medium", "few"))]
    columns = {
        "balanced test images:": [name for name in groups if name in known],
        "known class frequencies:": [name for name in known if tables.is_target(name)],
    }
    parts = [(title, names) for title, names in columns.items() if names]
    return "\n\n".join(text_tables.table(rows, columns=names, together=together, title=title) for title, names in parts)
