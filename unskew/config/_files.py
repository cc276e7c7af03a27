"""The YAML files below ``configs/``: their names, their content and the facts that trainers declare in them."""

import copy
import functools
from pathlib import Path

import yaml

import unskew
from unskew.config import plugins
from unskew.config._keys import flatten
from unskew.utils.registry import unknown_name

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def folder_of(axis: str) -> Path:
    """Return `configs/<axis>`, in a source checkout or inside the installed package."""
    for place in unskew.__path__:
        folder = Path(place) / "configs" / axis
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"the folder configs/{axis} is missing from the installation; install unskew again")


def names(axis: str) -> list[str]:
    """Return the stems of the YAML files of one axis: "datasets", "backbones" or "trainers"."""
    return sorted(path.stem for path in folder_of(axis).glob("*.yaml"))


def list_datasets() -> list[str]:
    """Return the names of all datasets, in alphabetical order.

    Example:
        >>> import unskew
        >>> "digits" in unskew.list_datasets()
        True
    """
    return sorted({*names("datasets"), *plugins.names("datasets")})


def list_trainers() -> list[str]:
    """Return the names of all trainers, in alphabetical order.

    Example:
        >>> import unskew
        >>> unskew.list_trainers()[:3]
        ['Backdoor', 'CLIPAdapter', 'CoOp']
    """
    return sorted({*names("trainers"), *plugins.names("trainers")})


def list_backbones() -> list[str]:
    """Return the names of all configured backbones, in alphabetical order. Others go by "ARCH@TAG" of open_clip.

    Example:
        >>> import unskew
        >>> "ViT-B/16" in unskew.list_backbones()
        True
    """
    configured = (str(backbone_layer(name)["MODEL.BACKBONE.NAME"]) for name in names("backbones"))
    return sorted({*configured, *plugins.names("backbones")})


def check_name(axis: str, name: str) -> str:
    """Return ``name`` if it is a YAML's stem or a plugin's name.

    Raises:
        ValueError: the name is unknown; the message suggests similar ones.
    """
    known = [*names(axis), *plugins.names(axis)]
    if name not in known:
        module = folder_of(axis).parents[1] / axis / f"{name.lower()}.py"
        if module.is_file() and name.lower() not in map(str.lower, known):
            raise ValueError(f"'{module}' needs a config: add configs/{axis}/{name}.yaml, which may be empty")
        raise ValueError(unknown_name(axis.removesuffix("s"), name, known))
    return name


def check_backbone(name: str) -> str:
    """Return ``name`` if it is a config's stem, CLIP's short name ("ViT-B/16") or "ARCH@TAG"."""
    if "@" not in name:
        check_name("backbones", name.replace("/", "-"))
    return name


def read_yaml(path: Path) -> dict:
    """Read the mapping in a YAML file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not YAML, or holds no mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no config file '{path}'")
    state = path.stat()
    return copy.deepcopy(_parse(path, state.st_mtime_ns, state.st_size))


@functools.lru_cache(maxsize=256)
def _parse(path: Path, _mtime: int, _size: int) -> dict:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"'{path}' is not valid YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"'{path}' must hold a mapping of config keys, got {type(content).__name__}")
    return content


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
        return check_name("datasets", dataset), read_layer("datasets", dataset), f"configs/datasets/{dataset}.yaml"
    tree, stem = read_yaml(Path(dataset)), Path(dataset).stem
    name = str(dict(flatten(tree)).get("DATASET.NAME") or stem)
    known = [*names("datasets"), *plugins.names("datasets")]
    return check_name("datasets", stem if stem in known and name not in known else name), tree, dataset


def backbone_layer(name: str) -> dict[str, object]:
    """Return the config leaves of a backbone.

    ``MODEL.BACKBONE.NAME`` has the spelling of the backbone's YAML if it has one: "ViT-B/16" for "ViT-B-16".
    """
    path = folder_of("backbones") / f"{check_backbone(name).replace('/', '-')}.yaml"
    return {"MODEL.BACKBONE.NAME": name, **dict(flatten(read_yaml(path) if path.is_file() else {}))}


# --- facts about trainers ---------------------------------------------------------------------------


def trainer_nodes() -> dict[str, dict]:
    """Return the keys of each ``TRAINER.<X>`` with their defaults, read from the YAML whose stem is the class X.

    A YAML with ``TRAINER.CLASS`` configures another class under a name of its own and defines no keys.
    """
    trees = {name.upper(): _trainer_tree(name) for name in sorted(names("trainers"), key=str.lower)}
    return {node: tree[node] for node, tree in trees.items() if tree.get(node) and "CLASS" not in tree}


def trainer_layer(trainer: str) -> dict:
    """Read a trainer's YAML without the keys of its class's own node, which are defaults (see `trainer_nodes`)."""
    tree = read_layer("trainers", trainer)
    if tree.get("TRAINER") and "CLASS" not in tree["TRAINER"]:
        tree["TRAINER"].pop(trainer.upper(), None)
    return tree


def class_name(trainer: str) -> str:
    """Return the registered class of a trainer config: its ``TRAINER.CLASS``, or its own name without one."""
    return str(_trainer_tree(trainer).get("CLASS", trainer))


def read_base(trainer: str) -> str | None:
    """Return the default base of a trainer (``TRAINER.GLA.BASE``), if it has one."""
    base = _own_key(trainer, "BASE")
    return None if base is None else str(base)


def has_members(trainer: str) -> bool:
    """Return whether a trainer's config names its backbones itself (``TRAINER.BACKDOOR.MEMBERS``)."""
    return _own_key(trainer, "MEMBERS") is not None


def _trainer_tree(name: str) -> dict:
    return read_layer("trainers", name).get("TRAINER") or {}


def _own_key(trainer: str, key: str) -> object:
    """Return a key of the trainer's own node, as its YAML or else the YAML of its class sets it."""
    cls = class_name(trainer)
    own, default = ((_trainer_tree(name).get(cls.upper()) or {}) for name in (trainer, cls))
    return own.get(key, default.get(key))
