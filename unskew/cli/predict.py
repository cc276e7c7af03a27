"""`unskew predict`: the classes of images, by a finished run."""

import argparse
import contextlib
import csv
import itertools
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from unskew.cli.arguments import add_plugin, add_threads
from unskew.cli.data import Commands

if TYPE_CHECKING:
    from unskew.runs.predict import Batch

FORMATS = ("table", "json", "csv")


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    p = commands.add_parser("predict", help="the classes of images, by a finished run")
    p.add_argument("run", metavar="RUN", help="the folder of a finished run; its dataset is not needed")
    p.add_argument("paths", nargs="+", metavar="IMAGE", help="images and folders of images; - reads paths from stdin")
    p.add_argument("--top", type=_count, default=5, metavar="K", help="classes per image (default: 5)")
    p.add_argument("--format", choices=FORMATS, default="table", help="default: table")
    p.add_argument("--explain", action="store_true", help="also the parts of each class's score")
    add_plugin(p)
    add_threads(p)
    p.set_defaults(command=run)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"it must be a whole number of 1 or more (got '{text}')")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Print the predictions.

    Returns:
        0, or 1 if an image or a folder could not be read; each of these has had its line on standard error.
    """
    from unskew.data.saved_run import read_model
    from unskew.engine.run_dir import RunDir
    from unskew.runs import plugins
    from unskew.utils.logging import setup_logger

    folder = Path(arguments.run)
    RunDir(folder).read_config()  # a wrong folder is reported before torch is imported
    read_model(folder)
    paths, problems = find_images(arguments.paths)
    for problem in problems:
        _report(problem)
    if not paths:
        return 1
    plugins.load(arguments.plugin)
    with setup_logger(None, console=False):
        return max(_predict(folder, paths, arguments), bool(problems))


def _predict(folder: Path, paths: Sequence[str], arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from unskew.runs import libraries

    libraries.freeze()
    from unskew.runs.predict import Predictor

    predictor, failed = Predictor(folder), False
    writer = _WRITERS[arguments.format](paths, predictor.classes)
    with tqdm(total=len(paths), desc="predict", unit="image", delay=2, leave=False, disable=None) as bar:
        for batch in predictor.batches(paths):
            bar.update(len(batch.images))
            with bar.external_write_mode():
                for problem in batch.problems.values():
                    _report(problem)
                failed |= bool(batch.problems)
                for path, rows in _rows(batch, predictor.classes, arguments.top, arguments.explain):
                    writer.write(path, rows)
                sys.stdout.flush()
    writer.close()
    return int(failed)


def _report(problem: str) -> None:
    print(f"unskew: {_shown(problem)}", file=sys.stderr, flush=True)


# --- the images -------------------------------------------------------------------------------------


def find_images(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the paths of images, each once, and a line for each argument or folder that gives none.

    Args:
        arguments: paths of files and folders; "-" stands for the lines of standard input.

    Raises:
        ValueError: standard input holds no path.
    """
    paths: dict[str, str] = {}
    problems: list[str] = []
    for argument in itertools.chain.from_iterable(map(_lines, arguments)):
        found = _below(argument, problems) if os.path.isdir(argument) else [argument]
        for path in found:
            paths.setdefault(os.path.normpath(path), path)
    return list(paths.values()), problems


def _lines(argument: str) -> list[str]:
    if argument != "-":
        return [argument]
    stream = getattr(sys.stdin, "buffer", None)
    lines = [os.fsdecode(line) for line in stream] if stream else list(sys.stdin or ())  # names need not be UTF-8
    paths = [path for line in lines if (path := line.rstrip("\r\n"))]
    if not paths:
        raise ValueError("standard input holds no paths: give one per line")
    return paths


def _below(folder: str, problems: list[str]) -> list[str]:
    """Return the sorted images below a folder; add a line for each folder that cannot be read or has no images."""
    from unskew.data.image_folders import EXTENSIONS, is_left_over

    def note(error: OSError) -> None:
        problems.append(f"folder '{error.filename}' cannot be read ({error.strerror}): check its permissions")

    before, images = len(problems), []
    for place, folders, files in os.walk(folder, onerror=note):
        folders[:] = [name for name in folders if not is_left_over(name)]
        images += [
            os.path.join(place, name) for name in files if name.lower().endswith(EXTENSIONS) and not is_left_over(name)
        ]
    if not images and len(problems) == before:
        problems.append(f"folder '{folder}' has no images: give files, or a folder with files such as .jpg and .png")
    return sorted(images)


