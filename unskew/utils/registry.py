"""Name -> class tables. They import nothing of what registers in them: `discover` does."""

import contextlib
import difflib
import importlib
import pkgutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import unskew


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """One line for an unknown ``name``: the near ones first, or all of them if none is near."""
    known = sorted(known)
    folded = {k.lower(): k for k in known}
    near = [folded[m] for m in difflib.get_close_matches(str(name).lower(), folded, n=3, cutoff=0.5)]
    hint = f"did you mean {' or '.join(near)}?" if near else "choose one of"
    return f"unknown {kind} '{name}'; {hint} (known: {', '.join(known)})"


class Registry:
    """A table of classes (or functions) by name, as in Dassl.

    Use ``@REGISTRY.register()`` to file a class under its own name, or ``@REGISTRY.register("name")``.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._table: dict[str, object] = {}
        self._left_out: list[tuple[str, object]] | None = None

    def register(self, name=None, obj=None, force: bool = False):
        """File an object; ``register()`` and ``register("name")`` are decorators.

        Raises:
            KeyError: the name is taken by another object (unless ``force``).
            ValueError: the module was imported by its bare name (``import trainers.x``), which
                would load it a second time.
        """
        if callable(name):  # Dassl's direct form: REGISTRY.register(obj), or (obj, force)
            name, obj, force = None, name, force or obj is True
        if obj is not None:
            return self._add(name or obj.__name__, obj, force)
        return lambda decorated: self._add(name or decorated.__name__, decorated, force)

    def _add(self, name: str, obj, force: bool):
        module = getattr(obj, "__module__", "")
        if _is_bare(module) and not force:
            raise ValueError(f"'{module}' was imported by its bare name; import 'unskew.{module}' instead")
        if name in self._table and not force:
            if self._left_out is not None:
                self._left_out.append((name, obj))
                return obj
            raise KeyError(f"'{name}' is already in the registry '{self._name}' (by {self._table[name].__module__})")
        self._table[name] = obj
        return obj

    @contextlib.contextmanager
    def keep_first(self) -> Iterator[list[tuple[str, object]]]:
        """Inside, what comes with a name that is taken is left out and listed, (name, object), in place of an error."""
        self._left_out = []
        try:
            yield self._left_out
        finally:
            self._left_out = None

    def get(self, name: str):
        """The object filed under ``name``; a ``ValueError`` that lists the near names if there is none."""
        if name not in self._table:
            raise ValueError(unknown_name(self._name.lower(), name, self._table))
        return self._table[name]

    def registered_names(self) -> list[str]:
        return list(self._table)

    def __contains__(self, name: str) -> bool:
        return name in self._table


def _is_bare(module: str) -> bool:
    """Whether it is a file of this project under a bare name; others have packages of the same names."""
    folder, file = module.partition(".")[0], getattr(sys.modules.get(module), "__file__", None)
    if folder not in ("trainers", "datasets") or file is None:
        return False
    return any(Path(file).resolve().is_relative_to(Path(place).resolve() / folder) for place in unskew.__path__)


def discover(package: str) -> list:
    """Import every module of ``package`` ("unskew.trainers"), so that its classes register.

    Returns:
        The modules, by name in order.
    """
    found = importlib.import_module(package)
    names = sorted(m.name for m in pkgutil.iter_modules(found.__path__) if not m.name.startswith("_"))
    return [importlib.import_module(f"{package}.{name}") for name in names]
