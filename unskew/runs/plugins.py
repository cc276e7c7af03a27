"""Somebody's datasets and trainers, from a file or a module of theirs: ``--plugin FILE_OR_MODULE``.

They register when they are imported, by our names (`unskew.engine`) or by Dassl's (`dassl.engine`), which are ours.
"""

import contextlib
import copy
import importlib
import inspect
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from yacs.config import CfgNode

from unskew.utils.files import expand
from unskew.utils.registry import discover

logger = logging.getLogger("unskew")

# What config.py calls an axis: where its classes register.
_REGISTRIES = {
    "datasets": ("unskew.data.dataset", "DATASET_REGISTRY"),
    "trainers": ("unskew.engine.trainer", "TRAINER_REGISTRY"),
    "backbones": ("unskew.dassl.modeling", "BACKBONE_REGISTRY"),
    "evaluators": ("unskew.engine.evaluator", "EVALUATOR_REGISTRY"),
}


class _Place(NamedTuple):
    """How a plugin is imported: as module ``name``, with ``root`` first on ``sys.path``."""

    given: str
    name: str
    root: Path
    file: Path | None


@dataclass(frozen=True)
class Plugin:
    """What a plugin brought: new names by axis, and the functions that add its keys to a config."""

    place: _Place
    names: dict[str, tuple[str, ...]]
    defaults: dict[str, Callable]  # by the trainer's node
    extend_cfg: Callable | None

    def brings(self, wanted: Iterable[str]) -> bool:
        return any(name in names for names in self.names.values() for name in wanted)


_loaded: dict[str, Plugin] = {}  # by module

_lent: dict[str, set[str]] = {}  # by axis


def load(given: Sequence[str]) -> None:
    """Import each plugin once in this process, whatever it is called; ours are registered before.

    A class whose name one of ours has is left out, which a warning says.

    Args:
        given: paths of .py files or of packages' folders, or names of modules; the current folder is searched too.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there is no such module, or importing it fails; the plugin, the error and its line are named.
    """
    places = [_locate(one) for one in given]  # a file that is not there is said before the first is imported
    if places and not _loaded:
        from unskew.dassl import compat, finder  # these need torch, which a typo in a name need not wait for

        finder.install(force=True)  # a real Dassl would file their classes in its own registries
        compat.apply()
        discover("unskew.trainers")
        discover("unskew.datasets")
    for place in places:
        _check_name(place)
        if place.name not in _loaded:
            _loaded[place.name] = _import(place)


def names(axis: str) -> list[str]:
    """What the plugins so far have brought, or is lent: "datasets" or "trainers"; of "backbones" also Dassl's."""
    if axis == "backbones" and _loaded:
        from unskew.dassl.modeling import BACKBONE_REGISTRY

        return BACKBONE_REGISTRY.registered_names()
    brought = (name for plugin in _loaded.values() for name in plugin.names.get(axis, ()))
    return list(dict.fromkeys([*brought, *sorted(_lent.get(axis, ()))]))


def declare(axis: str, name: str) -> None:
    """Let configs name what is registered here without being a plugin's: a dataset that a real Dassl has loaded."""
    _lent.setdefault(axis, set()).add(name)


def extend(cfg: CfgNode, used: Sequence[str]) -> list[str]:
    """Add the plugins' keys: ``defaults()`` beside a trainer, as ours have, at ``TRAINER.<NAME>``, and
    ``extend_cfg(cfg)`` of the plugin itself, as Dassl's scripts have.

    Keys that exist keep their values, which trainers here read; where a plugin's differ, one warning says so.

    Args:
        used: the run's dataset and trainers.

    Returns:
        Keys to drop once the run's values are set: of plugins whose datasets and trainers are others. A sweep gives
        the values of all its trainers' keys to every run.

    Raises:
        ValueError: one of these functions fails.
    """
    unused, serves = [], {plugin.place.name: plugin.brings(used) for plugin in _loaded.values()}
    for plugin in sorted(_loaded.values(), key=lambda plugin: not serves[plugin.place.name]):
        added = _extend(cfg, plugin)
        only_keys = not any(plugin.names.values())  # they are for the other plugins
        if not serves[plugin.place.name] and not (only_keys and any(serves.values())):
            unused += added
    return unused


# --- importing --------------------------------------------------------------------------------------


def _locate(given: str) -> _Place:
    """A file of a package goes by its full dotted name, so that its relative imports work; any other by its stem."""
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


def _check_name(place: _Place) -> None:
    """Raise ``ValueError`` if its module, or a package around it, is loaded from another file."""
    if place.file is None:
        return
    parts = place.name.split(".")
    for n in range(1, len(parts) + 1):
        name = ".".join(parts[:n])
        file = place.root.joinpath(*parts[:n], "__init__.py") if n < len(parts) else place.file
        loaded = getattr(sys.modules.get(name), "__file__", None)
        if name in sys.modules and not (loaded and os.path.exists(loaded) and os.path.samefile(loaded, file)):
            raise ValueError(
                f"plugin '{place.given}' would be the module '{name}', but another of that name is loaded "
                f"({loaded or 'built in'}); rename it, or run the two apart"
            )


