"""Several runs: their plan, their execution by a launcher, and their states."""

import os
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from unskew import config
from unskew.data.snapshot import with_snapshot
from unskew.engine.run_dir import RunDir, backbone_label, shots_label
from unskew.runs import elsewhere
from unskew.runs import plugins as plugin_files
from unskew.runs.launchers import Launcher, Options, Outcome, build, launch_jobs
from unskew.runs.run import Run, absolute, execute, finished_metrics, flat, several
from unskew.utils.errors import MissingWeightsError

ALL_SHOTS = (1, 2, 4, 8, 16)
_FLAGS = {"SEED": "--seeds", "DATASET.NUM_SHOTS": "--shots", "OUTPUT_DIR": "--output"}
OTHER = "finished with another config"  # the state of a run that would fail


def plan(
    dataset: str,
    trainers: Sequence[str],
    *,
    backbones: Sequence[str] = ("",),
    shots: Sequence[int] = (),
    seeds: Sequence[int] = (1, 2, 3),
    root: str = "",
    output: str | Path = "output",
    opts: Mapping[str, object] | Sequence = (),
    plugins: Sequence[str] = (),
) -> list[Run]:
    """Return the runs of a sweep, each once; their names and configs are checked. See `sweep` for the arguments."""
    plugins, trainers, backbones, opts = several(plugins), several(trainers), several(backbones), flat(opts)
    plugin_files.load(plugins)
    dataset = config.check_name("datasets", dataset)
    trainers = [config.check_name("trainers", trainer) for trainer in trainers]
    for key in opts[::2]:
        if key in _FLAGS:
            raise ValueError(f"{key} would be the same in all runs of a sweep: use {_FLAGS[key]} instead")
    seeds = [config.integer("seeds", seed) for seed in several(seeds)]
    if min(seeds, default=0) < 0:
        raise ValueError(f"the seeds of a sweep must be 0 or more (got {min(seeds)})")
    if list(backbones) == ["members"]:
        members = config.load(dataset, trainer="Backdoor", opts=opts).TRAINER.BACKDOOR.MEMBERS
        backbones = list(dict.fromkeys(member.partition("#")[0] for member in members))
    backbones = [backbone and config.check_backbone(backbone) for backbone in backbones]
    shots = [check_shots(config.integer("shots", k)) for k in several(shots)]
    if not shots:
        longtail = dict(config.flatten(config.dataset_layer(dataset)[1])).get("DATASET.LONGTAIL", False)
        shots = [-1 if longtail else 16]
    runs = [
        Run(dataset, trainer, backbone, k, seed, root, os.fspath(output), opts=opts, plugins=plugins)
        for trainer in trainers
        for backbone in ([""] if config.has_members(trainer) else backbones)
        for k in shots
        for seed in seeds
    ]
    unique: dict[Path, Run] = {}  # two spellings of a name are one run
    for run in runs:  # a wrong key is in every run: it is one error, before the first run
        unique.setdefault(run.path, run)
    return list(unique.values())


def check_shots(shots: int) -> int:
    """Return a number of shots: 1 or more, or -1 for all images."""
    if shots < 1 and shots != -1:
        raise ValueError(f"shots must be 1 or more (or -1 for all images); got {shots}")
    return shots


def sweep(
    dataset: str,
    trainers: Sequence[str],
    *,
    backbones: Sequence[str] = ("",),
    shots: Sequence[int] = (),
    seeds: Sequence[int] = (1, 2, 3),
    root: str = "",
    output: str | Path = "output",
    opts: Mapping[str, object] | Sequence = (),
    plugins: Sequence[str] = (),
    launcher: str = "local",
    jobs: int | None = None,
    slurm: str = "",
) -> list[Run]:
    """Train and test trainers x backbones x shots x seeds; finished runs are only read.

    All runs use the images as they are when the sweep begins. Images that change later are noticed by the next call.

    Args:
        dataset: a dataset's name.
        trainers: names of trainers.
        backbones: names of backbones; default: the dataset's; ``["members"]``: the members of Backdoor.
        shots: training images per class; -1: all; default: 16, and all images of a long-tailed dataset.
        seeds: one run for each.
        root: the folder of the datasets; default: "data".
        output: the folder below which each run has its place.
        opts: config values by key for every run, ``{"OPTIM.LR": 0.1}``.
        plugins: files or modules that bring datasets and trainers.
        launcher: "local", "ray" or "slurm", see docs/SCALE.md.
        jobs: workers at once; default: this process for "local", as many as the cluster has room for otherwise.
        slurm: options of sbatch, "partition=gpu,time=2:00:00,gpus_per_node=1".

    Returns:
        The runs, in the order of trainers, backbones, shots and seeds.

    Raises:
        ValueError: an unknown name or key, before the first run; or runs failed, after the last one.

    Examples:
        >>> import tempfile, unskew
        >>> runs = unskew.sweep("digits", ["ZeroshotCLIP"], shots=[1], seeds=[1, 2], output=tempfile.mkdtemp())
        >>> [(run.seed, run.is_finished) for run in runs]
        [(1, True), (2, True)]
    """
    runs = plan(
        dataset,
        trainers,
        backbones=backbones,
        shots=shots,
        seeds=seeds,
        root=root,
        output=absolute(output),
        opts=opts,
        plugins=plugins,
    )
    number = None if jobs is None else config.integer("jobs", jobs)
    outcomes = dict(launch(runs, build(Options(launcher, number, slurm=slurm), output)))
    check_outcomes(outcomes.values(), len(runs))
    return runs


