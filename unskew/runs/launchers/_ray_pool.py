"""The workers of a sweep on Ray: which job each one gets, and what happens when one dies."""

import contextlib
import logging
import os
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError, RuntimeEnvSetupError

from unskew.runs.launchers._ray_files import State, fetch, listing, send
from unskew.runs.launchers._ray_packages import code_digest
from unskew.runs.launchers._ray_worker import Driver, Facts, Result, Worker
from unskew.runs.launchers.bundles import bundles, choose
from unskew.runs.launchers.jobs import Job, Outcome, Remark, WorkerError
from unskew.runs.launchers.ray import check_room, demand, room
from unskew.utils.logging import setup_logger

logger = logging.getLogger("unskew")

_Finished = tuple[int, Outcome, Remark]

TRIES = 3  # of a job whose worker dies, and of starts without a job

# Seconds between looks at the nodes, to wait for a node if none is left, and to wait for workers to delete their files.
_LOOK, _NODE, _CLOSE = 2.0, 60.0, 5.0

_NODE_LOST = "its node was lost"


@dataclass(eq=False)
class _Hired:
    """A worker: its actor, and its job."""

    actor: Any
    root: str = ""
    bundle: int | None = None
    position: int | None = None
    before: dict[str, State] = field(default_factory=dict)  # the files of the job's folder


