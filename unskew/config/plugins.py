"""Names and config keys that plugins have declared. Importing a plugin's file is `unskew.runs.plugins`."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from yacs.config import CfgNode

from unskew.utils.logging import warn_once


@dataclass(frozen=True)
class Plugin:
    """The names that a plugin registers and the functions that add its keys to a config.

    Attributes:
        source: the file or module as the user gave it.
        names: the new names by axis: "datasets", "trainers", "backbones" or "evaluators".
        bases: the registered names of the base classes of each trainer, the nearest first.
        defaults: functions that return the keys of ``TRAINER.<NODE>`` with their defaults, by node.
        extend_cfg: a function that adds keys to a config in place, as Dassl's scripts have.
    """

    source: str
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    bases: Mapping[str, Sequence[str]] = field(default_factory=dict)
    defaults: Mapping[str, Callable[[], Mapping]] = field(default_factory=dict)
    extend_cfg: Callable[[CfgNode], object] | None = None

    def provides(self, wanted: Iterable[str]) -> bool:
        """Return whether one of these names is the plugin's."""
        return any(name in names for names in self.names.values() for name in wanted)


_plugins: list[Plugin] = []
_names: dict[str, dict[str, None]] = {}  # by axis, in the order of declaration


def declare(axis: str, *new: str) -> None:
    """Let configs use names of an axis ("datasets", "trainers", "backbones") that have no YAML here."""
    _names.setdefault(axis, {}).update(dict.fromkeys(new))


def add(plugin: Plugin) -> None:
    """Declare the names and the keys of an imported plugin."""
    _plugins.append(plugin)
    for axis, new in plugin.names.items():
        declare(axis, *new)


def names(axis: str) -> list[str]:
    """Return the declared names of an axis."""
    return list(_names.get(axis, ()))


def bases(trainer: str) -> Sequence[str]:
    """Return the registered names of the base classes of a plugin's trainer, the nearest first."""
    return next((plugin.bases[trainer] for plugin in _plugins if trainer in plugin.bases), ())


def extend(cfg: CfgNode, used: Sequence[str]) -> list[str]:
    """Add the keys of all plugins to ``cfg``. Existing keys keep their values; one warning names those that differ.

    Args:
        cfg: the tree, in place.
        used: the names of the run's dataset and trainers.

    Returns:
        The keys of plugins that the run does not use, to be dropped once all values are set: a sweep passes the
        values of every trainer's keys to every run.

    Raises:
        ValueError: a plugin's function fails.
    """
    unused = []
    serving = [plugin for plugin in _plugins if plugin.provides(used)]
    for plugin in [*serving, *(plugin for plugin in _plugins if plugin not in serving)]:
        added = _extend(cfg, plugin)
        only_keys = not any(plugin.names.values())  # such keys belong to the other plugins
        if plugin not in serving and not (only_keys and serving):
            unused += added
    return unused


def _extend(cfg: CfgNode, plugin: Plugin) -> list[str]:
    """Add the keys of one plugin; return the new keys, a new node as one key."""
    added: list[str] = []
    kept: list[str] = []
    for node, defaults in plugin.defaults.items():
        keys = defaults()
        try:
            tree = CfgNode({"TRAINER": {node: dict(keys)}})
        except (AssertionError, TypeError, ValueError) as error:  # no mapping, or a value that YAML cannot hold
            reason = f"its defaults() must return config keys with plain values (got {keys!r:.80})"
            raise ValueError(f"plugin '{plugin.source}' fails: {reason}") from error
        _add_missing(cfg, tree, added, kept)
    if plugin.extend_cfg:
        extended = cfg.clone()
        plugin.extend_cfg(extended)
        _add_missing(cfg, extended, added, kept)
    if kept:
        warn_once(f"plugin '{plugin.source}' sets keys that keep their values here: {', '.join(kept)}")
    return added


def _add_missing(cfg: CfgNode, tree: CfgNode, added: list[str], kept: list[str], prefix: str = "") -> None:
    """Add missing keys; ``kept`` collects existing keys with another value, as "OPTIM.LR 0.1 (here 0.002)"."""
    for key, value in tree.items():
        if key not in cfg:
            cfg[key] = copy.deepcopy(value)  # a node that all configs share would stay frozen after the first
            added.append(f"{prefix}{key}")
        elif isinstance(value, dict) and isinstance(cfg[key], dict):
            _add_missing(cfg[key], value, added, kept, f"{prefix}{key}.")
        elif value != cfg[key]:
            kept.append(f"{prefix}{key} {value!r} (here {cfg[key]!r})")
