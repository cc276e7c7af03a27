"""The launcher of Ray: workers of a cluster, or of this computer (``--jobs N``), execute the jobs."""

import contextlib
import logging
import math
import os
import re
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unskew.runs.launchers._ray_worker import Driver
from unskew.runs.launchers.jobs import Job, Outcome, Remark, settled
from unskew.utils.files import remove_leftovers, temporary_path, write_error

_MISSING = "--launcher ray and --jobs N need Ray: pip install 'unskew[ray]'"

_TOKEN = Path("~/.ray/auth_token")

# Bytes of Ray's own store on this computer: results are small, and files go in parts.
_STORE = 256 << 20

# Seconds to wait for the answer of a cluster's address.
_ANSWERS = 10.0


def build(options: Any, output: str | Path) -> "OnRay":
    """Return the launcher; see `unskew.runs.launchers.build`.

    Raises:
        ValueError: Ray is not installed.
    """
    # Ray reads these when it is imported or started.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    _set_token(options.launcher == "local")
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise ValueError(f"{_MISSING} ({error})") from None
    return OnRay(options, output)


class OnRay:
    """Executes jobs on workers of Ray; see docs/SCALE.md.

    Args:
        options: `Options`.
        output: the folder of all runs.
    """

    def __init__(self, options: Any, output: str | Path) -> None:
        self.options, self.output = options, os.path.abspath(output)

    def outcomes(self, jobs: Sequence[Job]) -> Generator[tuple[int, Outcome, Remark], None, None]:
        """Yield the position, the outcome and a remark of each job as jobs finish.

        Raises:
            ValueError: the cluster cannot be reached, or no node has the resources of a worker.
        """
        known = settled(jobs)
        for position, outcome in known.items():
            yield position, outcome, "finished earlier" if isinstance(outcome, dict) else ""
        left = {position: job for position, job in enumerate(jobs) if position not in known}
        if not left:
            return
        from unskew.runs.launchers import _ray_packages
        from unskew.runs.launchers._ray_pool import Pool

        ship = self.options.ship
        with (
            _ray_packages.runtime_env(ship, ship) as env,
            _connected(self.options, len(left), env) as env_of_workers,
            _driver(self.output) as driver,
            contextlib.closing(Pool(left, self.options, driver, env_of_workers).outcomes()) as outcomes,
        ):
            yield from outcomes


@contextlib.contextmanager
def _driver(output: str) -> Iterator[Driver]:
    """Describe this process to the workers; a file in the output folder shows them whether they see that folder.

    Raises:
        OSError: the file cannot be written.
    """
    token, content = temporary_path(Path(output) / "driver"), os.urandom(16).hex()
    try:
        try:
            os.makedirs(output, exist_ok=True)
            remove_leftovers(output)  # the file of a command that was killed
            token.write_text(content, encoding="utf-8")
        except OSError as error:
            raise write_error(output, error) from error
        yield Driver(os.getcwd(), str(token), content)
    finally:
        with contextlib.suppress(OSError):
            token.unlink()