class Pool:
    """Workers that execute jobs.

    Args:
        jobs: the jobs by position.
        options: `unskew.runs.launchers.Options`.
        driver: this process, for the workers.
        env: Ray's runtime environment of the workers.
    """

    def __init__(self, jobs: Mapping[int, Job], options: Any, driver: Driver, env: dict) -> None:
        self.jobs, self.options, self.driver, self.env = jobs, options, driver, env
        positions = list(jobs)
        self.left = [[positions[n] for n in part] for part in bundles(list(jobs.values()))]
        self.bundle_of = {position: n for n, part in enumerate(self.left) for position in part}
        self.unfinished = set(positions)
        self.deaths = dict.fromkeys(positions, 0)
        self.failed_starts = 0
        self.workers: set[_Hired] = set()
        self.calls: dict[Any, _Hired] = {}  # the workers by the reference of their answer
        self.demanded = demand(options, ray.nodes())
        check_room(self.demanded, ray.nodes())
        self.had_room = time.monotonic()

    def outcomes(self) -> Generator[_Finished, None, None]:
        """Yield the position, the outcome and a remark of each job; stop the workers at the end."""
        try:
            while self.unfinished:
                self._hire()
                if not self.calls:  # no node has room
                    time.sleep(_LOOK)
                    continue
                for reference in ray.wait(list(self.calls), timeout=_LOOK)[0]:
                    yield from self._answered(self.calls.pop(reference), reference)
        finally:
            self._dismiss()

    # --- workers ------------------------------------------------------------------------------------

    def _hire(self) -> None:
        """Start workers while jobs wait for them."""
        nodes = ray.nodes()
        places = room(self.demanded, nodes)
        if places:
            self.had_room = time.monotonic()
        elif time.monotonic() - self.had_room > _NODE:  # the nodes died
            check_room(self.demanded, nodes)
        wanted = min(self.options.jobs or places, len(self.unfinished))
        starting = sum(worker.position is None for worker in self.workers)
        waiting = sum(map(len, self.left))
        for _ in range(min(wanted - len(self.workers), waiting - starting)):
            remote = ray.remote(Worker).options(**self.demanded, max_restarts=0, runtime_env=self.env)
            worker = _Hired(remote.remote(self.driver))
            self.workers.add(worker)
            self.calls[worker.actor.facts.remote()] = worker

    def _answered(self, worker: _Hired, reference: Any) -> Iterator[_Finished]:
        """Take the answer of a worker and give it another job."""
        try:
            answer = ray.get(reference)
            if isinstance(answer, Facts):
                self._check(answer)
                worker.root, self.failed_starts = answer.root, 0
            else:
                yield self._finish(worker, answer)
        except RayTaskError as error:  # a job that cannot be unpickled, or any error with UNSKEW_DEBUG
            if os.environ.get("UNSKEW_DEBUG") or worker.position is None:
                raise
            self.unfinished.discard(worker.position)
            yield worker.position, WorkerError(_last_line(error)), ""
        except RayError as error:
            yield from self._lost(worker, error)
            return
        try:
            self._assign(worker)
        except RayError as error:
            yield from self._lost(worker, error)

    def _check(self, facts: Facts) -> None:
        if facts.code != code_digest():
            raise ValueError(
                f"a worker on {facts.node} has another unskew ({facts.code}) than this process ({code_digest()}): "
                "install the same one there, or add --ship"
            )

    def _lost(self, worker: _Hired, error: RayError) -> Iterator[_Finished]:
        """Return the job of a dead worker to its bundle; yield its outcome if it was tried often enough."""
        self._stop(worker)
        position, reason = worker.position, _reason(error)
        if position is None:
            self.failed_starts += reason != _NODE_LOST
            self._check_starts(error, reason)
            return
        self.deaths[position] += 1
        if self.deaths[position] < TRIES:
            self.left[self.bundle_of[position]].insert(0, position)
            return
        self.unfinished.discard(position)
        yield position, WorkerError(f"its worker died {TRIES} times: {reason}"), ""

    def _check_starts(self, error: RayError, reason: str) -> None:
        """Raise ``ValueError`` if workers cannot start."""
        if isinstance(error, RuntimeEnvSetupError):
            raise ValueError(f"the workers cannot install the packages of --ship: {reason}") from None
        if "ModuleNotFoundError" in str(error) or "ImportError" in str(error):
            advice = f"install unskew {code_digest().split()[0]} there, or add --ship"
            raise ValueError(f"a worker cannot load this unskew ({reason}): {advice}") from None
        if self.failed_starts >= TRIES:
            token = os.environ.get("RAY_AUTH_MODE") == "token" and "never ran" in reason
            advice = " (if the cluster was started without a token, set RAY_AUTH_MODE=disabled)" if token else ""
            raise ValueError(f"workers of Ray do not start: {reason}{advice}") from None

    def _dismiss(self) -> None:
        """Stop all workers."""
        for worker in list(self.workers):
            self._stop(worker)

    def _stop(self, worker: _Hired) -> None:
        self.workers.discard(worker)
        with contextlib.suppress(RayError):
            ray.kill(worker.actor)

    def _let_go(self, worker: _Hired) -> None:
        """Stop a worker that has no job left."""
        with contextlib.suppress(RayActorError, GetTimeoutError):
            ray.get(worker.actor.close.remote(), timeout=_CLOSE)
        self._stop(worker)

    # --- jobs ---------------------------------------------------------------------------------------

    def _assign(self, worker: _Hired) -> None:
        """Give a worker its next job, see `choose`."""
        counts = [0] * len(self.left)
        for other in self.workers - {worker}:
            if other.bundle is not None:
                counts[other.bundle] += 1
        worker.position = None
        worker.bundle = choose(self.left, counts, worker.bundle)
        if worker.bundle is None:
            self._let_go(worker)
            return
        worker.position = self.left[worker.bundle].pop(0)
        job, reads = self.jobs[worker.position], None
        if worker.root:
            reads = job.reads()
            worker.before = listing([job.place] if job.place else [])
            files = listing(reads.sent)
            wanted = ray.get(worker.actor.missing.remote(files))
            send(files, wanted, lambda *part: ray.get(worker.actor.write.remote(*part)))
        self.calls[worker.actor.execute.remote(job, reads)] = worker

    def _finish(self, worker: _Hired, result: Result) -> _Finished:
        """Fetch a job's files if the worker does not share them; log its warnings."""
        assert worker.position is not None
        position, outcome = worker.position, result.outcome
        if worker.root and (place := self.jobs[position].place):
            try:
                fetch(result.files, worker.before, lambda *part: ray.get(worker.actor.read.remote(*part)))
                ray.get(worker.actor.drop.remote(os.path.abspath(place)))
            except OSError as error:
                outcome = error
        with setup_logger(None, console=False):
            for line in result.warnings:
                logger.warning(line)
        self.unfinished.discard(position)
        return position, outcome, result.remark


def _reason(error: RayError) -> str:
    """Return why a worker died, in one line."""
    text = " ".join(str(error).split())
    if "memory" in text and "OOM killer due" not in text:
        return "its node ran out of memory; lower --jobs or raise --cpus-per-run"
    if "node" in text and ("died" in text or "dead" in text) and "worker process has died" not in text:
        return _NODE_LOST
    if "worker process has died" in text:
        detail = text.partition("Worker exit detail: ")[2]
        if "connection error code" in detail:
            return "its process was killed, for instance because the memory is full"
        return detail or "its process died"
    return _last_line(error)


def _last_line(error: RayError) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
