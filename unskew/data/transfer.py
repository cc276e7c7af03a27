"""Evaluation of a trained run on other images: the classes are those of the run, matched by name.

Nothing may be fitted to the labels of such images, so the dataset has no training and validation images then.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from yacs.config import CfgNode

from unskew import config
from unskew.data.dataset import DATASET_REGISTRY, USER_DATASETS, DatasetBase, Datum
from unskew.data.saved_run import MODEL_FILE, read_model
from unskew.utils.files import expand, read_json

# Values of a dataset's `transfer`: the classes are among those of the trained run, or some are not.
BY_NAME, OTHER_CLASSES = "by class name", "other classes"

# Keys below DATASET that decide the images of train and val; the seed counts for few-shot samples only.
_IMAGES = (
    *("NAME", "NUM_SHOTS", "NUM_VAL_SHOTS", "HOLDOUT", "TRAIN_ON_VAL", "SUBSAMPLE_CLASSES", "IMBALANCE"),
    *("CLASSNAMES", "SEED"),
)


class Source(NamedTuple):
    """The dataset of a trained run.

    Attributes:
        dataset: its label.
        classes: its class names [C].
        context_init: the prompt that learned contexts start from.
    """

    dataset: str
    classes: list[str]
    context_init: str


def saved_config(folder: str | Path) -> dict[str, Any]:
    """Return the values in the ``config.yaml`` of a run, by key; CoOp's runs have none."""
    file = Path(folder) / "config.yaml"
    saved = dict(config.flatten(config.read_yaml(file))) if file.is_file() else {}
    return {**config.former_values(saved), **saved} if saved else {}


def read_source(folder: str | Path) -> Source | None:
    """Return the dataset of a trained run; ``None`` if its folder does not tell, as those of CoOp and of members.

    Raises:
        ValueError: a file of the run is damaged.
    """
    if (Path(folder) / MODEL_FILE).is_file():
        model = read_model(folder)
        return Source(model["dataset"], model["classes"], model["context_init"])
    metrics, saved = Path(folder) / "metrics.json", saved_config(folder)
    content = read_json(metrics) if metrics.is_file() else {}  # runs of older versions have no model.json
    if not saved or not isinstance(content, dict) or not content.get("classnames"):
        return None
    return Source(str(content.get("dataset", "")), list(content["classnames"]), _context_init(saved))


def _context_init(saved: Mapping[str, Any]) -> str:
    """Return the initial prompt of a run from its config; "" for a dataset that is unknown here."""
    template, name = saved.get("DATASET.TEMPLATE", ""), saved.get("DATASET.NAME")
    if template and not template.startswith("{}"):
        return str(template)
    if name not in config.names("datasets"):
        return ""
    dataset = DATASET_REGISTRY.get(name)
    return dataset.context_init or dataset.template


def same_images(cfg: CfgNode, folder: str | Path) -> bool:
    """Return whether a config selects the train and val images of the run in a folder, by its ``config.yaml``."""
    saved = saved_config(folder)
    return bool(saved) and _images(dict(config.flatten(cfg))) == _images(saved)


def _images(leaves: Mapping[str, Any]) -> dict[str, object]:
    """Return the values that decide the images of train and val, from the leaves of a config."""
    defaults = config.get_cfg_default().DATASET
    values = {key: leaves.get(f"DATASET.{key}", defaults[key]) for key in _IMAGES}
    if values["NUM_SHOTS"] < 0:
        values["SEED"] = None
    elif values["SEED"] < 0:
        values["SEED"] = leaves["SEED"] if leaves["SEED"] >= 0 else object()  # unseeded: another sample each time
    if values["NAME"] in USER_DATASETS:
        values["ROOT"] = expand(leaves["DATASET.ROOT"]).resolve()
    return values


def adopt(dataset: DatasetBase, cfg: CfgNode) -> None:
    """Prepare a dataset for the evaluation of the trained run in ``cfg.TEST.MODEL_DIR``.

    Prompts are learned from the run's ``context_init``. The images of the run itself stay as they are. A dataset of
    other images, or of other classes, loses its training and validation images. If all its classes are classes of the
    run, it gets the classes of the run, with its own classes as ``test_classes``.

    Raises:
        ValueError: a class name is that of several classes.
    """
    folder = cfg.TEST.MODEL_DIR
    source = read_source(folder)
    if source is not None:
        dataset.context_init = source.context_init or dataset.context_init
    names = [dataset.lab2cname[label] for label in sorted(dataset.lab2cname)]
    if same_images(cfg, folder) and (source is None or names == source.classes):
        return
    dataset.train_x = dataset.train_u = []
    if cfg.TEST.SPLIT != "val":
        dataset.val = []
    if source is None:
        return
    tested = list(range(len(names)) if dataset.test_classes is None else dataset.test_classes)
    if names == source.classes:
        labels: dict[int, int] | None = {label: label for label in tested}
    else:
        labels = match([names[label] for label in tested], source.classes)
        labels = labels and {label: labels[place] for place, label in enumerate(tested)}
    dataset.transfer = BY_NAME if labels else OTHER_CLASSES
    if labels and names != source.classes:
        _relabel(dataset, labels, source.classes)


def match(names: Sequence[str], classes: Sequence[str]) -> dict[int, int] | None:
    """Return the label among ``classes`` of each name, by place; ``None`` if a name is missing.

    Upper and lower case are equal, and so are underscores and spaces, as in prompts. Of equal names, the first is the
    first among the classes too.

    Raises:
        ValueError: a name has more or fewer classes than there.
    """
    labels, wanted = defaultdict(list), Counter(map(_plain, names))
    for label, name in enumerate(classes):
        labels[_plain(name)].append(label)
    if not wanted.keys() <= labels.keys():
        return None
    for name, count in wanted.items():
        if count != len(labels[name]):
            raise ValueError(
                f"{count} class(es) of the dataset and {len(labels[name])} of the trained run have the name '{name}': "
                "give each class a name of its own"
            )
    rest = {name: iter(found) for name, found in labels.items()}
    return {place: next(rest[_plain(name)]) for place, name in enumerate(names)}


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).casefold()


def _relabel(dataset: DatasetBase, labels: Mapping[int, int], classes: Sequence[str]) -> None:
    """Give a dataset the classes of a run; ``labels`` has the run's label by the dataset's."""
    for split in ("val", "test"):
        items = getattr(dataset, split) or []
        moved = [
            Datum(item.impath, labels[item.label], item.domain, classes[labels[item.label]])
            for item in items
            if item.label in labels
        ]
        setattr(dataset, split, moved)
    dataset.lab2cname = dict(enumerate(classes))
    dataset.classnames, dataset.num_classes = list(classes), len(classes)
    tested = sorted(labels.values())
    dataset.test_classes = None if len(tested) == len(classes) else tested
