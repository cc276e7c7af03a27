"""Keys of a config tree, written as "OPTIM.LR"."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from yacs.config import CfgNode

from unskew.utils.registry import suggestion

# How values of some types are written on the command line.
_FORMS: dict[type, str] = {list: ", such as \"['a', 'b']\"", tuple: ', such as "(1, 2)"'}


def flatten(tree: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a config tree as ("OPTIM.LR", value)."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def copied(tree: Any) -> Any:
    """Return a copy of a config tree, frozen or not, or of the content of a YAML file; much faster than `deepcopy`."""
    if isinstance(tree, CfgNode):
        node = copy.copy(tree)
        node.update({key: copied(value) for key, value in tree.items()})
        vars(node).update({key: copy.copy(value) for key, value in vars(tree).items()})  # whether it is frozen
        return node
    if isinstance(tree, dict):
        return {key: copied(value) for key, value in tree.items()}
    return [copied(value) for value in tree] if isinstance(tree, list) else tree


def node_of(cfg: CfgNode, key: str) -> tuple[CfgNode, str]:
    """Return the node that holds a key, and the key's last part; a ``KeyError`` without such a node."""
    *above, last = str(key).split(".")
    node = cfg
    for name in above:
        node = node[name]
        if not isinstance(node, CfgNode):
            raise KeyError(key)
    return node, last


def set_key(cfg: CfgNode, key: str, value: object, source: str) -> None:
    """Set one leaf, with yacs's type rules.

    Args:
        cfg: the tree, in place.
        key: the leaf, such as "OPTIM.LR".
        value: its new value, converted to the type of the old one.
        source: the origin of the value ("configs/trainers/GLA.yaml"), for the error message.

    Raises:
        ValueError: the key does not exist (the message suggests similar ones), or the type does not fit.
    """
    try:
        node, last = node_of(cfg, key)
        old = node[last]
    except KeyError:
        old = cfg
    if isinstance(old, dict):
        raise ValueError(f"{source}: {_unknown_key(str(key), dict(flatten(cfg)))}")
    if value is None and old is not None:
        raise ValueError(f"{source}: {key} takes a value of type {type(old).__name__}, got none")
    if isinstance(old, str):  # yacs would read "2024" as a number
        node[last] = str(value)
        return
    if isinstance(old, float) and isinstance(value, str | int):  # YAML reads 1e-5 as a string
        try:
            value = float(value)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{source}: {key} takes a number, got '{value!s:.80}'") from error
    try:
        cfg.merge_from_list([key, value])
    except (ValueError, RecursionError, MemoryError) as error:  # a text of many brackets is nested too deep to parse
        form = _FORMS.get(type(old), "")
        raise ValueError(
            f"{source}: {key} takes a value of type {type(old).__name__}{form}, got {value!r:.200}"
        ) from error


def merge(cfg: CfgNode, tree: Mapping, source: str) -> None:
    """Set all leaves of a tree, nested or with dotted keys; see `set_key`."""
    for key, value in flatten(tree):
        set_key(cfg, key, value, source)


def _unknown_key(key: str, leaves: Iterable[str]) -> str:
    """Suggest keys with the same last part first: people forget the node more often than the name."""
    same = [leaf for leaf in leaves if leaf.split(".")[-1] == key.split(".")[-1]]
    if same:
        return f"unknown config key '{key}'; did you mean {' or '.join(same[:3])}?"
    place = "the YAML files in configs/trainers" if key.startswith("TRAINER.") else "unskew/config/defaults.py"
    message = suggestion("config key", key, leaves)
    return f"{message}; see {place} for all keys".replace("?;", "? Or")
