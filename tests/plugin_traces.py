"""Plugins that are imported for one test only."""

import builtins
import contextlib
import importlib
import sys
from pathlib import Path

import pytest
import torch

import unskew.dassl.datasets  # noqa: F401  # registers Dassl's datasets in the table that stays
from unskew.config import plugins as declared
from unskew.dassl import separation
from unskew.data.dataset import DATASET_REGISTRY
from unskew.engine.evaluator import EVALUATOR_REGISTRY
from unskew.engine.trainer import TRAINER_REGISTRY
from unskew.runs import plugins
from unskew.utils.registry import discover

PACKAGES = ("datasets", "trainers", "clip")  # in CoOp's repository; an installed package may have such a name


@contextlib.contextmanager
def as_a_process(folder):
    """Remove all traces of the plugins of ``folder`` from the process, which other tests share."""
    discover("unskew.trainers")
    discover("unskew.datasets")
    installed = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in PACKAGES}
    before, safe = set(sys.modules), torch.serialization.get_safe_globals()
    with pytest.MonkeyPatch.context() as patch:
        for owner, name, empty in ((plugins, "_loaded", set()), (declared, "_plugins", []), (declared, "_names", {})):
            patch.setattr(owner, name, empty)
        for registry in (DATASET_REGISTRY, TRAINER_REGISTRY, EVALUATOR_REGISTRY):
            patch.setattr(registry, "_table", dict(registry._table))
            patch.setattr(registry, "_offered", set(registry._offered))
        for name in ("_roots", "_installed", "_hidden"):
            patch.setattr(separation, name, {})
        for owner, name in ((builtins, "__import__"), (importlib, "import_module")):
            patch.setattr(owner, name, getattr(owner, name))
        for name in ("path", "meta_path"):
            patch.setattr(sys, name, list(getattr(sys, name)))
        for owner, name in ((torch, "load"), (torch.cuda.amp, "GradScaler"), (torch.cuda.amp, "autocast")):
            patch.setattr(owner, name, getattr(owner, name))
        yield
        hidden = dict(separation._installed)
    separation._names.cache_clear()
    separation._is_code_of_theirs.cache_clear()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(safe)
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if name.split(".")[0] == "dassl" or Path(file).is_relative_to(folder):
            del sys.modules[name]
    sys.modules.update(hidden | installed)
