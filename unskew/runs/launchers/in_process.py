"""The default launcher: one job after another in this process."""

from collections.abc import Generator, Sequence

from unskew.data.snapshot import Snapshot
from unskew.runs.launchers.jobs import Job, Outcome, Remark, outcome_of


class InProcess:
    """Executes jobs in their order; they share the loaded backbone and the image features.

    All jobs see the images as they are when the first job looks at them, see `unskew.data.snapshot`.
    """

    def outcomes(self, jobs: Sequence[Job]) -> Generator[tuple[int, Outcome, Remark], None, None]:
        """Yield the position, the outcome and a remark of each job."""
        data = Snapshot()  # for all jobs, but not for the caller between them
        for number, job in enumerate(jobs):
            with data.used():
                outcome, remark = outcome_of(job)
            yield number, outcome, remark
