"""The YAML files below ``configs/``: their names, their content and the facts that trainers declare in them."""

import functools
import os
from collections.abc import Container
from pathlib import Path

import unskew
from unskew.config import plugins
from unskew.config._keys import copied, flatten
from unskew.config._yaml import parse
from unskew.utils.errors import check_regular
from unskew.utils.registry import folded, unknown_name


def folder_of(axis: str) -> Path:
    """Return `configs/<axis>`, in a source checkout or inside the installed package."""
    for place in unskew.__path__:
        folder = Path(place) / "configs" / axis
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"the folder configs/{axis} is missing from the installation; install unskew again")


def names(axis: str) -> list[str]:
    """Return the stems of the YAML files of one axis: "datasets", "backbones" or "trainers"."""
    return sorted(name.removesuffix(".yaml") for name in os.listdir(folder_of(axis)) if name.endswith(".yaml"))


def list_datasets() -> list[str]:
    """Return the names of all datasets, in alphabetical order.

    Examples:
        >>> import unskew
        >>> "digits" in unskew.list_datasets()
        True
    """
    return sorted({*names("datasets"), *plugins.names("datasets")})


def list_trainers() -> list[str]:
    """Return the names of all trainers, in alphabetical order.

    Examples:
        >>> import unskew
        >>> unskew.list_trainers()[:3]
        ['BCTS', 'Backdoor', 'BackdoorPaper']
    """
    return sorted({*names("trainers"), *plugins.names("trainers")})


def list_backbones() -> list[str]:
    """Return the names of all configured backbones, in alphabetical order. Others go by "ARCH@TAG" of open_clip.

    Examples:
        >>> import unskew
        >>> "ViT-B/16" in unskew.list_backbones()
        True
    """
    return sorted({*_backbone_names(), *plugins.names("backbones")})


def check_name(axis: str, name: str) -> str:
    """Return the spelling of a name that is a YAML's or a plugin's, in upper or lower case and with - for /.

    Raises:
        ValueError: the name is unknown; the message suggests similar ones.
    """
    known = [*(_backbone_names() if axis == "backbones" else names(axis)), *plugins.names(axis)]
    similar = [entry for entry in known if folded(entry) == folded(name)]
    if name in known or len(similar) == 1:
        return name if name in known else similar[0]
    module = folder_of(axis).parents[1] / axis / f"{str(name).lower()}.py"
    if module.is_file() and not similar:
        raise ValueError(f"'{module}' needs a config: add configs/{axis}/{name}.yaml, which may be empty")
    hint = "" if axis == "backbones" or plugins.names(axis) else "; a plugin's name needs --plugin"
    raise ValueError(f"{unknown_name(axis.removesuffix('s'), name, known)}{hint}")


def _backbone_names() -> list[str]:
    """Return the names of the configured backbones: "ViT-B/16" for ViT-B-16.yaml."""
    trees = _read_all("backbones")
    return [str(dict(flatten(tree)).get("MODEL.BACKBONE.NAME", stem)) for stem, tree in trees.items()]


# Prefixes of models on the Hugging Face hub, and of folders that open_clip saved.
SCHEMES = ("hf-hub:", "local-dir:")


def check_backbone(name: str) -> str:
    """Return the spelling of a configured backbone or a plugin's: "ViT-B/16" for "vit-b-16".

    "ARCH@TAG" and models of open_clip's schemes ("hf-hub:ID", "local-dir:FOLDER") are returned as they are.

    Raises:
        ValueError: the name is unknown (the message suggests similar ones), or a scheme has nothing behind it.
    """
    if name in SCHEMES:
        raise ValueError(f"backbone '{name}' names no model: give hf-hub:ORGANISATION/NAME or local-dir:FOLDER")
    return name if "@" in name or name.startswith(SCHEMES) else check_name("backbones", name)


def read_yaml(path: Path) -> dict:
    """Read the mapping in a YAML file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not YAML, or holds no mapping.
    """
    return copied(_read(Path(path)))


