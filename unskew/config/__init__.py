"""The configuration of a run, layered from YAML files and frozen once. Imports no torch."""

from unskew.config._files import (
    backbone_layer,
    check_backbone,
    check_name,
    class_name,
    dataset_layer,
    folder_of,
    list_backbones,
    list_datasets,
    list_trainers,
    names,
    read_yaml,
    trainer_node,
)
from unskew.config._keys import flatten, set_key
from unskew.config._values import OPTIMIZERS, SCHEDULERS, check_optimizer, check_schedule
from unskew.config.defaults import COMMON, get_cfg_default
from unskew.config.load import (
    all_defaults,
    dataset_values,
    derive,
    dump,
    former_values,
    has_members,
    integer,
    load,
    read_base,
    restore,
)

__all__ = [
    "COMMON",
    "OPTIMIZERS",
    "SCHEDULERS",
    "all_defaults",
    "backbone_layer",
    "check_backbone",
    "check_name",
    "check_optimizer",
    "check_schedule",
    "class_name",
    "dataset_layer",
    "dataset_values",
    "derive",
    "dump",
    "flatten",
    "folder_of",
    "former_values",
    "get_cfg_default",
    "has_members",
    "integer",
    "list_backbones",
    "list_datasets",
    "list_trainers",
    "load",
    "names",
    "read_base",
    "read_yaml",
    "restore",
    "set_key",
    "trainer_node",
]
