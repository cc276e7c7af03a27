"""Names that newer releases of Python, NumPy, setuptools and PyTorch moved or removed, for scripts that use them."""

import functools
import importlib
import importlib.abc
import importlib.metadata
import importlib.resources
import inspect
import math
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch.optim import lr_scheduler

_NUMPY_NAMES = {
    "bool": bool,
    "complex": complex,
    "float": float,
    "int": int,
    "long": int,
    "object": object,
    "str": str,
    "unicode": str,
    "complex_": np.complex128,
    "float_": np.float64,
    "string_": np.bytes_,
    "unicode_": np.str_,
    "Inf": math.inf,
    "Infinity": math.inf,
    "NaN": math.nan,
    "infty": math.inf,
    "product": np.prod,
}


def restore() -> None:
    """Restore the names that are missing; existing ones stay."""
    _amp_names()
    for name, value in _NUMPY_NAMES.items():
        vars(np).setdefault(name, value)
    if not hasattr(re, "template"):  # removed in Python 3.13; some scripts import it, none uses it
        vars(re)["template"] = re.compile
    for cls in vars(lr_scheduler).values():
        if isinstance(cls, type) and issubclass(cls, lr_scheduler.LRScheduler) and "__init__" in vars(cls):
            _accept_verbose(cls)
    if not any(isinstance(finder, _MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(_MovedModules())  # last: an existing module is used


def _amp_names() -> None:
    """Restore ``torch.cuda.amp``'s classes, which are deprecated or removed, and silence their warnings."""
    if not hasattr(torch.cuda, "amp"):
        vars(torch.cuda)["amp"] = sys.modules["torch.cuda.amp"] = ModuleType("torch.cuda.amp")
    for name in ("GradScaler", "autocast"):
        if not hasattr(torch.cuda.amp, name):
            setattr(torch.cuda.amp, name, functools.partial(getattr(torch.amp, name), "cuda"))
    for name in ("cuda.amp", "jit"):
        warnings.filterwarnings("ignore", f".?torch.{name}.* is deprecated", FutureWarning)


def _accept_verbose(scheduler: Any) -> None:
    """Let a schedule of PyTorch ignore ``verbose``, its last argument before PyTorch 2.7."""
    init = scheduler.__init__
    parameters = inspect.signature(init, follow_wrapped=False).parameters
    kinds = [parameter.kind for parameter in parameters.values()]
    if "verbose" in parameters or inspect.Parameter.VAR_POSITIONAL in kinds:  # an older PyTorch, or done already
        return

    @functools.wraps(init)
    def wrapped(self: Any, *arguments: Any, **options: Any) -> None:
        options.pop("verbose", None)
        if len(arguments) == len(parameters):  # self is not among the arguments
            arguments = arguments[:-1]
        init(self, *arguments, **options)

    scheduler.__init__ = wrapped


# --- modules ------------------------------------------------------------------------------------------


def _pkg_resources() -> Mapping[str, Any]:
    """Return the names of setuptools' ``pkg_resources`` that scripts use; setuptools 82 removed the module."""
    import packaging.requirements
    import packaging.version

    metadata = importlib.metadata

    def require(*requirements: str) -> list[metadata.Distribution]:
        return [metadata.distribution(packaging.requirements.Requirement(text).name) for text in requirements]

    def iter_entry_points(group: str, name: str | None = None) -> Iterator[metadata.EntryPoint]:
        return (point for point in metadata.entry_points(group=group) if name in (None, point.name))

    def resource_filename(package: str, resource: str) -> str:
        return str(importlib.resources.files(package).joinpath(resource))

    def resource_string(package: str, resource: str) -> bytes:
        return importlib.resources.files(package).joinpath(resource).read_bytes()

    return {
        "DistributionNotFound": metadata.PackageNotFoundError,
        "get_distribution": metadata.distribution,
        "iter_entry_points": iter_entry_points,
        "packaging": packaging,
        "parse_version": packaging.version.parse,
        "require": require,
        "resource_filename": resource_filename,
        "resource_string": resource_string,
    }


def repair_dassl() -> None:
    """Let a real Dassl start without ``wilds``, which it imports for three of its datasets, and resume its schedules.

    Dassl's warm-up holds another schedule, whose checkpoint holds a copy of the optimizer: after a resume, its steps
    would change the learning rate of the copy.
    """
    _MODULES["wilds"] = lambda: {"get_dataset": _get_wilds}
    schedule: Any = lr_scheduler.LRScheduler
    load = schedule.load_state_dict

    @functools.wraps(load)
    def load_state_dict(self: Any, state_dict: Any) -> None:
        load(self, state_dict)
        for value in vars(self).values():
            if isinstance(value, schedule):
                value.optimizer = self.optimizer

    schedule.load_state_dict = load_state_dict


def _get_wilds(*_: object, **__: object) -> None:
    raise ValueError("the datasets of WILDS need their package: pip install --no-deps wilds==1.2.2")


def _torch_six() -> Mapping[str, Any]:
    import collections.abc

    return {
        "container_abcs": collections.abc,
        "inf": math.inf,
        "int_classes": int,
        "nan": math.nan,
        "string_classes": (str, bytes),
    }


_MODULES: dict[str, Callable[[], Mapping[str, Any]]] = {
    "pkg_resources": _pkg_resources,
    "torch._six": _torch_six,
    "torchvision.models.utils": lambda: {"load_state_dict_from_url": torch.hub.load_state_dict_from_url},
    "torchvision.transforms.functional_tensor": lambda: vars(
        importlib.import_module("torchvision.transforms._functional_tensor")
    ),
}


class _MovedModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """A finder of the modules that were removed; it is asked after all others."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, origin="unskew") if fullname in _MODULES else None

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        names = _MODULES[module.__name__]()
        vars(module).update({name: value for name, value in names.items() if not name.startswith("__")})
