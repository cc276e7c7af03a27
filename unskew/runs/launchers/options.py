"""The choice of a launcher: flags of `unskew sweep` and `unskew protocol`, arguments of `unskew.sweep`."""

from dataclasses import dataclass
from pathlib import Path

from unskew.runs.launchers._slurm_options import parse
from unskew.runs.launchers.in_process import InProcess
from unskew.runs.launchers.jobs import Launcher

NAMES = ("local", "ray", "slurm")

# CPUs and GPUs of a run; Ray counts ten-thousandths.
_LEAST, _MOST = 1e-4, 1_000_000


@dataclass(frozen=True)
class Options:
    """The options of all launchers.

    Attributes:
        launcher: "local", "ray" or "slurm".
        jobs: the number of workers at once; ``None``: 1 for "local", as many as the cluster has room for otherwise.
        cpus_per_run: CPUs of a worker of Ray; ``None``: 1.
        gpus_per_run: GPUs of a worker of Ray, fractions too; ``None``: 1 if the cluster has a GPU, else 0.
        ship: send the code and the packages to the workers of Ray.
        slurm: options of sbatch, "partition=gpu,time=2:00:00,gpus_per_node=1".
        detach: submit to SLURM and return at once.
    """

    launcher: str = "local"
    jobs: int | None = None
    cpus_per_run: float | None = None
    gpus_per_run: float | None = None
    ship: bool = False
    slurm: str = ""
    detach: bool = False

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: an unknown launcher, a number out of range, or an option of another launcher.
        """
        if self.launcher not in NAMES:
            raise ValueError(f"--launcher must be {', '.join(NAMES[:-1])} or {NAMES[-1]} (got '{self.launcher}')")
        if self.jobs is not None and self.jobs < 1:
            raise ValueError(f"--jobs must be at least 1 (got {self.jobs})")
        for name in ("cpus_per_run", "gpus_per_run"):
            value = getattr(self, name)
            if value and not _LEAST <= value <= _MOST:
                raise ValueError(f"--{name.replace('_', '-')} must be 0, or {_LEAST} to {_MOST:,} (got {value})")
        if self.gpus_per_run and self.gpus_per_run > 1 and not float(self.gpus_per_run).is_integer():
            raise ValueError(f"--gpus-per-run above 1 must be a whole number (got {self.gpus_per_run})")
        parse(self.slurm)
        on_ray = self.launcher == "ray" or (self.launcher == "local" and (self.jobs or 1) > 1)
        on_ray_only = "--slurm {}=N instead" if self.launcher == "slurm" else "--launcher ray or --jobs N"
        given = {
            "--cpus-per-run": (self.cpus_per_run is not None, on_ray, on_ray_only.format("cpus_per_task")),
            "--gpus-per-run": (self.gpus_per_run is not None, on_ray, on_ray_only.format("gpus_per_node")),
            "--ship": (self.ship, self.launcher == "ray", "--launcher ray"),
            "--slurm": (bool(self.slurm), self.launcher == "slurm", "--launcher slurm"),
            "--detach": (self.detach, self.launcher == "slurm", "--launcher slurm"),
        }
        for flag, (is_given, fits, needed) in given.items():
            if is_given and not fits:
                advice = f"use {needed}" if needed.endswith("instead") else f"add {needed}, or omit {flag}"
                raise ValueError(f"{flag} has no effect with --launcher {self.launcher}: {advice}")


def build(options: Options, output: str | Path) -> Launcher:
    """Return the launcher of these options.

    Args:
        options: the choice of the user.
        output: the folder of all runs, for the files of a cluster's tasks.

    Raises:
        ValueError: a package is missing, or a value is out of range.
    """
    if options.launcher == "slurm":
        from unskew.runs.launchers import slurm

        return slurm.build(options, output)
    if options.launcher == "ray" or (options.jobs or 1) > 1:
        from unskew.runs.launchers import ray

        return ray.build(options, output)
    return InProcess()