@contextlib.contextmanager
def _connected(options: Any, jobs: int, env: dict) -> Iterator[dict]:
    """Connect to a cluster or start Ray on this computer, and leave it at the end; keep a connection of the user.

    Args:
        options: `Options`.
        jobs: the number of jobs.
        env: Ray's runtime environment.

    Yields:
        The part of the environment that the connection does not have and each worker needs.
    """
    import ray

    own = options.launcher == "local"
    if ray.is_initialized():
        if own:
            raise ValueError("this process is connected to Ray: use launcher 'ray', or call ray.shutdown() first")
        if options.ship:
            raise ValueError("--ship needs a new connection to Ray: call ray.shutdown() first")
        yield env
        return
    address = "" if own else os.environ.get("RAY_ADDRESS", "")
    chosen: dict[str, Any] = {"address": address or "local"}
    if address:
        _check_address(address)
    else:
        chosen |= {"include_dashboard": False, "object_store_memory": _STORE}
    if own:  # the workers share the cores
        chosen["num_cpus"] = max(1, math.ceil(min(options.jobs, jobs) * _cpus(options)))
    try:
        ray.init(**chosen, runtime_env=env, log_to_driver=False, logging_level=logging.ERROR, namespace="unskew")
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        place = f"to Ray at RAY_ADDRESS={address}" if address else "to a Ray on this computer"
        raise ValueError(f"cannot connect {place}: {_reason(error)}") from None
    _silence()
    try:
        yield {}
    finally:
        with _uninterrupted():
            ray.shutdown()


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ignore Ctrl-C, so that a second one does not leave processes of Ray; it takes a second or two."""
    if threading.current_thread() is not threading.main_thread():  # which alone receives Ctrl-C
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)


def _cpus(options: Any) -> float:
    return 1 if options.cpus_per_run is None else options.cpus_per_run


def _check_address(address: str) -> None:
    """Raise ``ValueError`` if nothing answers at an address: Ray itself would wait for minutes."""
    if "://" in address:
        raise ValueError(
            f"RAY_ADDRESS={address}: the client of Ray cannot run a sweep; give HOST:6379 of the head node on a "
            "computer of the cluster, or use `ray job submit`"
        )
    if not (match := re.fullmatch(r"\[?([^\]]+)\]?:(\d{1,5})", address)):
        return  # "auto", or a mistake that Ray reports
    try:
        socket.create_connection((match[1], int(match[2])), _ANSWERS).close()
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"nothing answers at RAY_ADDRESS={address} ({error}): start the cluster, or unset it"
        ) from None


def _silence() -> None:
    """Stop the thread that prints each death of a worker: the lines of the jobs tell what matters."""
    import ray

    with contextlib.suppress(AttributeError):  # of another version of Ray
        global_worker: Any = ray._private.worker.global_worker
        global_worker.threads_stopped.set()
        global_worker.gcs_error_subscriber.close()


def _reason(error: BaseException) -> str:
    """Return an error of Ray in one line."""
    if "AuthToken" in f"{error} {error.__cause__} {error.__context__}":
        return (
            "the cluster needs its token: copy the head node's ~/.ray/auth_token to this computer, "
            "or set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        )
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _set_token(own: bool) -> None:
    """Let Ray send the token of a cluster; since 2.60 `ray start` makes one, which a driver sends only if told to.

    Args:
        own: whether Ray starts on this computer, for this process alone. It then needs no token in the home folder,
            which may be read-only.
    """
    if any(map(os.environ.get, ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))) or _TOKEN.expanduser().exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    elif own and "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:  # Ray reads them when it is imported
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


# --- resources ----------------------------------------------------------------------------------------


def demand(options: Any, nodes: Sequence[Mapping]) -> dict[str, float]:
    """Return the CPUs and GPUs of a worker: "num_cpus" and "num_gpus".

    By default a worker has one CPU, and one GPU if the cluster has any. Workers of ``local --jobs N`` share the GPUs of
    this computer.

    Args:
        options: `Options`.
        nodes: those of ``ray.nodes()``.
    """
    gpus = options.gpus_per_run
    if gpus is None:
        most = max((_has(node, "GPU") for node in nodes), default=0)
        at_once = options.jobs if options.launcher == "local" and most else 1
        gpus = 1 / math.ceil(at_once / most) if most else 0
    return {"num_cpus": _cpus(options), "num_gpus": gpus}


def room(demanded: Mapping[str, float], nodes: Sequence[Mapping]) -> int:
    """Return the number of workers for which the nodes have resources, if nothing else runs there."""
    return sum(_room(demanded["num_cpus"], demanded["num_gpus"], node) for node in nodes if node["Alive"])


def _room(cpus: float, gpus: float, node: Mapping) -> int:
    counts = [_has(node, "CPU") / cpus] if cpus else []
    if gpus >= 1:
        counts.append(_has(node, "GPU") // gpus)
    elif gpus:
        counts.append(_has(node, "GPU") * math.floor(1 / gpus + 1e-4))  # Ray counts ten-thousandths
    return math.floor(min(counts, default=_has(node, "CPU")) + 1e-4)


def _has(node: Mapping, kind: str) -> float:
    return node["Resources"].get(kind, 0) if node["Alive"] else 0


def check_room(demanded: Mapping[str, float], nodes: Sequence[Mapping]) -> None:
    """Raise ``ValueError`` if no node has the resources of a worker."""
    if room(demanded, nodes):
        return
    largest = [f"CPUs: {_has(node, 'CPU'):g} and GPUs: {_has(node, 'GPU'):g}" for node in nodes if node["Alive"]]
    raise ValueError(
        f"a run needs CPUs: {demanded['num_cpus']:g} and GPUs: {demanded['num_gpus']:g}, which no node of Ray has "
        f"(found {'; '.join(dict.fromkeys(largest)) or 'none'}): lower --cpus-per-run or --gpus-per-run"
    )
