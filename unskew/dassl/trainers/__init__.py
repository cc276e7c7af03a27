"""Dassl's own trainers, written from their papers. `unskew.dassl.engine.build_trainer` imports them on demand.

A script's trainer keeps its name: if it registers a class of the same name first, ours is skipped.
"""

from unskew.engine.trainer import TRAINER_REGISTRY

with TRAINER_REGISTRY.keep_first():
    from unskew.dassl.trainers import da, dg, ssl

__all__ = ["da", "dg", "ssl"]
