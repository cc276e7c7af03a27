"""A queue of processes on this computer, through submitit's local executor, where SLURM cannot run."""

import os
import signal
from contextlib import suppress

import submitit


class LocalCluster:
    """The processes of submitit's local executor as the tasks of a cluster.

    Args:
        text: options of sbatch, which have no meaning here.
    """

    def __init__(self, text=""):
        self.processes = {}

    def submit(self, tasks, folder, at_once):
        """Start a process for each task."""
        executor = submitit.LocalExecutor(folder)
        executor.update_parameters(timeout_min=10)
        jobs = executor.submit_array(tasks)
        self.processes |= {job.job_id: job for job in jobs}
        return [job.job_id for job in jobs]

    def states(self, tasks):
        """Return "RUNNING" or "COMPLETED", and "VANISHED" for processes of another test."""
        return {name: self._state(name) for name, _ in tasks}

    def _state(self, name):
        if name not in self.processes:
            return "VANISHED"
        return "COMPLETED" if self.processes[name].done() else "RUNNING"

    def cancel(self, tasks):
        """Interrupt the processes."""
        for name in tasks:
            with suppress(OSError):
                os.kill(int(name), signal.SIGINT)
