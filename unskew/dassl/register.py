"""Our trainers in an installed Dassl: call ``unskew.dassl.register.extend_cfg(cfg)`` in a script's ``extend_cfg``.

`extend_cfg` registers the trainers, not the import of this module. By then the script has imported its own trainers, so
that a name used by both stays the script's.
"""

import contextlib
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

try:
    from dassl.data.datasets import build_dataset
    from dassl.engine import TRAINER_REGISTRY as DASSL_TRAINERS
except ModuleNotFoundError as error:
    if error.name != "dassl":  # a requirement of Dassl is missing
        raise
    raise ImportError(
        "unskew.dassl.register needs an installed Dassl, and none was found; install it (see docs/DASSL.md), or run "
        "the script with python -m unskew.dassl"
    ) from error

from unskew import config
from unskew.config import plugins
from unskew.dassl import samplers, transforms  # noqa: F401 - our trainers may use Dassl's names for them
from unskew.dassl.config import add_missing
from unskew.dassl.results import write_files_of
from unskew.dassl.utils import show_log_lines
from unskew.data.dataset import DATASET_REGISTRY, DatasetBase, Datum
from unskew.data.published import openai_templates
from unskew.engine.trainer import TRAINER_REGISTRY, SimpleTrainer, build_trainer

logger = logging.getLogger("unskew")

# The function that we registered in Dassl, by the name of the trainer.
_FACTORIES: dict[str, Callable] = {}
# Default values of the script's config; the user has set every key whose value differs from them later.
_DEFAULTS: dict[str, object] = {}
# Keys that are not copied from the script's config.
_NAMES = ("DATASET.NAME", "TRAINER.NAME", "TRAINER.CLASS", "VERSION")


def extend_cfg(cfg: CfgNode) -> None:
    """Register our trainers in Dassl and add their keys with our defaults; existing keys keep their values.

    Call it last in a script's ``extend_cfg``, before files and flags are merged into ``cfg``. It prints the names of
    our trainers that are skipped because the script has trainers with these names.
    """
    if DASSL_TRAINERS is TRAINER_REGISTRY:
        print("unskew: no trainers added: `dassl` is unskew's engine here; use `unskew train`")
        return
    _register_trainers()
    add_missing(cfg, config.all_defaults())
    _DEFAULTS.clear()
    _DEFAULTS.update((key, _plain(value)) for key, value in config.flatten(cfg))


def _register_trainers() -> None:
    taken = []
    for name in config.names("trainers"):
        if name not in DASSL_TRAINERS.registered_names():
            _FACTORIES[name] = _factory(name)
            DASSL_TRAINERS.register(_FACTORIES[name])
        elif DASSL_TRAINERS.get(name) is not _FACTORIES.get(name):
            taken.append(name)
    if taken:
        print(f"unskew: skipping {', '.join(taken)}: the script has its own trainers with these names")


def _factory(name: str) -> Callable[[CfgNode], SimpleTrainer]:
    """Return the function that Dassl calls with its frozen config; it returns our trainer."""

    def build(cfg: CfgNode) -> SimpleTrainer:
        logging.disable(logging.NOTSET)  # importing Dassl silences all loggers of the process
        show_log_lines()  # on the current standard output, which the script may copy to its log
        # Load the dataset before any other random draw, so that its few-shot sample equals that of the script's own
        # trainers; and only once, because each load may draw another sample.
        dataset, stem = build_dataset(cfg), _stem(cfg.DATASET.NAME)
        borrowed = BorrowedDataset(dataset, DATASET_REGISTRY.get(stem) if stem else None)
        DATASET_REGISTRY.register(cfg.DATASET.NAME, lambda _: borrowed, force=True)
        trainer = build_trainer(trainer_config(name, cfg))
        write_files_of(trainer, trainer.cfg)
        return trainer

    build.__name__ = name
    return build


# --- the config ---------------------------------------------------------------------------------------


def trainer_config(name: str, cfg: CfgNode) -> CfgNode:
    """Return our frozen config for a trainer, with the keys that the script's user has set on top.

    A key counts as set if its value differs from the script's default, or if the command line or a YAML file on the
    command line names it. A dataset whose class has the name of one of ours gets our config layers; others get none.

    Raises:
        ValueError: a value has the wrong type, neither the user nor the dataset's layer names a backbone, or the user
            names a backbone for a trainer with members.
    """
    given = _set_by_user(cfg, dict(config.flatten(config.all_defaults())))
    if config.has_members(name) and "MODEL.BACKBONE.NAME" in given and "TRAINER.BACKDOOR.MEMBERS" not in given:
        raise ValueError(
            f"{name} has several backbones, so it ignores MODEL.BACKBONE.NAME ({cfg.MODEL.BACKBONE.NAME}): set "
            "TRAINER.BACKDOOR.MEMBERS \"['ViT-B/16', 'RN50']\", or omit --backbone for the default members"
        )
    plugins.declare("datasets", cfg.DATASET.NAME)
    opts = [part for pair in given.items() for part in pair]
    ours = config.load(
        _stem(cfg.DATASET.NAME) or cfg.DATASET.NAME, trainer=name, opts=(*opts, "OUTPUT_DIR", cfg.OUTPUT_DIR)
    )
    shown = ", ".join(f"{key} {value}" for key, value in given.items())
    logger.info(f"{name} of unskew, with its own settings and these of the script: {shown or 'none'}")
    return config.derive(ours, {"DATASET.NAME": cfg.DATASET.NAME})


def _set_by_user(cfg: CfgNode, ours: dict[str, object]) -> dict[str, object]:
    named = _keys_on_command_line()
    changed: dict[str, object] = {}
    for key, value in config.flatten(cfg):
        if key not in ours or key in _NAMES or (isinstance(ours[key], str) and not isinstance(value, str)):
            continue  # a key of another type has another meaning, such as ProGrad's CTX_INIT True
        if key in named or _plain(value) != _DEFAULTS.get(key):
            changed[key] = value
    return changed


def _keys_on_command_line() -> set[str]:
    keys = set(sys.argv[1:])
    for word in sys.argv[1:]:
        path = Path(word.rpartition("=")[2])
        if path.suffix in (".yaml", ".yml") and path.is_file():
            with contextlib.suppress(ValueError):  # not a config file
                keys.update(dict(config.flatten(config.read_yaml(path))))
    return keys


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple | list) else value


# --- the dataset --------------------------------------------------------------------------------------


def _stem(dassl_name: str) -> str | None:
    """Return our name of the dataset whose class has this name in Dassl, if any: "eurosat" for "EuroSAT"."""
    return next((s for s in config.names("datasets") if DATASET_REGISTRY.get(s).__name__ == dassl_name), None)


class BorrowedDataset(DatasetBase):
    """A dataset loaded by Dassl, with our prompts if we have the same dataset.

    Args:
        source: Dassl's dataset; its unlabelled images are ignored.
        like: our class of the same dataset.

    Raises:
        ValueError: labels are not 0..C-1, or a label has two names.
    """

    def __init__(self, source: Any, like: type[DatasetBase] | None = None) -> None:
        if like is not None:
            self.template, self.context_init = like.template, like.context_init
            self.templates = openai_templates() if getattr(like, "imagenet_templates", False) else like.templates
        super().__init__(train_x=_items(source.train_x), val=_items(source.val), test=_items(source.test))


def _items(items: Sequence | None) -> list[Datum]:
    return [Datum(item.impath, item.label, max(0, item.domain), item.classname) for item in items or ()]
