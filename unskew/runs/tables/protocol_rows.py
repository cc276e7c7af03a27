"""Rows of the protocols that test a trained run elsewhere: its numbers, and the evaluations that they come from."""

from collections.abc import Mapping

HARMONIC = "H"  # the metric of a `ProtocolRow` that is the harmonic mean of the accuracies "base" and "new"


class ProtocolRow(dict):
    """The numbers of a trained run and of its evaluations, by name, like the metrics of one run.

    Attributes:
        protocol: the protocol's name, such as "base_to_new".
        sources: for each number, the metrics of the runs and evaluations that it was measured in.
    """

    def __init__(self, numbers: Mapping, protocol: str, sources: Mapping[str, tuple[Mapping, ...]]) -> None:
        super().__init__(numbers)
        self.protocol, self.sources = protocol, dict(sources)


def sources(row: Mapping, metric: str) -> tuple[Mapping, ...]:
    """Return the metrics of the runs and evaluations in which a number was measured."""
    return row.sources[metric] if isinstance(row, ProtocolRow) else (row,)


def harmonic_mean(base: float, new: float) -> float:
    """Return the harmonic mean of two accuracies, 0 if both are 0."""
    return 2 * base * new / (base + new) if base + new else 0.0


def transfer_of(row: Mapping) -> str:
    """Return how an evaluation carried fitted terms over to its classes, such as "by class name"; "" if it did not."""
    kind = row.get("transfer")
    return kind if isinstance(kind, str) else ""
