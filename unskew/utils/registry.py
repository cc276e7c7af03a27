"""Tables of classes and functions by name.

A table imports the module of a missing name, and `discover` imports all modules of a package, so that their classes
register.
"""

import contextlib
import difflib
import importlib
import pkgutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

import unskew

Entry = TypeVar("Entry")


def folded(name: str) -> str:
    """Return a name in lower case with - for /, the form in which its spellings are equal."""
    return str(name).replace("/", "-").lower()


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the error message for an unknown name: it suggests similar names and lists the known ones."""
    known = sorted(known)
    message, names = suggestion(kind, name, known), ", ".join(known)
    return f"{message} (known: {names})" if message.endswith("?") else f"{message}; choose one of {names}"


def suggestion(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the error message for an unknown name with similar names, if there are any."""
    by_lower_case = {k.lower(): k for k in known}
    matches = difflib.get_close_matches(str(name).lower(), by_lower_case, n=3, cutoff=0.5)
    hint = " or ".join(by_lower_case[match] for match in matches)
    return f"unknown {kind} '{name}'" + (f"; did you mean {hint}?" if hint else "")


class Registry(Generic[Entry]):
    """A table of classes (or functions) by name, as in Dassl.

    ``@REGISTRY.register()`` files a class under its own name, ``@REGISTRY.register("name")`` under another one.
    ``Registry[type[Trainer]]("TRAINER")`` tells the type checker what `get` returns.

    Args:
        name: for error messages.
        package: the package that `get` imports from when a name is missing, such as "unskew.trainers".
    """

    def __init__(self, name: str, package: str = "") -> None:
        self._name = name
        self._package = package
        self._table: dict[str, Entry] = {}
        self._offered: set[str] = set()
        self._skipped: list[tuple[str, Entry]] | None = None

    def register(self, name: Any = None, obj: Any = None, force: bool = False) -> Any:
        """File an object; without one, return a decorator that does.

        Args:
            name: the entry's name; default its ``__name__``. Dassl's form ``register(obj, force)`` works too.
            obj: the entry.
            force: replace an entry of the same name.

        Raises:
            KeyError: another object has this name.
            ValueError: the module was imported by its bare name (``import trainers.x``), which would load it twice.
        """
        if callable(name):
            name, obj, force = None, name, force or obj is True
        if obj is not None:
            return self._add(name or obj.__name__, obj, force)
        return lambda decorated: self._add(name or decorated.__name__, decorated, force)

    def _add(self, name: str, obj: Entry, force: bool) -> Entry:
        module = getattr(obj, "__module__", "")
        if _is_bare(module) and not force:
            raise ValueError(f"'{module}' was imported by its bare name; import 'unskew.{module}' instead")
        if name in self._table and not (force or name in self._offered):
            if self._skipped is not None:
                self._skipped.append((name, obj))
                return obj
            raise KeyError(f"'{name}' is already in the registry '{self._name}' (by {self._table[name].__module__})")
        self._table[name] = obj
        self._offered.discard(name)
        return obj

    def offer(self, obj: Entry) -> None:
        """File an object under its ``__name__`` if the name is free; a later `register` of the name replaces it."""
        name = obj.__name__  # type: ignore[attr-defined]
        if name not in self._table:
            self._table[name] = obj
            self._offered.add(name)

    @contextlib.contextmanager
    def keep_first(self) -> Iterator[list[tuple[str, Entry]]]:
        """Inside this context, skip an object whose name is taken instead of raising; yields the skipped ones."""
        outer, self._skipped = self._skipped, []
        try:
            yield self._skipped
        finally:
            self._skipped = outer

    def get(self, name: str) -> Entry:
        """Return the entry of a name.

        Raises:
            ValueError: the name is unknown; the message suggests similar ones.
        """
        if name not in self._table and self._package:
            with self.keep_first():  # a script may have registered classes of the same names
                self._import(name)
        if name not in self._table:
            raise ValueError(unknown_name(self._name.lower(), name, self._table))
        return self._table[name]

    def _import(self, name: str) -> None:
        """Import the module of a name, "coop" for "CoOp", and all modules if that one does not register it."""
        module = str(name).lower()
        if module in _modules(self._package):
            importlib.import_module(f"{self._package}.{module}")
        if name not in self._table:
            discover(self._package)

    def registered_names(self) -> list[str]:
        """Return all names in the order of their registration."""
        return list(self._table)

    def names_of(self, obj: object) -> list[str]:
        """Return the names under which an object is filed."""
        return [name for name, filed in self._table.items() if filed is obj]

    def __contains__(self, name: str) -> bool:
        return name in self._table


def _is_bare(module: str) -> bool:
    """Return whether a module is a file of this project that was imported without the prefix ``unskew.``."""
    folder, file = module.partition(".")[0], getattr(sys.modules.get(module), "__file__", None)
    if folder not in ("trainers", "datasets") or file is None:  # other projects have packages of these names
        return False
    return any(Path(file).resolve().is_relative_to(Path(place).resolve() / folder) for place in unskew.__path__)


def discover(package: str) -> list[ModuleType]:
    """Import every module of a package, such as "unskew.trainers", so that its classes register.

    Returns:
        The modules, sorted by name.
    """
    return [importlib.import_module(f"{package}.{name}") for name in _modules(package)]


def _modules(package: str) -> list[str]:
    path = importlib.import_module(package).__path__
    return sorted(module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_"))
