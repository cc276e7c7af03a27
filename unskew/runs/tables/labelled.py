"""The number of labelled images that a method used, for columns and notes of tables."""

import statistics
from collections.abc import Iterable, Mapping, Sequence

from unskew.engine.run_dir import shots_label

HEADER = "labelled/class"

_VAL_SHOTS = 4  # CoOp's largest number of validation images per class


def per_class(row: Mapping) -> float | None:
    """Return the mean number of labelled images per class of a run, train and val; ``None`` for older runs."""
    number = row.get("labelled_images")
    return float(number) if isinstance(number, int | float) and number >= 0 else None


def mean(rows: Sequence[Mapping]) -> float | None:
    """Return the mean over runs; ``None`` if a run does not have the number."""
    found = [number for row in rows if (number := per_class(row)) is not None]
    return statistics.fmean(found) if found and len(found) == len(rows) else None


def text(number: float | None) -> str:
    """Return "20" or "19.5"; "" for no number."""
    return "" if number is None else f"{number:.1f}".removesuffix(".0")


def note(rows: Sequence[Mapping]) -> str:
    """Return a line on the methods that use more labelled images than the shots; "" if none does."""
    extra: dict[str, dict[int, set[float]]] = {}  # additional images by trainer and shots
    for row in rows:
        number = per_class(row)
        if row["shots"] > 0 and number is not None and number > row["shots"] + 0.05:
            extra.setdefault(row["trainer"], {}).setdefault(row["shots"], set()).add(round(number - row["shots"], 1))
    usual = [name for name, found in extra.items() if all(map(_is_usual, found, found.values()))]
    parts = [_sentence(usual, "min(k, 4)")] if usual else []
    for name, found in extra.items():
        if name not in usual:
            each = ", ".join(
                f"{' or '.join(text(number) for number in sorted(found[k]))} at {shots_label(k)}" for k in sorted(found)
            )
            parts.append(_sentence([name], each))
    return "; ".join(parts)


def _is_usual(shots: int, numbers: Iterable[float]) -> bool:
    """Return whether all numbers are CoOp's validation images per class, of which small classes lack some."""
    return all(abs(number - min(shots, _VAL_SHOTS)) <= 0.5 for number in numbers)


def _sentence(names: Sequence[str], number: str) -> str:
    return f"{', '.join(names)} also use{'' if len(names) > 1 else 's'} {number} validation images per class"
