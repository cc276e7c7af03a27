"""Import of plugins: datasets and trainers in files or modules of the user, ``--plugin FILE_OR_MODULE``.

The classes register on import, by our names (`unskew.engine`) or by Dassl's (`dassl.engine`), which are ours. The
names and config keys that they bring are declared in `unskew.config.plugins`.
"""

import contextlib
import functools
import importlib
import inspect
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, TypeVar

from unskew.config import plugins as declared
from unskew.dassl import separation
from unskew.utils.files import expand
from unskew.utils.registry import Registry, discover

T = TypeVar("T")
logger = logging.getLogger("unskew")

# An axis of the config: the registry of its classes.
_REGISTRIES = {
    "datasets": ("unskew.data.dataset", "DATASET_REGISTRY"),
    "trainers": ("unskew.engine.trainer", "TRAINER_REGISTRY"),
    "backbones": ("unskew.dassl.modeling", "BACKBONE_REGISTRY"),
    "evaluators": ("unskew.engine.evaluator", "EVALUATOR_REGISTRY"),
}


class _Place(NamedTuple):
    """The module that a plugin is imported as, with ``root`` first on ``sys.path``."""

    given: str
    name: str
    root: Path
    file: Path | None


_loaded: set[str] = set()  # names of modules


def load(given: Sequence[str]) -> None:
    """Import each plugin once per process; our trainers and datasets are registered before the first one.

    A warning names each class that is left out because a class of ours has its name.

    Args:
        given: paths of .py files or of package folders, or names of modules; the current folder is searched too.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a module does not exist, or its import fails; the plugin, the error and its line are named.
    """
    places = [_locate(path) for path in given]  # missing files are reported before the first import
    if places and not _loaded:
        from unskew.dassl import compat, finder  # torch, which a mistyped name need not wait for

        finder.install(force=True)  # a real Dassl would register the classes in its own tables
        compat.apply()
        discover("unskew.trainers")
        discover("unskew.datasets")
        importlib.import_module("unskew.dassl.datasets")  # else they would count as the first plugin's
    for place in places:
        separation.separate(place.root)
        _report_bundled(place)
        _check_module(place)
        if place.name not in _loaded:
            declared.add(_import(place))
            _loaded.add(place.name)


def source_files(given: str) -> list[Path]:
    """Return the Python files of a plugin: its package, or its file with the files and packages beside it.

    An installed module, which is not in the current folder, has none.
    """
    place = _locate(given)
    top = place.root / place.name.partition(".")[0]
    if place.file is None and not (top.is_dir() or top.with_suffix(".py").is_file()):
        return []
    if top.is_dir():
        return sorted(top.rglob("*.py"))
    packages = [file.parent for file in place.root.glob("*/__init__.py")]
    return sorted([*place.root.glob("*.py"), *(file for package in packages for file in package.rglob("*.py"))])


# --- importing --------------------------------------------------------------------------------------


def _locate(given: str) -> _Place:
    """Return the module of a plugin: a package's file keeps its dotted name, so that relative imports work."""
    separated = any(mark in given for mark in (os.sep, os.altsep) if mark)
    if not separated and not given.endswith(".py") and given.strip("."):  # "." is a folder
        return _Place(given, given, Path.cwd(), None)
    file = Path(os.path.abspath(expand(given)))
    file = file / "__init__.py" if file.is_dir() else file
    if not file.is_file():
        raise FileNotFoundError(f"there is no plugin file '{file}'")
    parts, root = [file.stem], file.parent
    if file.suffix != ".py" or "." in file.stem:
        raise ValueError(f"a plugin is a file such as mine.py, a package's folder or a module's name; got '{given}'")
    while (root / "__init__.py").is_file():
        parts, root = [root.name, *parts], root.parent
    return _Place(given, ".".join(parts).removesuffix(".__init__"), root, file)


def _report_bundled(place: _Place) -> None:
    """Warn of a Dassl that comes with the plugin, whose trainers may need its modifications."""
    from unskew.dassl import finder

    if place.file and place.name not in _loaded and (bundled := finder.bundled(place.root)):
        logger.warning(
            f"plugin '{place.given}': the Dassl in '{bundled}', which may be modified, is not used; to use it, run the "
            "script of the plugin with python -m unskew.dassl --theirs"
        )


def _check_module(place: _Place) -> None:
    """Raise ``ValueError`` if the plugin's module, or a package around it, is loaded from another file."""
    if place.file is None:
        return
    parts = place.name.split(".")
    for n in range(1, len(parts) + 1):
        name = ".".join(parts[:n])
        file = place.root.joinpath(*parts[:n], "__init__.py") if n < len(parts) else place.file
        loaded = getattr(sys.modules.get(name), "__file__", None)
        if name in sys.modules and not (loaded and os.path.exists(loaded) and os.path.samefile(loaded, file)):
            raise ValueError(
                f"plugin '{place.given}' would be the module '{name}', but another module of that name is loaded "
                f"({loaded or 'built in'}); rename the plugin, or run the two separately"
            )