def _read(path: Path) -> dict:
    """Read a file as `read_yaml` does; the mapping is that of all callers, which must not change it."""
    try:
        check_regular(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no config file '{path}'") from None
    state = os.stat(path)
    return _parse(path, state.st_mtime_ns, state.st_size)


def _read_all(axis: str) -> dict[str, dict]:
    """Read all YAML files of an axis, by their stems; the mappings are those of all callers, as in `_read`."""
    folder = folder_of(axis)
    return {name: _read(folder / f"{name}.yaml") for name in names(axis)}


@functools.lru_cache(maxsize=256)
def _parse(path: Path, _mtime: int, _size: int) -> dict:
    content = parse(path)
    content = {} if content is None else content
    _check_kind(f"'{path}'", content, dict)
    for name in ("TRAINER", "OVERRIDES"):
        _check_kind(f"'{path}': {name}", content.get(name) or {}, dict)
    for trainer, keys in (content.get("OVERRIDES") or {}).items():
        _check_kind(f"'{path}': OVERRIDES.{trainer}", keys, dict)
    node = path.stem.upper()
    _check_kind(f"'{path}': TRAINER.{node}", (content.get("TRAINER") or {}).get(node) or {}, dict)
    _check_schedules(f"'{path}': SCHEDULES", content.get("SCHEDULES") or [])
    return content


def _check_kind(place: str, value: object, kind: type[dict] | type[list]) -> None:
    if not isinstance(value, kind):
        expected = "a list" if kind is list else "a mapping of keys to values"
        raise ValueError(f"{place} must be {expected}, got {value!r:.80}")


def _check_schedules(place: str, rows: list) -> None:
    _check_kind(place, rows, list)
    for number, row in enumerate(rows, 1):
        _check_kind(f"{place}, row {number}", row, dict)
        for key in row.keys() - {"shots", "datasets", "set"}:
            raise ValueError(f"{place}, row {number}: {unknown_name('key', key, ('shots', 'datasets', 'set'))}")
        for key, kind in (("shots", list), ("datasets", list), ("set", dict)):
            if key in row or key == "set":
                _check_kind(f"{place}, row {number}: '{key}'", row.get(key), kind)


def read_layer(axis: str, name: str) -> dict:
    """Read the YAML of a name; a plugin's name has none and gives an empty mapping."""
    return read_yaml(folder_of(axis) / f"{name}.yaml") if name in names(axis) else {}


def dataset_layer(dataset: str) -> tuple[str, dict, str]:
    """Return a dataset's name, the content of its YAML and the path of that YAML.

    Args:
        dataset: a name, or the path of a YAML. The file's ``DATASET.NAME`` is the dataset if a dataset has that name;
            otherwise its stem is, because CoOp's ``eurosat.yaml`` names its dataset "EuroSAT".
    """
    if not dataset.endswith((".yaml", ".yml")):
        dataset = check_name("datasets", dataset)
        return dataset, read_layer("datasets", dataset), f"configs/datasets/{dataset}.yaml"
    tree, stem = read_yaml(Path(dataset)), Path(dataset).stem
    name = str(dict(flatten(tree)).get("DATASET.NAME") or stem)
    known = [*names("datasets"), *plugins.names("datasets")]
    return check_name("datasets", stem if stem in known and name not in known else name), tree, dataset


def backbone_layer(name: str) -> dict[str, object]:
    """Return the config leaves of a backbone.

    ``MODEL.BACKBONE.NAME`` has the spelling of the backbone's YAML if it has one: "ViT-B/16" for "ViT-B-16".
    """
    name = check_backbone(name)
    return {"MODEL.BACKBONE.NAME": name, **dict(flatten(read_layer("backbones", name.replace("/", "-"))))}


# --- facts about trainers ---------------------------------------------------------------------------


def trainer_tree(name: str) -> dict:
    """Read what a trainer's YAML has below TRAINER; callers must not change it."""
    tree = _read(folder_of("trainers") / f"{name}.yaml") if name in names("trainers") else {}
    return tree.get("TRAINER") or {}


def trainer_nodes() -> dict[str, dict]:
    """Return the keys of each ``TRAINER.<X>`` with their defaults, read from the YAML whose stem is the class X.

    A YAML with ``TRAINER.CLASS`` configures another class under a name of its own and defines no keys. Callers must
    not change the result.
    """
    files = _read_all("trainers")
    trees = {name.upper(): files[name].get("TRAINER") or {} for name in sorted(files, key=str.lower)}
    return {node: tree[node] for node, tree in trees.items() if tree.get(node) and "CLASS" not in tree}


def stem_of(trainer: str) -> str:
    """Return the stem of a trainer's YAML; a plugin's trainer has that of its nearest base class."""
    return next((name for name in (trainer, *plugins.bases(trainer)) if name in names("trainers")), trainer)


def trainer_layer(trainer: str) -> dict:
    """Read a trainer's YAML without the keys of its class's own node, which are defaults (see `trainer_nodes`)."""
    stem = stem_of(trainer)
    tree = read_layer("trainers", stem)
    if tree.get("TRAINER") and "CLASS" not in tree["TRAINER"]:
        tree["TRAINER"].pop(stem.upper(), None)
    return tree


def class_name(trainer: str) -> str:
    """Return the registered class of a trainer config: its ``TRAINER.CLASS``, or its own name without one."""
    return str(trainer_tree(trainer).get("CLASS", trainer))


def trainer_node(trainer: str, nodes: Container[str]) -> str:
    """Return the name of the node below TRAINER that a trainer reads: that of its class or of its nearest base class.

    Args:
        trainer: the trainer's name.
        nodes: the names of all nodes.
    """
    cls = class_name(trainer)
    return next((name.upper() for name in (cls, *plugins.bases(cls)) if name.upper() in nodes), cls.upper())
