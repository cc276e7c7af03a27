"""Name -> class tables. They import nothing of what registers in them: `discover` does."""

import difflib
import importlib
import pkgutil
from collections.abc import Iterable


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

    def register(self, name=None, obj=None, force: bool = False):
        """File an object; ``register()`` and ``register("name")`` are decorators.

        Raises:
            KeyError: the name is taken by another object (unless ``force``).
            ValueError: the module was imported by its bare name (``import trainers.x``), which
                would load it a second time.
        """
        if callable(name):  # Dassl's direct form: REGISTRY.register(obj)
            name, obj = None, name
        if obj is not None:
            return self._add(name or obj.__name__, obj, force)
        return lambda decorated: self._add(name or decorated.__name__, decorated, force)

    def _add(self, name: str, obj, force: bool):
        module = getattr(obj, "__module__", "")
        if module.split(".")[0] in ("trainers", "datasets") and not force:
            raise ValueError(f"'{module}' was imported by its bare name; import 'unskew.{module}' instead")
        if name in self._table and not force:
            raise KeyError(f"'{name}' is already in the registry '{self._name}' (by {self._table[name].__module__})")
        self._table[name] = obj
        return obj

    def get(self, name: str):
        """The object filed under ``name``; a ``ValueError`` that lists the near names if there is none."""
        if name not in self._table:
            raise ValueError(unknown_name(self._name.lower(), name, self._table))
        return self._table[name]

    def registered_names(self) -> list[str]:
        return list(self._table)

    def __contains__(self, name: str) -> bool:
        return name in self._table


def discover(package: str) -> list:
    """Import every module of ``package`` ("unskew.trainers"), so that its classes register.

    Returns:
        The modules, by name in order.
    """
    found = importlib.import_module(package)
    names = sorted(m.name for m in pkgutil.iter_modules(found.__path__) if not m.name.startswith("_"))
    return [importlib.import_module(f"{package}.{name}") for name in names]
