"""Dassl's configuration: every key with its default, and the calls that scripts make."""

import pytest
from dassl_keys import DEFAULTS, own_defaults
from yacs.config import CfgNode

from unskew.config import flatten
from unskew.dassl import data, engine, evaluation, transforms
from unskew.dassl.config import clean_cfg, complete, get_cfg_default


def test_every_key_has_dassls_default():
    ours = dict(flatten(get_cfg_default()))
    for node, leaves in DEFAULTS.items():
        for leaf, value in leaves.items():
            found = ours[f"{node}.{leaf}".lstrip(".")]
            assert (found, type(found)) == (value, type(value)), f"{node}.{leaf}"


def test_trees_share_nothing():
    first = get_cfg_default()
    first.TRAINER.MCD.N_STEP_F, first.INPUT.PIXEL_MEAN[0] = 9, 0.0
    assert get_cfg_default().TRAINER.MCD.N_STEP_F == 4
    assert get_cfg_default().INPUT.PIXEL_MEAN[0] == 0.485


def test_a_script_extends_merges_and_freezes(tmp_path):
    (tmp_path / "config.yaml").write_text("INPUT:\n  SIZE: (224, 224)\nTRAINER:\n  COOP:\n    PREC: amp\n")
    cfg = get_cfg_default()
    cfg.TRAINER.COOP = CfgNode({"PREC": "fp16"})
    cfg.merge_from_file(tmp_path / "config.yaml")
    cfg.merge_from_list(["OPTIM.MAX_EPOCH", "3", "INPUT.TRANSFORMS", "('normalize',)"])
    cfg.freeze()
    assert (cfg.TRAINER.COOP.PREC, cfg.OPTIM.MAX_EPOCH, cfg.INPUT.TRANSFORMS) == ("amp", 3, ("normalize",))
    with pytest.raises(AttributeError):
        cfg.SEED = 1


def test_clean_cfg_leaves_one_trainers_node():
    cfg = get_cfg_default()
    cfg.TRAINER.NAME = "FixMatch"
    clean_cfg(cfg, "FixMatch")
    assert [name for name, value in cfg.TRAINER.items() if isinstance(value, CfgNode)] == ["FIXMATCH"]
    assert cfg.TRAINER.NAME == "FixMatch"


# --- trees of scripts --------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [False, True])
def test_missing_keys_get_their_defaults_and_others_keep_their_values(frozen):
    cfg = own_defaults()
    cfg.OPTIM.LR, cfg.DATASET.SUBSAMPLE_CLASSES = 7.0, "base"
    del cfg["TEST"], cfg.DATALOADER["K_TRANSFORMS"]  # an older release
    if frozen:
        cfg.freeze()
    assert complete(cfg) is cfg
    assert (cfg.OPTIM.LR, cfg.DATASET.SUBSAMPLE_CLASSES) == (7.0, "base")
    assert (cfg.TRAIN.ACCUMULATE, cfg.TEST.CROPS, cfg.DATALOADER.K_TRANSFORMS, cfg.TRAIN.KEEP) == (1, 1, 1, -1)
    assert {key for key, _ in flatten(get_cfg_default())} == {key for key, _ in flatten(cfg)}
    assert cfg.is_frozen() == cfg.TEST.is_frozen() == cfg.TRAIN.is_frozen() == frozen


def test_a_complete_tree_is_unchanged():
    cfg = get_cfg_default()
    del cfg.TRAINER["MCD"]  # as in a run of our own
    before = list(flatten(cfg))
    assert list(flatten(complete(cfg))) == before


@pytest.mark.parametrize(
    "build",
    [
        data.build_dataset,
        data.DataManager,
        lambda cfg: data.DatasetWrapper(cfg, []),
        lambda cfg: data.build_data_loader(cfg, data_source=[data.Datum("a.png")]),
        engine.build_trainer,
        engine.TrainerX,
        evaluation.build_evaluator,
        evaluation.Classification,
        transforms.build_transform,
    ],
)
def test_every_function_that_takes_a_config_completes_it(build):
    cfg = own_defaults()
    cfg.USE_CUDA = False
    try:
        build(cfg)
    except ValueError as error:  # the tree names neither a dataset nor a trainer
        assert "''" in str(error)
    assert (cfg.TRAIN.ACCUMULATE, cfg.TEST.CROPS) == (1, 1)
