"""The dataset of a trainer that only predicts: the classes and prompts of a finished run, without images."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from yacs.config import CfgNode

from unskew.data.dataset import DATASET_REGISTRY, DatasetBase
from unskew.utils.files import read_json

Kinds = type | tuple[type, ...]

SAVED_RUN = "saved_run"  # DATASET.NAME; DATASET.ROOT is then the folder of the run

MODEL_FILE = "model.json"

VERSION = 1

_LISTS = ("classes", "templates")

_KINDS: dict[str, Kinds] = {
    "version": int,
    **dict.fromkeys(("dataset", "trainer", "template", "context_init", "calibration"), str),
    **dict.fromkeys(_LISTS, list),
    "temperature": (float, int),
    "transductive": bool,
}

# Of each backbone.
_MODEL_KINDS: dict[str, Kinds] = {"backbone": dict, "preprocessing": dict, "license": str}
_BACKBONE_KINDS: dict[str, Kinds] = dict.fromkeys(("name", "id", "architecture", "tag"), str)
_PREPROCESSING_KINDS: dict[str, Kinds] = {
    "size": (int, list),
    **dict.fromkeys(("interpolation", "resize_mode"), str),
    **dict.fromkeys(("mean", "std"), list),
    "crops": int,
    "upright": bool,
}


def read_model(folder: str | Path) -> dict[str, Any]:
    """Return the content of a run's ``model.json``.

    Raises:
        FileNotFoundError: the folder has none: an older version wrote it, or it is a member of a run.
        ValueError: the file is damaged, or a newer version wrote it.
    """
    path = Path(folder) / MODEL_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"'{folder}' has no {MODEL_FILE}, as it is part of another run or of an older version of unskew: give the "
            "folder of a whole run, or delete this one and run again"
        )
    advice = f"delete the folder '{folder}' and run again"
    try:
        model = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}; {advice}") from error
    if isinstance(model, dict) and isinstance(model.get("version"), int) and model["version"] > VERSION:
        raise ValueError(f"'{path}' has version {model['version']}, and this is {VERSION}: update unskew")
    if wrong := _damage(model):
        raise ValueError(f"'{path}' is damaged: {wrong}; {advice}")
    return model


def _damage(model: object) -> str:
    """Return what is wrong with the content of the file, or ""."""
    if not isinstance(model, dict):
        return "it holds no object"
    if wrong := _wrong_value(model, _KINDS):
        return wrong
    if not (model["classes"] and all(isinstance(name, str) for key in _LISTS for name in model[key])):
        return "its classes and templates must be texts"
    if not 0 < model["temperature"] <= sys.float_info.max:
        return f"temperature is {model['temperature']!r:.80}"
    models = model.get("models", [model])
    if not (models and _all_are(models, lambda entry: isinstance(entry, dict))):
        return "models must be a list of backbones"
    if wrong := next((wrong for wrong in map(_damage_of_backbone, models) if wrong), ""):
        return wrong
    count, tested = len(model["classes"]), model.get("test_classes", [0])
    labels = _all_are(tested, lambda label: type(label) is int and 0 <= label < count)
    if not (labels and tested and len(set(tested)) == len(tested)):
        return f"test_classes must be different labels below {count}"
    return ""


def _damage_of_backbone(model: Mapping[str, Any]) -> str:
    """Return what is wrong with the description of a backbone, or ""."""
    if wrong := _wrong_value(model, _MODEL_KINDS) or _wrong_value(model["backbone"], _BACKBONE_KINDS):
        return wrong
    size, crops = (model["preprocessing"].get(key) for key in ("size", "crops"))
    if wrong := _wrong_value(model["preprocessing"], _PREPROCESSING_KINDS):
        return wrong
    sizes = size if isinstance(size, list) else [size]
    if not (sizes and _all_are([*sizes, crops], lambda number: type(number) is int and number > 0)):
        return f"size is {size!r:.80}, crops is {crops!r:.80}"
    return ""


def _wrong_value(node: Mapping[str, Any], kinds: Mapping[str, Kinds]) -> str:
    """Return the first key whose value is of another kind, with its value, or ""; a truth value is no number."""
    for key, kind in kinds.items():
        value = node.get(key)
        if type(value) not in (kind if isinstance(kind, tuple) else (kind,)):
            return f"{key} is {value!r:.80}"
    return ""


def _all_are(values: object, valid: Callable[[Any], bool]) -> bool:
    try:
        return isinstance(values, list) and all(map(valid, values))
    except (LookupError, TypeError):
        return False


class Loaded(Protocol):
    """A backbone with its name and the id of its weights."""

    name: str
    id: str


@DATASET_REGISTRY.register(SAVED_RUN)
class SavedRun(DatasetBase):
    """The classes, prompts and backbones in the ``model.json`` of the folder ``DATASET.ROOT``; all splits are empty."""

    def __init__(self, cfg: CfgNode) -> None:
        self.folder = cfg.DATASET.ROOT
        model = read_model(self.folder)
        self.template, self.context_init = model["template"], model["context_init"]
        self.templates, self.test_classes = model["templates"], model.get("test_classes")
        super().__init__(classnames=model["classes"])
        entries: list[Mapping] = [entry["backbone"] for entry in model.get("models", [model])]
        self._ids = {entry.get("name"): entry.get("id") for entry in entries}

    def check_backbone(self, backbone: Loaded) -> None:
        """Raise ``ValueError`` if the weights of a backbone are not those of the run."""
        trained_on = self._ids.get(backbone.name, backbone.id)
        if trained_on != backbone.id:
            raise ValueError(
                f"the run in '{self.folder}' has weights of '{backbone.name}' with the id {trained_on}, but those on "
                f"this machine are {backbone.id}: restore the weights, or run again"
            )


def check_can_fit(dataset: object) -> None:
    """Raise ``ValueError`` if numbers would be fitted again for a run of which only the folder is there."""
    if isinstance(dataset, SavedRun):
        raise ValueError(
            f"the numbers fitted in '{dataset.folder}' do not match its classes and settings, and fitting them again "
            "takes the images of the dataset: run again"
        )
