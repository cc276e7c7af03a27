"""Configs share the parsed YAML files and the default tree, but no value that could be changed."""

import os

import pytest
from yacs.config import CfgNode

from unskew import config
from unskew.config import _files
from unskew.config._keys import copied


def trees(value):
    """Yield every mapping and list of a tree."""
    if isinstance(value, dict | list):
        yield value
        for part in value.values() if isinstance(value, dict) else value:
            yield from trees(part)


def load():
    return config.load("digits", trainer="GLA")


@pytest.mark.parametrize(
    "make",
    [load, config.get_cfg_default, config.all_defaults, lambda: config.dataset_layer("digits")[1]],
)
def test_two_calls_give_equal_trees_that_share_nothing(make):
    first, second = make(), make()
    assert first == second
    assert not {id(part) for part in trees(first)} & {id(part) for part in trees(second)}


def test_a_changed_tree_changes_no_later_one():
    first = _files.read_yaml(_files.folder_of("trainers") / "GLA.yaml")
    first["TRAINER"]["GLA"].clear()
    cfg = config.get_cfg_default()
    cfg.INPUT.PIXEL_MEAN.append(0.5)
    assert "BASE" in load().TRAINER.GLA and len(load().INPUT.PIXEL_MEAN) == 3


def test_a_copy_has_the_state_of_its_tree():
    class Node(CfgNode):
        pass

    cfg = Node({"A": {"B": [1, {"C": 2}], "D": (1, 2)}}, new_allowed=True)
    cfg.register_renamed_key("OLD", "A.D")
    cfg.freeze()
    twin = copied(cfg)
    assert twin == cfg and type(twin) is Node and twin.is_frozen() and twin.A.is_frozen() and twin.is_new_allowed()
    twin.defrost()
    twin.A.D = (3, 4)
    twin.register_renamed_key("OLDER", "A.D")
    assert cfg.A.D == (1, 2) and cfg.is_frozen() and not cfg.key_is_renamed("OLDER") and twin.key_is_renamed("OLD")


def test_a_changed_file_is_read_again(tmp_path, monkeypatch):
    original = _files.folder_of("trainers")
    for path in original.glob("*.yaml"):
        (tmp_path / path.name).write_text(path.read_text())
    monkeypatch.setattr(_files, "folder_of", lambda axis: tmp_path if axis == "trainers" else original.parent / axis)
    assert load().TRAINER.GLA.BASE == "ResidualPrompt"
    path = tmp_path / "GLA.yaml"
    path.write_text(path.read_text().replace("BASE: ResidualPrompt", "BASE: CoOp"))
    os.utime(path, ns=(1, 1))
    assert load().TRAINER.GLA.BASE == "CoOp"
    (tmp_path / "Mine.yaml").write_text("TRAINER: {CLASS: GLA}")
    assert "Mine" in config.names("trainers") and config.class_name("Mine") == "GLA"
