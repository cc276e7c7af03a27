"""Parsing of YAML whose aliases may not expand to more than a config can hold."""

from pathlib import Path
from typing import Any

import yaml

from unskew.utils.errors import DAMAGE, check_regular, format_error

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

MOST_LEAVES, MOST_BYTES, MOST_DEPTH = 100_000, 2**24, 100


def parse(path: Path) -> Any:
    """Return the content of a YAML file: plain values, lists and mappings.

    Raises:
        ValueError: the file is not YAML, is no regular file, or is larger than a config, aliases and merge keys
            included.
    """
    try:
        if check_regular(path) > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES} bytes")
        loader = _Loader(path.read_text(encoding="utf-8"))
        try:
            root = loader.get_single_node()  # an alias is the node that it names, not a copy
            if root is None:
                return None
            _check_leaves(root)
            return loader.construct_document(root)
        finally:
            loader.dispose()
    except OSError:
        raise
    except (*DAMAGE, yaml.YAMLError) as error:
        raise ValueError(f"'{path}' is not valid YAML: {format_error(error)}") from error


def _check_leaves(root: yaml.Node) -> None:
    """Raise ``ValueError`` for more than `MOST_LEAVES` leaves with all aliases expanded, or for too deep nesting.

    The leaves of a mapping include those that its merge key ``<<`` adds.
    """
    leaves: dict[int, int] = {}
    waiting: list[tuple[yaml.Node, bool]] = [(root, False)]
    above: set[int] = set()  # nodes that hold the current one
    while waiting:
        node, is_done = waiting.pop()
        parts = _parts(node)
        if is_done:
            above.discard(id(node))
            leaves[id(node)] = 1 + sum(leaves[id(part)] for part in parts)
            if leaves[id(node)] > MOST_LEAVES:
                raise ValueError(f"its aliases expand to more than {MOST_LEAVES:,} values")
        elif id(node) in above:
            raise ValueError("an alias is inside the value that it names")
        elif id(node) not in leaves:
            above.add(id(node))
            if len(above) > MOST_DEPTH:
                raise ValueError(f"its values are nested more than {MOST_DEPTH} deep")
            waiting.append((node, True))
            waiting += [(part, False) for part in parts]


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []
