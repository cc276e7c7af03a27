"""Makes ``import dassl`` give this engine: a finder of modules whose names come from ours."""

import importlib
import importlib.abc
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

# The release of Dassl whose names and behaviour these are.
API_VERSION = "0.6.3"


def _table(ours: dict[str, str]) -> dict[str, str]:
    """``{Dassl's dotted name: our module}``; the words of a key name modules inside the first of them."""
    table = {"dassl": ""}
    for names, module in ours.items():
        top, *inside = names.split()
        table |= {f"dassl.{name}": module for name in (top, *(f"{top}.{part}" for part in inside))}
    return table


MODULES = _table(
    {
        "config defaults": "unskew.dassl.config",
        "data data_manager": "unskew.dassl.data",
        "data.datasets base_dataset build": "unskew.dassl.data",
        "data.samplers": "unskew.dassl.samplers",
        "data.transforms transforms": "unskew.dassl.transforms",
        "engine build trainer": "unskew.dassl.engine",
        "evaluation build evaluator": "unskew.dassl.evaluation",
        "metrics accuracy distance": "unskew.dassl.metrics",
        "modeling": "unskew.dassl.modeling",
        "modeling.backbone backbone build": "unskew.dassl.modeling",
        "modeling.head build mlp": "unskew.dassl.modeling",
        "modeling.network build": "unskew.dassl.modeling",
        "modeling.ops attention conv cross_entropy dsbn efdmix mixstyle mixup mmd optimal_transport reverse_grad "
        "sequential2 transnorm utils": "unskew.dassl.ops",
        "optim lr_scheduler optimizer radam": "unskew.dassl.optim",
        "utils logger meters registry tools torchtools": "unskew.dassl.utils",
    }
)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        if fullname not in MODULES:
            return None
        inside = any(name.startswith(f"{fullname}.") for name in MODULES)
        return ModuleSpec(fullname, self, origin="unskew", is_package=inside)

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        source = MODULES[module.__name__]
        if source:
            ours = importlib.import_module(source)
            module.__all__ = list(ours.__all__)
            vars(module).update((name, getattr(ours, name)) for name in ours.__all__)
        else:
            module.__version__ = API_VERSION


def installed() -> str | None:
    """The file of a real Dassl, if Python would find one."""
    spec = importlib.util.find_spec("dassl")
    return None if spec is None else spec.origin  # a mere folder of that name has no origin


def install(force: bool = False) -> bool:
    """Let ``import dassl`` and its submodules give this engine from now on.

    Args:
        force: even if a real Dassl is installed, which is otherwise left alone.

    Returns:
        Whether ``dassl`` is this engine now.
    """
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return True
    if not force and installed():
        return False
    for name in [name for name in sys.modules if name.split(".")[0] == "dassl"]:
        del sys.modules[name]
    sys.meta_path.insert(0, _Finder())
    return True
