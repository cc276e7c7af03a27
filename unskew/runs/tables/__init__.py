"""Tables of finished runs: their numbers, cells, intervals and comparisons, as text, LaTeX and records.

The modules of this package:

- ``metrics``: files of metrics, and a data frame of all runs; its functions are importable from the package.
- ``cells`` and ``cell_statistics``: one metric of one trainer in one setting, its interval and differences.
- ``comparison``, ``joint_comparison`` and ``outcomes``: the statistics, from the correctness of single predictions.
- ``text_tables``, ``protocol_tables`` and ``published_tables``: text and LaTeX.
- ``protocol_rows``, ``published``, ``labelled`` and ``records``: the rows, notes and records behind them.
"""

from unskew.engine.results import write_metrics
from unskew.runs.tables.metrics import (
    check_columns,
    collect,
    collect_both,
    evaluations,
    is_group,
    is_half,
    is_outdated,
    is_target,
    mean_and_deviation,
    read_metrics,
    results,
    select,
    source_folder,
    state_of_training,
)

__all__ = [
    "check_columns",
    "collect",
    "collect_both",
    "evaluations",
    "is_group",
    "is_half",
    "is_outdated",
    "is_target",
    "mean_and_deviation",
    "read_metrics",
    "results",
    "select",
    "source_folder",
    "state_of_training",
    "write_metrics",
]
