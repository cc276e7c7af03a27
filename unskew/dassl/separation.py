"""Packages of one name: a codebase's own ``open_clip/`` or ``datasets/``, and the installed package of that name.

Code in the codebase's folder imports the folder's package, and all other code, this program's included, the installed
one. Python keeps one module per name, so that each import of such a name first brings the modules of its side into
``sys.modules``. Between imports the codebase's modules are there, as pickle expects.
"""

import builtins
import contextlib
import functools
import importlib
import importlib.abc
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

_OURS = str(Path(__file__).resolve().parents[1])

_roots: dict[str, frozenset[str]] = {}  # names of the packages on both sides, by the codebase's folder
_installed: dict[str, ModuleType] = {}  # modules that are not in sys.modules now
_lock = threading.RLock()
_is_theirs = True  # the side whose modules are in sys.modules


def separate(folder: str | Path) -> list[str]:
    """Put a codebase's folder first on ``sys.path`` and separate its packages from installed ones of the same name.

    Returns:
        The names of the packages that the folder and the installation both have.
    """
    root = os.path.realpath(folder)
    if sys.path[:1] != [str(folder)]:
        sys.path.insert(0, str(folder))
    if root not in _roots:
        names = frozenset(name for name in _top_names(root) if _elsewhere(name, root) and _is_module(root, name))
        hidden = names.difference(*_roots.values())  # the others are of an earlier codebase
        _roots[root] = names
        if names:
            _hook()
            _hide(hidden)
    return sorted(_roots[root])


def import_theirs(name: str) -> ModuleType:
    """Import a module of the codebase whose folder was separated last."""
    with _side(theirs=True):
        return _import_module(name)


def _top_names(root: str) -> list[str]:
    """Return the names of the modules and folders in a folder."""
    names = set()
    for entry in os.listdir(root):
        name, suffix = os.path.splitext(entry)
        if name.isidentifier() and (suffix == ".py" or (not suffix and os.path.isdir(os.path.join(root, entry)))):
            names.add(name)
    return sorted(names)


def _is_module(root: str, name: str) -> bool:
    """Return whether code may import a name from a folder; a folder of .py files is a package too."""
    path = os.path.join(root, name)
    with contextlib.suppress(OSError):
        return os.path.isfile(f"{path}.py") or any(file.endswith(".py") for file in os.listdir(path))
    return False


def _elsewhere(name: str, root: str) -> bool:
    """Return whether a module can be imported from another place than the folder."""
    if name == "unskew" or name in sys.stdlib_module_names:
        return False
    if loaded := getattr(sys.modules.get(name), "__file__", None):
        return not any(_is_below(loaded, folder) for folder in (root, *_roots))
    with contextlib.suppress(ImportError, ValueError):
        spec = PathFinder.find_spec(name, _installed_path(root))
        return spec is not None and spec.origin is not None  # a folder without __init__.py has no origin
    return False


def _installed_path(*roots: str) -> list[str]:
    """Return ``sys.path`` without the folders of codebases."""
    return [entry for entry in sys.path if os.path.realpath(entry or os.curdir) not in {*roots, *_roots}]


def _hide(names: frozenset[str]) -> None:
    """Move the loaded modules of these names to the installed side."""
    for module in [module for module in list(sys.modules) if module.partition(".")[0] in names]:
        _installed[module] = sys.modules.pop(module)


# --- the sides ----------------------------------------------------------------------------------------


@functools.cache
def _names() -> frozenset[str]:
    return frozenset().union(*_roots.values())


def _is_below(file: str, root: str) -> bool:
    return os.path.realpath(file).startswith(root + os.sep)


@functools.cache
def _is_code_of_theirs(file: str) -> bool:
    if not os.path.isabs(file):  # the script; all imported modules have absolute paths
        return True
    path = os.path.realpath(file)
    installed = {"site-packages", "dist-packages"} & set(Path(path).parts)
    return not installed and not path.startswith(_OURS + os.sep) and any(_is_below(path, root) for root in _roots)


def _wants_theirs(importer: Mapping[str, Any] | None) -> bool:
    """Return the side of the module with these globals; code without a file keeps the present side."""
    file = (importer or {}).get("__file__")
    return _is_code_of_theirs(file) if isinstance(file, str) else _is_theirs


@contextlib.contextmanager
def _side(theirs: bool) -> Iterator[None]:
    """Bring the modules of one side into ``sys.modules``."""
    with _lock:
        before = _is_theirs
        _switch(theirs)
        try:
            yield
        finally:
            _switch(before)


_hidden: dict[str, ModuleType] = {}  # modules of the codebase while the installed side is in use


def _switch(theirs: bool) -> None:
    global _is_theirs
    if theirs == _is_theirs:
        return
    leaving, coming = (_hidden, _installed) if _is_theirs else (_installed, _hidden)
    names = _names()
    for module in [module for module in list(sys.modules) if module.partition(".")[0] in names]:
        leaving[module] = sys.modules.pop(module)
    sys.modules.update(coming)
    coming.clear()
    _is_theirs = theirs


# --- the hooks ----------------------------------------------------------------------------------------

_import: Callable[..., Any] = builtins.__import__
_import_module: Callable[..., ModuleType] = importlib.import_module


def _hook() -> None:
    """Let import statements and `importlib.import_module` choose the side by the module that imports."""
    _names.cache_clear()
    _is_code_of_theirs.cache_clear()
    if any(isinstance(finder, _Folders) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Folders())

    @functools.wraps(_import)
    def importing(
        name: str, globals: Any = None, locals: Any = None, fromlist: Sequence[str] = (), level: int = 0
    ) -> Any:
        package = (globals or {}).get("__package__") or (globals or {}).get("__name__") or ""
        top = (package if level else name).partition(".")[0]
        if top not in _names():
            return _import(name, globals, locals, fromlist, level)
        with _side(_wants_theirs(globals)):
            return _import(name, globals, locals, fromlist, level)

    @functools.wraps(_import_module)
    def import_module(name: str, package: str | None = None) -> ModuleType:
        top = (package or name if name.startswith(".") else name).partition(".")[0]
        if top not in _names():
            return _import_module(name, package)
        with _side(_wants_theirs(sys._getframe(1).f_globals)):
            return _import_module(name, package)

    builtins.__import__ = importing  # type: ignore[assignment]
    importlib.import_module = import_module


class _Folders(importlib.abc.MetaPathFinder):
    """A finder of the separated names in the folders of the present side.

    Python itself prefers an installed package to a codebase's folder without ``__init__.py``.
    """

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if fullname not in _names():
            return None
        if not _is_theirs:
            return PathFinder.find_spec(fullname, _installed_path())
        roots = [root for root, names in _roots.items() if fullname in names]
        return PathFinder.find_spec(fullname, roots[-1:])
