"""Runs: training, sweeps, their results and plugins."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "launch": ["sweep"],
        "tables.records": ["summarize"],
        "tables": ["results"],
        "run": ["Run", "execute", "load_run", "train"],
    },
)
