"""The command `unskew protocol`: the runs and evaluations of one of the field's protocols, then its table."""

import argparse

from unskew.cli.arguments import add_runs, launcher_options, names, numbers
from unskew.cli.data import Commands
from unskew.cli.sweep import check_output

_NAMES = ("few_shot", "base_to_new", "cross_dataset", "domain_generalisation", "long_tail")


def add(commands: Commands) -> None:
    """Add the command to the parser of `unskew`."""
    p = commands.add_parser("protocol", help="few-shot, base to new, cross-dataset, ...: all runs, then the table")
    p.add_argument(
        "name", type=_plain, choices=_NAMES, metavar="NAME", help=f"{', '.join(_NAMES[:-1])} or {_NAMES[-1]}"
    )
    datasets = "to train on; several, or 'all' that are prepared, in few_shot and base_to_new"
    p.add_argument("-d", "--datasets", nargs="+", default=[], metavar="DATASET", help=datasets)
    targets = "to test on, in cross_dataset and domain_generalisation"
    p.add_argument("--targets", nargs="+", default=[], metavar="DATASET", help=targets)
    trainers = "default: those of docs/PROTOCOLS.md"
    p.add_argument("-t", "--trainers", nargs="+", default=[], metavar="TRAINER", help=trainers)
    shots = "1 4 16, 'all' (1 2 4 8 16), or -1 for all images; default: 16, and -1 in long_tail"
    p.add_argument("--shots", nargs="+", default=[], help=shots)
    backbones = "default: the dataset's; 'members', the members of Backdoor, in long_tail"
    p.add_argument("-b", "--backbone", nargs="+", default=[], help=backbones)
    add_runs(p)
    p.set_defaults(command=_protocol)


def _plain(name: str) -> str:
    return name.replace("-", "_")


def _protocol(arguments: argparse.Namespace) -> None:
    from unskew.runs import launch, launchers, protocols

    options = launcher_options(arguments)
    shots, backbones = names(arguments.shots), names(arguments.backbone)
    plan = protocols.plan(
        arguments.name,
        names(arguments.datasets),
        names(arguments.trainers),
        targets=names(arguments.targets),
        backbones=backbones,
        shots=launch.ALL_SHOTS if shots == ["all"] else numbers("shots", shots),
        seeds=numbers("seeds", arguments.seeds),
        root=arguments.root,
        output=arguments.output,
        opts=arguments.opts,
        plugins=arguments.plugin,
    )
    if arguments.dry_run:
        print(protocols.overview(plan))
        return
    check_output(arguments.output, plan.runs)
    trained, tested = protocols.execute(plan, launchers.build(options, arguments.output))
    if any(isinstance(outcome, dict) for outcome in trained):
        together = len(backbones) > 1 or "members" in (backbones or [arguments.name == "long_tail" and "members"])
        print(f"\n{protocols.text(plan.protocol, trained, tested, together)}")
    launch.check_outcomes(trained, len(plan.runs))
    launch.check_outcomes(tested, len(plan.evaluations), "evaluation")