# --- the output -------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A class of an image, with its probability and, to explain it, the terms of its score by name."""

    name: str
    probability: float
    terms: dict[str, float]


def _rows(batch: "Batch", classes: Sequence[str], top: int, explain: bool) -> Iterator[tuple[str, list[Row]]]:
    """Yield each readable image of a batch with its most probable classes."""
    if batch.scores is None:
        return
    probabilities, order = batch.scores.logits.softmax(1).topk(min(top, len(classes)))
    terms = {**batch.scores.parts, "score": batch.scores.logits} if explain else {}
    columns = {name: values.gather(1, order).tolist() for name, values in terms.items()}
    readable = (str(image) for place, image in enumerate(batch.images) if place not in batch.problems)
    for number, path in enumerate(readable):
        yield (
            path,
            [
                Row(classes[label], probability, {name: values[number][k] for name, values in columns.items()})
                for k, (label, probability) in enumerate(
                    zip(order[number].tolist(), probabilities[number].tolist(), strict=True)
                )
            ],
        )


class Writer(Protocol):
    """A format of the output."""

    def write(self, path: str, rows: Sequence[Row]) -> None:
        """Print the classes of an image."""

    def close(self) -> None:
        """Print the end."""


def _shown(text: str) -> str:
    """Return a text without characters that a terminal would act on or cannot show."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


class _Table:
    def __init__(self, paths: Sequence[str], classes: Sequence[str]) -> None:
        self._widths = [max(map(len, map(_shown, ["image", *paths]))), max(map(len, map(_shown, ["class", *classes])))]
        self._begun = False

    def write(self, path: str, rows: Sequence[Row]) -> None:
        names = [*rows[0].terms]
        if not self._begun:
            self._begun = True
            self._line("image", "class", "probability", [name.replace("_", " ") for name in names], names)
        for place, row in enumerate(rows):
            values = [f"{value:.3f}" for value in row.terms.values()]
            self._line("" if place else _shown(path), _shown(row.name), f"{100 * row.probability:.1f}%", values, names)

    def _line(self, path: str, name: str, probability: str, values: Sequence[str], names: Sequence[str]) -> None:
        cells = [value.rjust(max(8, len(name))) for value, name in zip(values, names, strict=True)]
        print("  ".join([path.ljust(self._widths[0]), name.ljust(self._widths[1]), f"{probability:>11}", *cells]))

    def close(self) -> None:
        """Print nothing: a table has no end."""


class _Csv:
    def __init__(self, paths: Sequence[str], classes: Sequence[str]) -> None:
        self._writer = csv.writer(sys.stdout, lineterminator="\n")
        self._begun = False

    def write(self, path: str, rows: Sequence[Row]) -> None:
        if not self._begun:
            self._begun = True
            self._writer.writerow(["image", "rank", "class", "probability", *rows[0].terms])
        for rank, row in enumerate(rows, 1):
            numbers = [f"{value:.6g}" for value in (row.probability, *row.terms.values())]
            self._writer.writerow([_plain(path), rank, row.name, *numbers])

    def close(self) -> None:
        """Print nothing: a CSV file has no end."""


class _Json:
    def __init__(self, paths: Sequence[str], classes: Sequence[str]) -> None:
        self._before = "[\n"

    def write(self, path: str, rows: Sequence[Row]) -> None:
        found = [{"class": row.name, "probability": row.probability, **_finite(row.terms)} for row in rows]
        print(self._before, json.dumps({"image": path, "classes": found}), sep="", end="")
        self._before = ",\n"

    def close(self) -> None:
        print("[]" if self._before == "[\n" else "\n]")


def _finite(terms: dict[str, float]) -> dict[str, float | None]:
    """Return terms with null for infinity, which JSON lacks; a class with a target frequency of zero has it."""
    return {name: value if math.isfinite(value) else None for name, value in terms.items()}


def _plain(path: str) -> str:
    """Return a path whose name may not be UTF-8 as text that can be printed."""
    with contextlib.suppress(UnicodeEncodeError):
        path.encode()
        return path
    return _shown(path)


_WRITERS: dict[str, type[_Table] | type[_Csv] | type[_Json]] = {"table": _Table, "csv": _Csv, "json": _Json}
