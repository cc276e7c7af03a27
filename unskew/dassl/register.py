"""Our trainers in a real Dassl: ``unskew.dassl.register.extend_cfg(cfg)`` in a script's own ``extend_cfg``.

`extend_cfg` registers them, not the import: by then the script has imported its own trainers, so that a name that both
have stays theirs, wherever this module is imported.
"""

import contextlib
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from yacs.config import CfgNode

try:
    from dassl.data.datasets import build_dataset
    from dassl.engine import TRAINER_REGISTRY as DASSL_TRAINERS
except ModuleNotFoundError as error:
    if error.name != "dassl":  # one of its own requirements is missing
        raise
    raise ImportError(
        "unskew.dassl.register puts trainers into an installed Dassl, and there is none; install it as docs/DASSL.md "
        "says, or run the script with python -m unskew.dassl, which needs none"
    ) from error

from unskew import config
from unskew.config import plugins
from unskew.dassl import samplers, transforms  # noqa: F401 - our trainers may use Dassl's names for them
from unskew.dassl.utils import show_log_lines
from unskew.data.dataset import DATASET_REGISTRY, DatasetBase, Datum
from unskew.data.published import openai_templates
from unskew.engine.trainer import TRAINER_REGISTRY, SimpleTrainer, build_trainer

logger = logging.getLogger("unskew")

# Dassl's registry -> ours, by the trainer's name.
_FACTORIES: dict[str, Callable] = {}
# Each key's value when the script's defaults were complete: what differs from it later was set by a person.
_DEFAULTS: dict[str, object] = {}
# Not taken over: Dassl's names of the dataset and the trainer stand for themselves.
_NAMES = ("DATASET.NAME", "TRAINER.NAME", "TRAINER.CLASS", "VERSION")


def extend_cfg(cfg: CfgNode) -> None:
    """Register our trainers in Dassl and add their keys, with our defaults; keys that exist keep their values.

    Call it last in a script's ``extend_cfg``. A trainer whose name the script's own has is left out, which is printed.

    Args:
        cfg: Dassl's default tree, before files and flags are merged.
    """
    if DASSL_TRAINERS is TRAINER_REGISTRY:
        print("unskew: no trainer of ours is added, as dassl is this package's own here; unskew train has them")
        return
    _register_trainers()
    _add_missing(cfg, config.all_defaults())
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
        print(f"unskew: {', '.join(taken)} are the script's own trainers; ours of these names are left out")


def _add_missing(cfg: CfgNode, ours: CfgNode) -> None:
    for key, value in ours.items():
        if key not in cfg:
            cfg[key] = value
        elif isinstance(cfg[key], CfgNode) and isinstance(value, CfgNode):
            _add_missing(cfg[key], value)


def _factory(name: str) -> Callable[[CfgNode], SimpleTrainer]:
    """What Dassl calls with its frozen config. It gives our trainer, which has Dassl's methods."""

    def build(cfg: CfgNode) -> SimpleTrainer:
        logging.disable(logging.NOTSET)  # importing Dassl has silenced every logger of the process
        show_log_lines()  # on standard output as it is at each of them, so in the script's own log
        # Before anything else is drawn, so that its images are those of the script's own trainers; and once for all
        # trainers of this run, since a few-shot sample may be drawn anew each time.
        dataset, stem = build_dataset(cfg), _stem(cfg.DATASET.NAME)
        borrowed = BorrowedDataset(dataset, DATASET_REGISTRY.get(stem) if stem else None)
        DATASET_REGISTRY.register(cfg.DATASET.NAME, lambda _: borrowed, force=True)
        return build_trainer(trainer_config(name, cfg))

    build.__name__ = name
    return build


# --- the config ---------------------------------------------------------------------------------------


def trainer_config(name: str, cfg: CfgNode) -> CfgNode:
    """Our frozen config for a trainer: ours as always (`unskew.config.load`), under what the script's user has set.

    Set is a key whose value is not the script's default, or that stands on the command line or in a YAML file named
    there: it may repeat a default. A dataset of our class's name has our layers of it, any other has none.

    Raises:
        ValueError: a value's type does not fit, or neither the user nor the dataset's layer names a backbone.
    """
    given = _set_by_user(cfg, dict(config.flatten(config.all_defaults())))
    plugins.declare("datasets", cfg.DATASET.NAME)
    opts = [part for pair in given.items() for part in pair]
    ours = config.load(
        _stem(cfg.DATASET.NAME) or cfg.DATASET.NAME, trainer=name, opts=(*opts, "OUTPUT_DIR", cfg.OUTPUT_DIR)
    )
    shown = ", ".join(f"{key} {value}" for key, value in given.items())
    logger.info(f"{name} of unskew, with its own settings and the script's: {shown or 'none'}")
    return config.derive(ours, {"DATASET.NAME": cfg.DATASET.NAME})


def _set_by_user(cfg: CfgNode, ours: dict[str, object]) -> dict[str, object]:
    named = _keys_on_command_line()
    found = {}
    for key, value in config.flatten(cfg):
        if key not in ours or key in _NAMES or (isinstance(ours[key], str) and not isinstance(value, str)):
            continue  # the last: a key of theirs that means another thing, such as ProGrad's CTX_INIT True
        if key in named or _plain(value) != _DEFAULTS.get(key):
            found[key] = value
    return found


def _keys_on_command_line() -> set[str]:
    keys = set(sys.argv[1:])
    for word in sys.argv[1:]:
        path = Path(word.rpartition("=")[2])
        if path.suffix in (".yaml", ".yml") and path.is_file():
            with contextlib.suppress(ValueError):  # it is not a config
                keys.update(dict(config.flatten(config.read_yaml(path))))
    return keys


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple | list) else value


# --- the dataset --------------------------------------------------------------------------------------


def _stem(dassl_name: str) -> str | None:
    """Our name of the dataset whose class here has the name of Dassl's, if any: "eurosat" of "EuroSAT"."""
    return next((s for s in config.names("datasets") if DATASET_REGISTRY.get(s).__name__ == dassl_name), None)


class BorrowedDataset(DatasetBase):
    """What Dassl loaded, with our prompts if the dataset is one of ours.

    Args:
        source: a dataset of Dassl's; its unlabelled images are left out.
        like: our class of the same dataset.

    Raises:
        ValueError: labels are not 0..C-1, or a label has two names.
    """

    def __init__(self, source, like: type[DatasetBase] | None = None) -> None:
        if like is not None:
            self.template, self.context_init = like.template, like.context_init
            self.templates = openai_templates() if getattr(like, "imagenet_templates", False) else like.templates
        super().__init__(train_x=_items(source.train_x), val=_items(source.val), test=_items(source.test))


def _items(items: Sequence | None) -> list[Datum]:
    return [Datum(item.impath, item.label, max(0, item.domain), item.classname) for item in items or ()]