def _import(place: _Place) -> declared.Plugin:
    """Import a plugin and return the names and config keys that it adds."""
    registries: dict[str, Registry] = {
        axis: getattr(importlib.import_module(home), name) for axis, (home, name) in _REGISTRIES.items()
    }
    before = {axis: {name: table.get(name) for name in table.registered_names()} for axis, table in registries.items()}
    was_loaded = place.name in sys.modules
    module, left_out = _import_module(place, registries)
    new_names = {
        axis: tuple(
            name
            for name in registry.registered_names()
            if before[axis].get(name) is not registry.get(name) or registry.get(name).__module__ == module.__name__
        )
        for axis, registry in registries.items()
    }
    homes = {name.upper(): sys.modules[registries["trainers"].get(name).__module__] for name in new_names["trainers"]}
    bases = {name: _bases(registries["trainers"], name) for name in new_names["trainers"]}
    functions = {node: function for node, home in homes.items() if (function := _function(home, "defaults", place))}
    extend_cfg = _function(module, "extend_cfg", place)
    if not (was_loaded or extend_cfg or left_out or any(new_names.values())):
        logger.warning(f"plugin '{place.given}' registers no dataset and no trainer")
    for name in (*new_names["datasets"], *new_names["trainers"]):
        if (config := place.root / f"{name}.yaml").is_file():
            logger.warning(
                f"plugin '{place.given}': '{config}' is read only as --config-file; defaults() sets keys too"
            )
    declared.declare("backbones", *registries["backbones"].registered_names())  # Dassl's names, which plugins may use
    return declared.Plugin(place.given, new_names, bases, functions, extend_cfg)


def _bases(trainers: Registry, name: str) -> list[str]:
    """Return the registered names of a trainer's base classes, the nearest first."""
    classes = getattr(trainers.get(name), "__mro__", ())  # a function may be registered too
    return [base for cls in classes for base in trainers.names_of(cls) if base != name]


def _import_module(place: _Place, registries: dict[str, Registry]) -> tuple[ModuleType, bool]:
    """Import a plugin's module; also return whether classes were left out because their names were taken."""
    importlib.invalidate_caches()
    with contextlib.ExitStack() as stack:
        left_out = {axis: stack.enter_context(registry.keep_first()) for axis, registry in registries.items()}
        module = _call(place, separation.import_theirs, place.name)
    _check_module(place)  # a package `mine` beside mine.py comes first
    for axis, pairs in left_out.items():
        for name, cls in pairs:
            logger.warning(
                f"plugin '{place.given}': its {axis.removesuffix('s')} {name} (of {cls.__module__}) is left out, since "
                f"{registries[axis].get(name).__module__} has that name"
            )
    return module, any(left_out.values())


def _function(module: ModuleType, name: str, place: _Place) -> Callable | None:
    function = getattr(module, name, None)
    return functools.partial(_call, place, function) if inspect.isfunction(function) else None


def _call(place: _Place, function: Callable[..., T], *arguments: object) -> T:
    """Call a function of a plugin; its errors become a ``ValueError`` of one line."""
    try:
        return function(*arguments)
    except (Exception, SystemExit) as error:  # a script without a main guard exits
        if isinstance(error, ModuleNotFoundError) and place.file is None and _is_part(error.name, place.name):
            raise ValueError(
                f"no module '{place.name}' in this folder or installed; give a module's name, or a file .../x.py"
            ) from error
        if isinstance(error, ModuleNotFoundError) and (other := _shadowed(error.name or "", place.root)):
            raise ValueError(
                f"plugin '{place.given}' needs its own package '{other}', but another one of that name is loaded "
                f"({getattr(sys.modules[other], '__file__', None)}): load the plugin in a process of its own"
            ) from error
        text = error.msg if isinstance(error, SyntaxError) else str(error)  # str() repeats the line number
        message = " ".join(f"{type(error).__name__}: {text}".split()).removesuffix(":")
        raise ValueError(f"plugin '{place.given}' fails: {message} ({_line_of(error, place.root)})") from error


def _shadowed(missing: str, root: Path) -> str:
    """Return the top package of a missing module if it is beside the plugin, but loaded from elsewhere; else ""."""
    top = missing.partition(".")[0]
    file = getattr(sys.modules.get(top), "__file__", None)
    is_theirs = file is not None and Path(file).is_relative_to(root)
    return top if top in sys.modules and (root / top).is_dir() and not is_theirs else ""


def _is_part(name: str | None, module: str) -> bool:
    return bool(name) and f"{module}.".startswith(f"{name}.")


def _line_of(error: BaseException, root: Path) -> str:
    """Return "mine.py, line 3": the last line of the plugin that was reached."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    here = Path(__file__).parent.parent
    theirs = [f for f in frames if Path(f.filename).is_relative_to(root) and not Path(f.filename).is_relative_to(here)]
    last = (theirs or frames)[-1]
    return f"{last.filename}, line {last.lineno}"
