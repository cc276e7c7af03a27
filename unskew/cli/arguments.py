"""Arguments that several commands share: KEY VALUE pairs among the flags, lists (``CoOp,GLA``) and ranges (``1-3``)."""

import argparse
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from unskew.utils import threads

if TYPE_CHECKING:
    from unskew.runs.launchers import Options

MOST_NUMBERS = 1000  # in one range

_KEY = re.compile(r"[A-Z]+(\.\w+)+")  # a config key such as OPTIM.LR; no name or number has this form


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Let a command take KEY VALUE pairs anywhere; ``--opts`` ends the words of a flag with several values."""
    text = "config overrides KEY VALUE ... follow; --opts is needed only for a key without a dot after several values"
    parser.add_argument("--opts", action="store_true", help=text)
    parser.usage = f"{parser.format_usage().removeprefix('usage: ').strip()} [KEY VALUE ...]"


def add_plugin(parser: argparse.ArgumentParser) -> None:
    """Let a command import plugins."""
    text = "a file or module that registers datasets and trainers; repeatable"
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE_OR_MODULE", help=text)


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Let a command set the number of CPU threads."""
    text = "CPU threads (default: UNSKEW_THREADS, else 1 for micro models and PyTorch's number for others)"
    parser.add_argument("--threads", type=_threads, metavar="N", help=text)


def add_runs(parser: argparse.ArgumentParser) -> None:
    """Let a command make several runs: their seeds, folders, plugins, threads and config values."""
    seeds = "one run for each: 1 2 3, 1,2,3 or 1-3 (the default)"
    parser.add_argument("--seeds", nargs="+", default=["1-3"], metavar="SEED", help=seeds)
    parser.add_argument("--root", default="", help="folder of the datasets (default: data)")
    add_plugin(parser)
    add_threads(parser)
    parser.add_argument("--output", default="output", help="folder of all runs (default: output)")
    plan = "print the plan with its states and folders, start nothing"
    parser.add_argument("--dry-run", action="store_true", help=plan)
    _add_launchers(parser)
    add_overrides(parser)


def _add_launchers(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("launchers", "see docs/SCALE.md")
    text = "local: this computer (the default); ray: a Ray cluster; slurm: an array job"
    group.add_argument("--launcher", default="local", choices=("local", "ray", "slurm"), help=text)
    text = "workers at once (default: 1 for local, as many as the cluster has room for otherwise)"
    group.add_argument("--jobs", type=int, metavar="N", help=text)
    group.add_argument("--cpus-per-run", type=float, metavar="X", help="CPUs of a worker of Ray (default: 1)")
    text = "GPUs of a worker of Ray, also 0.5 (default: 1 if the cluster has a GPU)"
    group.add_argument("--gpus-per-run", type=float, metavar="X", help=text)
    group.add_argument("--ship", action="store_true", help="send the code and the packages to the workers of Ray")
    text = "options of sbatch: partition=gpu,time=2:00:00,gpus_per_node=1"
    group.add_argument("--slurm", default="", metavar="KEY=VALUE,...", help=text)
    group.add_argument("--detach", action="store_true", help="submit to SLURM and return; repeat the command to look")


def launcher_options(arguments: argparse.Namespace) -> "Options":
    """Return the choice of the launcher; raise ``ValueError`` for options that do not fit together."""
    from unskew.runs.launchers import Options

    return Options(**{field: getattr(arguments, field) for field in Options.__dataclass_fields__})


def _threads(text: str) -> int:
    try:
        return threads.check(text, "it")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def end_lists(words: Sequence[str]) -> list[str]:
    """Return the words of a command with ``--opts`` before each config key that is not the value of a flag.

    Otherwise a flag with several values, such as ``--seeds``, would take the key as a further value.
    """
    ended: list[str] = []
    for before, word in zip(["--", *words], words, strict=False):
        ended += ["--opts", word] if _KEY.fullmatch(word) and not re.match(r"-\D", before) else [word]
    return ended


def take_pairs(words: Sequence[str], others: Sequence[str]) -> list[str]:
    """Return the KEY VALUE pairs of a command, wherever they are among the flags.

    Args:
        words: all words of the command.
        others: the words that belong to no flag, in order.

    Raises:
        ValueError: a flag is unknown, or a flag follows a key instead of a value.
    """
    words, place = list(words), 0
    for number, word in enumerate(others):
        if word.startswith("--" if number % 2 else "-"):
            raise ValueError(f"unrecognized arguments: {' '.join(others[number:])}")
        if number % 2:
            if words[place] != word:
                raise ValueError(f"'{others[number - 1]}' has no value: the flag '{words[place]}' follows it")
        else:
            place = words.index(word, place) + 1
    return list(others)


def names(words: Sequence[str]) -> list[str]:
    """Return the names in words that may hold several, separated by commas or spaces.

    Raises:
        ValueError: words are given, and none of them holds a name.
    """
    found = " ".join(words).replace(",", " ").split()
    if any(words) and not found:
        raise ValueError(f"'{' '.join(words)}' holds no value: give at least one")
    return found


def numbers(flag: str, words: Sequence[str]) -> list[int]:
    """Return the whole numbers in words such as "1-3", "1,4,16" or "-1".

    Args:
        flag: for error messages.
        words: numbers and ranges, separated by commas or spaces.

    Raises:
        ValueError: a word is neither a number nor a range from a smaller to a larger number.
    """
    found: list[int] = []
    for word in names(words):
        if not (match := re.fullmatch(r"(-?\d{1,18})(?:-(\d{1,18}))?", word)):
            raise ValueError(f"{flag} must be numbers such as 16, a list (1,4,16) or a range (1-3); got '{word}'")
        first, last = int(match[1]), int(match[2] or match[1])
        if not 0 <= last - first < MOST_NUMBERS or (match[2] and first < 0):
            raise ValueError(f"{flag}: the range '{word}' must go up and have at most {MOST_NUMBERS:,} numbers")
        found += range(first, last + 1)
    return found
