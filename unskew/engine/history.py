"""The numbers of each epoch of a training, kept in the file ``history.csv`` of its folder."""

import csv
import io
import math
from pathlib import Path

from unskew.utils.errors import DAMAGE
from unskew.utils.files import write_atomically

NAME = "history.csv"

COLUMNS = ("epoch", "loss", "accuracy", "lr", "val_score")


class History:
    """A table with one row for each epoch, counted from 1.

    ``loss`` and ``accuracy`` (in percent) are means over the training batches of the epoch, ``lr`` is the learning rate
    at its start, and ``val_score`` is the score by which "best_val" selects an epoch. A number that a trainer does not
    report is missing.
    """

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, float]] = {}

    def record(self, epoch: int, **values: float) -> None:
        """Add numbers to the row of an epoch; a number that is not finite stays missing."""
        numbers = {name: float(value) for name, value in values.items()}
        self.rows.setdefault(epoch, {}).update({name: x for name, x in numbers.items() if math.isfinite(x)})

    def write(self, folder: str | Path) -> None:
        """Write the file into a folder, unless there are no rows."""
        if not self.rows:
            return
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(COLUMNS)
        for epoch, values in sorted(self.rows.items()):
            table.writerow([epoch, *(f"{values[name]:.6g}" if name in values else "" for name in COLUMNS[1:])])
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_atomically(Path(folder) / NAME, text.getvalue())

    @classmethod
    def read(cls, folder: str | Path, epochs: int) -> "History":
        """Return the rows of the first epochs in a folder; none if its file is missing or damaged.

        A killed run may have written rows of later epochs, which its successor trains again.
        """
        history, path = cls(), Path(folder) / NAME
        if not path.is_file():
            return history
        try:
            with path.open(encoding="utf-8", newline="") as file:
                rows = {int(row["epoch"]): _numbers(row) for row in csv.DictReader(file)}
        except DAMAGE:
            return history
        history.rows = {epoch: row for epoch, row in rows.items() if epoch <= epochs}
        return history


def _numbers(row: dict[str, str]) -> dict[str, float]:
    return {name: float(row[name]) for name in COLUMNS[1:] if row[name]}
