"""A finished run's trainer from its folder alone, and the file ``model.json`` that this takes."""

import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yacs.config import CfgNode

from unskew import config
from unskew.data.saved_run import SAVED_RUN, VERSION, read_model
from unskew.engine.run_dir import RunDir, dataset_label, trainer_label
from unskew.utils.errors import format_error
from unskew.utils.files import write_atomically

if TYPE_CHECKING:
    from unskew.data.dataset import Datum
    from unskew.engine.trainer import SimpleTrainer

logger = logging.getLogger("unskew")

# Images of val that fit a temperature: more would change it little, and those of a large val take long to encode.
MOST_VAL = 512


# --- model.json -------------------------------------------------------------------------------------


def describe(trainer: "SimpleTrainer", cfg: CfgNode) -> dict[str, Any] | None:
    """Return the content of a trained run's ``model.json``; ``None`` for a plugin's trainer without Dassl's base.

    The temperature that calibrates the logits is fitted on val, unless the trainer calibrates its logits itself.

    Args:
        trainer: the trainer after its training.
        cfg: the run's config.
    """
    dataset = getattr(getattr(trainer, "dm", None), "dataset", None)
    if dataset is None or not hasattr(trainer, "foundation_models"):
        return None
    names: Mapping[int, str] = dataset.lab2cname
    prompts = {key: getattr(dataset, key, "") for key in ("template", "context_init")}
    models = trainer.foundation_models()
    temperature, source = _temperature(trainer)
    model = {
        "version": VERSION,
        "dataset": dataset_label(cfg),
        "trainer": trainer_label(cfg),
        "classes": [names[label] for label in sorted(names)],
        **prompts,
        "templates": list(getattr(dataset, "templates", ())),
        **models[0],
        "temperature": temperature,
        "calibration": source,
        "transductive": trainer.transductive,
    }
    if len(models) > 1:
        model["models"] = models
    if (tested := getattr(dataset, "test_classes", None)) is not None:
        model["test_classes"] = list(tested)
    return model


def write_model(folder: RunDir, model: Mapping[str, Any]) -> None:
    """Write ``model.json``."""
    import json

    write_atomically(folder.model, json.dumps(model, indent=1) + "\n")


def _temperature(trainer: "SimpleTrainer") -> tuple[float, str]:
    """Return the temperature of the logits and its source: "trainer", "val" or "none"."""
    if trainer.calibrated:
        return 1.0, "trainer"
    items: Sequence[Datum] = trainer.dm.dataset.val or []
    if not items or trainer.transductive:
        return 1.0, "none"
    from unskew.debias.temperature import fit_temperature
    from unskew.engine.evaluator import labels_of

    chosen = random.Random(0).sample(list(items), min(MOST_VAL, len(items)))
    try:
        logits = trainer.predict([item.impath for item in chosen]).float()
        if trainer.logit_adjusted:  # val has the class frequencies of the training images
            counts = labels_of(trainer.dm.dataset.train_x or []).bincount(minlength=logits.shape[1]) + 1.0
            logits = logits + (counts / counts.sum()).log().to(logits.device)
        return fit_temperature(logits, labels_of(chosen).to(logits.device), method="map"), "val"
    except Exception as error:  # of any kind: the trainer may be a plugin's
        logger.warning(f"the probabilities of predictions are not calibrated: {format_error(error)}")
        return 1.0, "none"


# --- the trainer ------------------------------------------------------------------------------------


def load_trainer(folder: str | Path, precision: str = "") -> "SimpleTrainer":
    """Build the trainer of a finished run and load its weights, without its dataset.

    Args:
        folder: the run's folder, which may have been moved.
        precision: instead of the run's ``TRAINER.PREC``.

    Returns:
        The trainer, whose ``classnames`` are the run's and whose ``predict_parts(paths)`` takes any images. Its splits
        are empty, so that it can neither train nor test.

    Raises:
        FileNotFoundError: the folder holds no finished run or no ``model.json``, or weights are missing.
        ValueError: a file is damaged, the weights of a backbone have changed since the training, or the trainer is
            of a plugin that is not imported.

    Examples:
        >>> import tempfile, unskew
        >>> from unskew.runs.model import load_trainer
        >>> run = unskew.train("digits", "ZeroshotCLIP", shots=1, seed=1, output=tempfile.mkdtemp())
        >>> load_trainer(run.path).classnames[:3]
        ['zero', 'one', 'two']
    """
    place = RunDir(Path(folder).absolute())
    tree = place.read_config()  # a line for a folder without a finished run
    if source := tree.get("TEST", {}).get("MODEL_DIR"):
        raise ValueError(f"'{folder}' holds an evaluation of the run in '{source}': give the folder of that run")
    saved = tree["TRAINER"]
    import torch

    from unskew.engine.trainer import TRAINER_REGISTRY, build_trainer

    name = saved.get("CLASS") or saved["NAME"]
    if name not in {*config.names("trainers"), *TRAINER_REGISTRY.registered_names()}:
        raise ValueError(
            f"the trainer '{name}' of '{place.path}' comes from a plugin: pass the plugin's file with --plugin"
        )
    cfg = _config(place)
    cfg = config.derive(cfg, {"TRAINER.PREC": precision}) if precision else cfg

    with torch.random.fork_rng(devices=[]):  # initial weights, which those of the run replace
        trainer = build_trainer(cfg)
        trainer.load_model(cfg.OUTPUT_DIR)
    return trainer


def _config(place: RunDir) -> CfgNode:
    """Return the config of a finished run, with the run's folder instead of its dataset."""
    read_model(place.path)
    cfg = config.restore(place.config)
    values: dict[str, object] = {
        "DATASET.NAME": SAVED_RUN,
        "DATASET.ROOT": str(place.path),
        "OUTPUT_DIR": str(place.path),
        "RESUME": "",
        "VERBOSE": False,
    }
    for key, value in config.flatten(cfg):
        if key.endswith(".MEMBERS_DIR"):  # the members are in the run's folder
            values[key] = ""
        if key.endswith(".BASE_DIR") and value and not RunDir(str(value)).is_finished:
            raise FileNotFoundError(
                f"{key} '{value}', the base of the run in '{place.path}', holds no finished run: start in the folder "
                f"in which the run was started, or correct {key} in '{place.config}'"
            )
    return config.derive(cfg, values)
