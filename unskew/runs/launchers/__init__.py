"""Launchers: they execute runs and evaluations in this process, on workers of Ray, or in tasks of SLURM."""

from unskew.runs.launchers.bundles import Bundle, bundles, choose, split
from unskew.runs.launchers.jobs import Job, Launcher, Outcome, Remark, WorkerError, outcome_of, portable, settled
from unskew.runs.launchers.options import NAMES, Options, build
from unskew.runs.launchers.progress import launch_jobs

__all__ = [
    "NAMES",
    "Bundle",
    "Job",
    "Launcher",
    "Options",
    "Outcome",
    "Remark",
    "WorkerError",
    "build",
    "bundles",
    "choose",
    "launch_jobs",
    "outcome_of",
    "portable",
    "settled",
    "split",
]
