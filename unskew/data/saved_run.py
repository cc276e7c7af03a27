"""The dataset of a trainer that only predicts: the classes and prompts of a finished run, without images."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from yacs.config import CfgNode

from unskew.data.dataset import DATASET_REGISTRY, DatasetBase
from unskew.utils.files import read_json

SAVED_RUN = "saved_run"  # DATASET.NAME; DATASET.ROOT is then the folder of the run

MODEL_FILE = "model.json"

VERSION = 1

_TEXTS, _LISTS, _NODES = ("dataset", "trainer", "template", "context_init"), ("classes", "templates"), ("backbone",)


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
    for keys, kind in ((_TEXTS, str), (_LISTS, list), (_NODES, dict)):
        for key in keys:
            if not isinstance(model.get(key), kind):
                return f"{key} is {model.get(key)!r:.80}"
    if not (model["classes"] and all(isinstance(name, str) for key in _LISTS for name in model[key])):
        return "its classes and templates must be texts"
    if not isinstance(temperature := model.get("temperature"), int | float) or not 0 < temperature < math.inf:
        return f"temperature is {temperature!r:.80}"
    count = len(model["classes"])
    if not _all_are(model.get("models", []), lambda entry: isinstance(entry["backbone"], dict)):
        return "models must be a list of backbones"
    if not _all_are(model.get("test_classes", []), lambda label: isinstance(label, int) and 0 <= label < count):
        return f"test_classes must be labels below {count}"
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