def _import(place: _Place) -> Plugin:
    registries = {axis: getattr(importlib.import_module(home), name) for axis, (home, name) in _REGISTRIES.items()}
    before = {axis: set(registry.registered_names()) for axis, registry in registries.items()}
    was_loaded = place.name in sys.modules
    if sys.path[:1] != [str(place.root)]:
        sys.path.insert(0, str(place.root))
    importlib.invalidate_caches()
    with contextlib.ExitStack() as stack:
        left_out = {axis: stack.enter_context(registry.keep_first()) for axis, registry in registries.items()}
        module = _run(lambda: importlib.import_module(place.name), place)
    _check_name(place)  # a package beside mine.py that is called mine comes first
    for axis, pairs in left_out.items():
        for name, cls in pairs:
            logger.warning(
                f"plugin '{place.given}': its {axis.removesuffix('s')} {name} (of {cls.__module__}) is left out, since "
                f"{registries[axis].get(name).__module__} has that name"
            )
    found = {
        axis: tuple(
            name
            for name in registry.registered_names()
            if name not in before[axis] or registry.get(name).__module__ == module.__name__
        )
        for axis, registry in registries.items()
    }
    homes = {name.upper(): sys.modules[registries["trainers"].get(name).__module__] for name in found["trainers"]}
    defaults = {node: _function(home, "defaults") for node, home in homes.items() if _function(home, "defaults")}
    extend_cfg = _function(module, "extend_cfg")
    if not (was_loaded or extend_cfg or any(left_out.values()) or any(found.values())):
        logger.warning(f"plugin '{place.given}' registers no dataset and no trainer")
    return Plugin(place, found, defaults, extend_cfg)


def _function(module, name: str) -> Callable | None:
    function = getattr(module, name, None)
    return function if inspect.isfunction(function) else None


def _run(function: Callable, place: _Place):
    """The result of a plugin's code, whose errors are said in one line."""
    try:
        return function()
    except (Exception, SystemExit) as error:  # theirs may raise anything, and a script without a main guard exits
        if isinstance(error, ModuleNotFoundError) and place.file is None and _is_part(error.name, place.name):
            raise ValueError(
                f"there is no module '{place.name}' here or among the installed ones; give its name, or a file .../x.py"
            ) from error
        text = error.msg if isinstance(error, SyntaxError) else str(error)  # its own text says the line too
        said = " ".join(f"{type(error).__name__}: {text}".split()).removesuffix(":")
        raise ValueError(f"plugin '{place.given}' fails: {said} ({_line_of(error, place.root)})") from error


def _is_part(name: str | None, module: str) -> bool:
    return bool(name) and f"{module}.".startswith(f"{name}.")


def _line_of(error: BaseException, root: Path) -> str:
    """ "mine.py, line 3": the last line of theirs that was reached."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    here = Path(__file__).parent.parent
    theirs = [f for f in frames if Path(f.filename).is_relative_to(root) and not Path(f.filename).is_relative_to(here)]
    last = (theirs or frames)[-1]
    return f"{last.filename}, line {last.lineno}"


# --- config keys ------------------------------------------------------------------------------------


def _extend(cfg: CfgNode, plugin: Plugin) -> list[str]:
    """Add a plugin's keys; returns the new ones, a node for all that is in it."""
    added, kept = [], []
    for node, defaults in plugin.defaults.items():
        tree = _run(lambda defaults=defaults: CfgNode(defaults()), plugin.place)
        _add(cfg, CfgNode({"TRAINER": {node: tree}}), added, kept)
    if plugin.extend_cfg:
        theirs = cfg.clone()
        _run(lambda: plugin.extend_cfg(theirs), plugin.place)
        _add(cfg, theirs, added, kept)
    if kept:
        from unskew.utils.logging import warn_once

        warn_once(f"plugin '{plugin.place.given}' sets keys that keep their values here: {', '.join(kept)}")
    return added


def _add(cfg: CfgNode, tree: CfgNode, added: list[str], kept: list[str], prefix: str = "") -> None:
    """Add what is missing; ``kept`` gets what is there with another value, as "OPTIM.LR 0.1 (here 0.002)"."""
    for key, value in tree.items():
        if key not in cfg:
            cfg[key] = copy.deepcopy(value)  # a node that all calls share would stay frozen after the first
            added.append(f"{prefix}{key}")
        elif isinstance(value, dict) and isinstance(cfg[key], dict):
            _add(cfg[key], value, added, kept, f"{prefix}{key}.")
        elif value != cfg[key]:
            kept.append(f"{prefix}{key} {value!r} (here {cfg[key]!r})")
