"""Tables of published results beside the accuracies of finished runs."""

from collections.abc import Mapping, Sequence

from unskew.engine.run_dir import shots_label
from unskew.runs import tables
from unskew.runs.tables import protocol_tables, published, text_tables
from unskew.runs.tables.cells import Cell, all_cells
from unskew.runs.tables.published import Result

NOTHING = (
    "no published result fits these runs: see configs/published.yaml for the datasets and backbones that have some"
)

Pair = tuple[Result, Cell | None]  # the cell is that of a trainer; None: the method has no run
HEADERS = ("method", "trainer", "shots", "this folder", "published", "difference", "source")


def fitting(rows: Sequence[Mapping], evaluations: Sequence[Mapping], intervals: bool = False) -> list[Pair]:
    """Return the published results that fit finished runs, each with the cell of a trainer.

    Args:
        rows: metrics of trained runs with their ``folder``.
        evaluations: metrics of evaluations with their ``folder``.
        intervals: compute the 95% intervals of the cells.
    """
    rows = [row for row in rows if "split" not in row]  # published accuracies are of the test images
    whole = [row for row in rows if not tables.is_half(row) and isinstance(row.get("accuracy"), int | float)]
    cells = all_cells(whole, ["accuracy"], intervals=intervals)[0] if whole else []
    halves = protocol_tables.base_to_new(rows, evaluations)
    if halves:
        cells += all_cells(halves, protocol_tables.columns(halves), intervals=intervals)[0]
    return published.compared(cells)


def grouped(found: Sequence[Pair]) -> dict[str, list[Pair]]:
    """Return results by the title of their table, in the order of the shots and then of the methods."""
    order = {name: place for place, name in enumerate(dict.fromkeys(result.method for result, _ in found))}
    groups: dict[str, list[Pair]] = {}
    for result, cell in sorted(found, key=lambda pair: (pair[0].shots < 0, pair[0].shots, order[pair[0].method])):
        names = result.datasets
        where = names[0] if len(names) == 1 else f"average over {len(names)} datasets"
        start = "" if result.metric == "accuracy" else "base to new, "
        groups.setdefault(f"{start}{where}, {result.backbone}", []).append((result, cell))
    return groups


def sources(found: Sequence[Pair]) -> dict[str, int]:
    """Return the sources of results with their numbers in square brackets."""
    names = dict.fromkeys(_source(result) for result, _ in found)
    return {name: number for number, name in enumerate(names, 1)}


def cells_of(result: Result, cell: Cell | None, numbers: Mapping[str, int], ci: bool = False) -> list[str]:
    """Return the texts of a line, in the order of `HEADERS`."""
    what = "zero-shot" if result.shots == 0 else shots_label(result.shots, _is_longtail(cell))
    deviation = "" if result.deviation is None else f" ± {result.deviation:.2f}"
    return [
        result.method,
        cell.trainer if cell else "",
        what if result.metric == "accuracy" else f"{what}, {result.metric}",
        text_tables.cell_text(cell, ci) if cell else "",
        f"{result.mean:.2f}{deviation}",
        f"{cell.mean - result.mean:+.1f}" if cell else "",
        f"[{numbers[_source(result)]}]{' second-hand' if result.second_hand else ''}",
    ]


def text(found: Sequence[Pair], style: str = "github", ci: bool = False) -> str:
    """Return tables of published results beside those of the runs, with a list of the sources.

    Args:
        found: the results, see `fitting`.
        style: a table format of tabulate; in LaTeX, titles and notes are comments.
        ci: show 95% intervals of the runs' accuracies instead of standard deviations.
    """
    from tabulate import tabulate

    start = "% " if style.startswith("latex") else ""
    if not found:
        return start + NOTHING
    numbers = sources(found)
    parts = []
    for title, pairs in grouped(found).items():
        lines = [cells_of(*pair, numbers, ci) for pair in pairs]
        grid = tabulate(lines, headers=HEADERS, tablefmt=style, disable_numparse=True)
        parts.append(f"{start}{title}: accuracy (%) beside published results\n\n{grid}")
    listed = "\n".join(f"{start}[{number}] {name}" for name, number in numbers.items())
    return "\n\n".join([*parts, listed])


def record(result: Result, cell: Cell | None) -> dict:
    """Return the numbers of a line by name, for files; ``None`` for a number that is not known."""
    own = cell.record() if cell else {}
    return {
        "protocol": "few_shot" if result.metric == "accuracy" else published.BASE_TO_NEW,
        "dataset": result.datasets[0] if len(result.datasets) == 1 else "average",
        "datasets": ", ".join(result.datasets),
        "backbone": result.backbone,
        "shots": result.shots,
        "method": result.method,
        "trainer": cell.trainer if cell else None,
        "metric": result.metric,
        **{name: own.get(name) for name in ("mean", "std", "low", "high", "seeds")},
        "published": result.mean,
        "published_std": result.deviation,
        "published_seeds": result.seeds,
        "difference": cell.mean - result.mean if cell else None,
        "second_hand": result.second_hand,
        "source": str(result.source),
    }


def _source(result: Result) -> str:
    """Return the text of a source, with the number of seeds."""
    seeds = f"; {result.seeds} seed{'s' if result.seeds > 1 else ''}" if result.seeds else ""
    return f"{result.source}{seeds}"


def _is_longtail(cell: Cell | None) -> bool:
    return bool(cell and cell.rows[0].get("longtail"))
