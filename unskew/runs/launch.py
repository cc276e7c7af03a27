"""A launcher maps runs to their metrics."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from unskew.engine import run_dir
from unskew.runs.run import Run, is_finished
from unskew.utils.errors import format_error


def launch(runs: Sequence[Run], execute: Callable[[Run], dict]) -> Iterator[dict | Exception]:
    """Run one after another in this process, with a bar or, away from a terminal, a line for each; yields the metrics.

    A run that fails does not stop the others: its error is said and yielded, its ``log.txt`` has the traceback. It is
    raised with UNSKEW_DEBUG set, and where several processes work together, unless it is a mistake in data or config,
    which they all make: one that goes on alone would wait for the others for ever.
    """
    several, main = int(os.environ.get("WORLD_SIZE", 1)) > 1, int(os.environ.get("RANK", 0)) == 0
    with tqdm(total=len(runs), desc="runs", unit="run", disable=None if main else True) as bar:
        for number, run in enumerate(runs, 1):
            backbone = f"{run.backbone}, " if run.backbone else ""
            label = f"{run.trainer}, {backbone}{run_dir.shots_label(run.shots or -1)}, seed {run.seed}"
            bar.set_postfix_str(label)
            label = f"run {number} of {len(runs)}, {label}"
            try:
                earlier = ", finished earlier" if is_finished(run) else ""
                outcome = execute(run)
            except Exception as error:  # of any kind: a method may be somebody's plugin
                if os.environ.get("UNSKEW_DEBUG") or (several and not isinstance(error, (ValueError, OSError))):
                    raise
                outcome, said = error, f"{label}: {_failure(run, error)}"
                # The frames of a traceback hold the trainer, and with it the device's memory.
                outcome.__traceback__ = outcome.__cause__ = outcome.__context__ = None
                if main:
                    tqdm.write(said, file=sys.stderr)
            else:
                if main and bar.disable:
                    print(f"{label}{_numbers(outcome)}{earlier}", file=sys.stderr, flush=True)
            bar.update()
            yield outcome


def _failure(run: Run, error: Exception) -> str:
    """One line; of what is not a mistake in data or config also the kind of error, and the log with the traceback."""
    if isinstance(error, (ValueError, OSError, FloatingPointError)):
        return format_error(error)
    return f"{type(error).__name__}: {format_error(error)} ({Path(run.config().OUTPUT_DIR) / 'log.txt'})"


def _numbers(metrics: dict) -> str:
    shown = {name: metrics.get(name) for name in ("accuracy", "seconds")}
    return "".join(f", {name} {value:.1f}" for name, value in shown.items() if isinstance(value, int | float))
