"""An import finder that maps the module names of Dassl to this package's modules."""

import functools
import importlib
import importlib.abc
import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from unskew.dassl.imported_names import IMPORTED

# The release of Dassl that this package follows.
API_VERSION = "0.6.3"


def _table(ours: dict[str, str]) -> dict[str, tuple[str, ...]]:
    """Return ``{Dassl's dotted name: our modules}``.

    Each key lists a module of Dassl and then its submodules. Each value lists modules of this package; of two public
    names that are equal, the first counts.
    """
    table: dict[str, tuple[str, ...]] = {"dassl": ()}
    for names, modules in ours.items():
        parent, *submodules = names.split()
        sources = tuple(f"unskew.dassl.{module}" for module in modules.split())
        table |= {f"dassl.{name}": sources for name in (parent, *(f"{parent}.{name}" for name in submodules))}
    return table


MODULES = _table(
    {
        "config defaults": "config",
        "data data_manager": "data",
        "data.datasets build": "datasets",
        "data.datasets.base_dataset": "data",
        "data.datasets.da cifarstl domainnet mini_domainnet office31 office_home visda17": "datasets.da",
        "data.datasets.da.digit5": "datasets.digit5",
        "data.datasets.dg cifar_c digits_dg office_home_dg pacs vlcs": "datasets.dg",
        "data.datasets.dg.digit_single": "datasets.digit_single",
        "data.datasets.dg.wilds camelyon17 fmow iwildcam wilds_base": "datasets.wilds",
        "data.datasets.ssl cifar stl10 svhn": "datasets.ssl",
        "data.samplers": "samplers",
        "data.transforms transforms": "transforms",
        "data.transforms.autoaugment": "autoaugment",
        "data.transforms.randaugment": "image_operations",
        "engine build trainer": "engine",
        "engine.da adabn adda cdac dael dann m3sda mcd mme se source_only": "trainers.da",
        "engine.dg crossgrad daeldg ddaig domain_mix vanilla": "trainers.dg",
        "engine.ssl entmin fixmatch mean_teacher mixmatch sup_baseline": "trainers.ssl",
        "evaluation build evaluator": "evaluation",
        "metrics accuracy distance": "metrics",
        "modeling": "modeling.registries",
        "modeling.backbone backbone build": "modeling.registries modeling.backbones",
        "modeling.backbone.alexnet": "modeling.classic",
        "modeling.backbone.cnn_digit5_m3sda": "modeling.digits",
        "modeling.backbone.cnn_digitsdg": "modeling.digits",
        "modeling.backbone.cnn_digitsingle": "modeling.digits",
        "modeling.backbone.efficientnet model utils": "modeling.efficientnet modeling.efficientnet_parts",
        "modeling.backbone.preact_resnet18": "modeling.preact_resnet18",
        "modeling.backbone.resnet": "modeling.resnet",
        "modeling.backbone.resnet_dynamic": "modeling.resnet_dynamic",
        "modeling.backbone.vgg": "modeling.classic",
        "modeling.backbone.wide_resnet": "modeling.wide_resnet",
        "modeling.head build mlp": "modeling.registries modeling.heads",
        "modeling.network build ddaig_fcn": "modeling.registries modeling.ddaig_fcn",
        "modeling.ops": "ops",
        "modeling.ops.attention": "ops.dynamic",
        "modeling.ops.conv": "ops.dynamic",
        "modeling.ops.cross_entropy": "ops.basic",
        "modeling.ops.dsbn": "ops.norms",
        "modeling.ops.efdmix": "ops.styles",
        "modeling.ops.mixstyle": "ops.styles",
        "modeling.ops.mixup": "ops.basic",
        "modeling.ops.mmd": "ops.distances",
        "modeling.ops.optimal_transport": "ops.distances",
        "modeling.ops.reverse_grad": "ops.reversal",
        "modeling.ops.sequential2": "ops.basic",
        "modeling.ops.transnorm": "ops.norms",
        "modeling.ops.utils": "ops.basic",
        "optim lr_scheduler optimizer": "optim",
        "optim.radam": "radam",
        "utils logger meters registry tools torchtools": "utils",
    }
)


def _public_names(modules: tuple[str, ...]) -> dict[str, Any]:
    """Return the names in ``__all__`` of our modules with their objects."""
    names: dict[str, Any] = {}
    for module in map(importlib.import_module, modules):
        names = {name: getattr(module, name) for name in module.__all__} | names
    return names


def _other_name(module: str, name: str) -> Any:
    """Return an object that a module of Dassl imports or keeps private; called for names that it does not define.

    Raises:
        AttributeError: the name is unknown, is a submodule, or its package is not installed.
    """
    error = AttributeError(f"module '{module}' has no attribute '{name}'", name=name, obj=sys.modules.get(module))
    if f"{module}.{name}" in MODULES or (name.startswith("__") and name.endswith("__")):
        raise error
    for ours in map(importlib.import_module, MODULES[module]):
        if name.startswith("_") and hasattr(ours, name):
            return getattr(ours, name)
    source, _, attribute = IMPORTED.get(f"{module}.{name}", IMPORTED.get(name, "")).partition(":")
    if not source or source == module:
        raise error
    try:
        found = importlib.import_module(source)
    except ImportError:
        raise error from None
    return getattr(found, attribute) if attribute else found


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if fullname not in MODULES:
            return None
        has_submodules = any(name.startswith(f"{fullname}.") for name in MODULES)
        return ModuleSpec(fullname, self, origin="unskew", is_package=has_submodules)

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        package = module.__name__
        if package == "dassl":
            vars(module).update(
                __version__=API_VERSION, __author__="Kaiyang Zhou", __homepage__="https://kaiyangzhou.github.io/"
            )
            return
        names = _public_names(MODULES[package])
        for name in names:
            # Importing a submodule sets it as an attribute; the function of the same name (mixup) must replace it.
            if f"{package}.{name}" in MODULES:
                importlib.import_module(f"{package}.{name}")
        vars(module).update(names, __all__=list(names), __getattr__=functools.partial(_other_name, package))


def installed() -> str | None:
    """Return the file of an installed Dassl, or ``None``."""
    spec = importlib.util.find_spec("dassl")
    return None if spec is None else spec.origin  # a folder named dassl has no origin


def bundled(folder: str | Path) -> Path | None:
    """Return the folder to import the Dassl from that a codebase brings, such as ``Dassl.pytorch``, or ``None``.

    Args:
        folder: the folder of the script. Its subfolders are searched, then its parent, and in a Git repository the
            subfolders of its parent.
    """
    here = Path(folder).resolve()
    places = [here, *_subfolders(here), here.parent]
    if not (here / ".git").exists() and (here.parent / ".git").exists():
        places += _subfolders(here.parent)
    return next((place for place in places if os.path.isfile(place / "dassl" / "__init__.py")), None)


def _subfolders(folder: Path) -> list[Path]:
    return sorted(folder / name for name in os.listdir(folder) if os.path.isdir(folder / name))


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