@with_snapshot
def overview(runs: Sequence[Run]) -> str:
    """Return a table of runs with their state and folder."""
    from tabulate import tabulate

    lines = [
        [run.trainer, backbone_label(run.config), run.config.DATASET.NUM_SHOTS, run.config.SEED, state(run), run.path]
        for run in runs
    ]
    table = tabulate(lines, ["trainer", "backbone", "shots", "seed", "state", "folder"], "github")
    states = [line[4] for line in lines]
    text = f"{table}\n\n{states.count('finished')} of {len(runs)} runs are finished"
    if other := states.count(OTHER):
        text += f"; {other} would fail: choose another output folder, or delete the folders with another config"
    return text


def state(run: Run) -> str:
    """Return the state of a run's folder: "finished", "unfinished", "new" or `OTHER`."""
    folder = RunDir(run.path)
    if folder.is_finished:
        return "finished" if folder.is_finished_run_of(run.config) else OTHER
    return "unfinished" if folder.config.is_file() else "new"


def check_outcomes(outcomes: Collection[Outcome], planned: int, unit: str = "run") -> None:
    """Raise ``ValueError`` if runs failed or were not started.

    Args:
        outcomes: those that `launch` yielded.
        planned: the number of runs.
        unit: the word for a run in the message.
    """
    failed = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    if not failed:
        return
    if any(isinstance(outcome, MissingWeightsError) for outcome in failed) and len(outcomes) < planned:
        left = f"{planned - len(outcomes)} of {planned} {unit}s were not started"
        raise ValueError(f"{left}: provide the weights, then repeat the command, which skips finished {unit}s")
    advice = f"mend the cause, then repeat the command, which skips finished {unit}s"
    raise ValueError(f"{len(failed)} of {planned} {unit}s failed, see above: {advice}")


@dataclass(frozen=True)
class Training:
    """A run as a job of `launch_jobs`.

    Attributes:
        run: the run.
        names_dataset: whether its label names the dataset.
    """

    run: Run
    names_dataset: bool = False

    @property
    def label(self) -> str:
        """A few words for the line of progress."""
        return f"{self.run.dataset}, {label_of(self.run)}" if self.names_dataset else label_of(self.run)

    @property
    def place(self) -> Path | None:
        """The run's folder; ``None`` if a wrong config gives none."""
        return self.run.path if self.run.folder or "config" in vars(self.run) else None

    @property
    def shares(self) -> Hashable:
        """The dataset and the backbones."""
        return self.run.dataset, self.run.root, self.run.backbone

    def reads(self) -> elsewhere.Reads:
        """Return the paths that the run reads, with its own folder, whose checkpoints it may resume."""
        return elsewhere.reads(self.run, self.run.path)

    def moved(self, root: str) -> "Training":
        """Return the run for a worker without the driver's files."""
        return replace(self, run=elsewhere.moved(self.run, root))

    def finished(self) -> dict | None:
        """Return the metrics if the run is finished."""
        return finished_metrics(self.run)

    def execute(self) -> dict:
        """Train and test; return the metrics."""
        return execute(self.run, console=False)


def launch(runs: Sequence[Run], launcher: Launcher | None = None) -> Iterator[tuple[int, Outcome]]:
    """Execute runs; yield the position of each and its metrics or its error. See `launch_jobs`."""
    several = len({run.dataset for run in runs}) > 1
    return launch_jobs([Training(run, several) for run in runs], "run", launcher)


def label_of(run: Run) -> str:
    """Return a run in a few words: "GLA, 16 shots, seed 1"."""
    backbone = f"{run.backbone}, " if run.backbone else ""
    return f"{run.trainer}, {backbone}{shots_label(run.shots or -1)}, seed {run.seed}"
