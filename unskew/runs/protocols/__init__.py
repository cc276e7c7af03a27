"""The field's protocols: few-shot, base to new, cross-dataset, domain generalisation, long tail.

`plan` returns the training runs of a protocol and the evaluations of each, `execute` does what is not finished, and
`text` returns the table.
"""

from unskew.runs.protocols.executing import execute, overview, text
from unskew.runs.protocols.plans import NAMES, Plan, plan

__all__ = ["NAMES", "Plan", "execute", "overview", "plan", "text"]
