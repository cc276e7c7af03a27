"""An import finder that maps the module names of Dassl to this package's modules."""

import importlib
import importlib.abc
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

# The release of Dassl that this package follows.
API_VERSION = "0.6.3"


def _table(ours: dict[str, str]) -> dict[str, str]:
    """Return ``{Dassl's dotted name: our module}``; each key lists a module of Dassl and then its submodules."""
    table = {"dassl": ""}
    for names, module in ours.items():
        parent, *submodules = names.split()
        table |= {f"dassl.{name}": module for name in (parent, *(f"{parent}.{name}" for name in submodules))}
    return table


MODULES = _table(
    {
        "config defaults": "unskew.dassl.config",
        "data data_manager": "unskew.dassl.data",
        "data.datasets build": "unskew.dassl.datasets",
        "data.datasets.base_dataset": "unskew.dassl.data",
        "data.datasets.da cifarstl domainnet mini_domainnet office31 office_home visda17": "unskew.dassl.datasets.da",
        "data.datasets.da.digit5": "unskew.dassl.datasets.digit5",
        "data.datasets.dg cifar_c digits_dg office_home_dg pacs vlcs": "unskew.dassl.datasets.dg",
        "data.datasets.dg.digit_single": "unskew.dassl.datasets.digit_single",
        "data.datasets.dg.wilds camelyon17 fmow iwildcam wilds_base": "unskew.dassl.datasets.wilds",
        "data.datasets.ssl cifar stl10 svhn": "unskew.dassl.datasets.ssl",
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
    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if fullname not in MODULES:
            return None
        has_submodules = any(name.startswith(f"{fullname}.") for name in MODULES)
        return ModuleSpec(fullname, self, origin="unskew", is_package=has_submodules)

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        source = MODULES[module.__name__]
        if source:
            ours = importlib.import_module(source)
            vars(module).update({name: getattr(ours, name) for name in ours.__all__}, __all__=list(ours.__all__))
        else:
            vars(module)["__version__"] = API_VERSION


def installed() -> str | None:
    """Return the file of an installed Dassl, or ``None``."""
    spec = importlib.util.find_spec("dassl")
    return None if spec is None else spec.origin  # a folder named dassl has no origin


def install(force: bool = False) -> bool:
    """Let ``import dassl`` and its submodules import this engine from now on.

    Args:
        force: replace an installed Dassl, which is otherwise used.

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
