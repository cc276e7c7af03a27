"""Checks of ``model.json``, the file from which a finished run's model is built."""

import json

import pytest

from unskew.data.saved_run import read_model

MODEL = {
    "version": 1,
    "dataset": "digits",
    "trainer": "GLA",
    "classes": ["zero", "one"],
    "template": "",
    "context_init": "",
    "templates": ["a {}."],
    "backbone": {"name": "micro", "id": "micro-1", "architecture": "", "tag": ""},
    "preprocessing": {
        "size": 32,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "fill_color": 0,
        "crops": 1,
        "upright": True,
    },
    "license": "MIT",
    "temperature": 1.0,
    "calibration": "trainer",
    "transductive": False,
}
PART = {key: MODEL[key] for key in ("backbone", "preprocessing", "license")}


def read(tmp_path, model):
    (tmp_path / "model.json").write_text(json.dumps(model))
    return read_model(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"models": [PART, PART]},
        {"test_classes": [1]},
        {"preprocessing": MODEL["preprocessing"] | {"size": [32, 48]}},
    ],
)
def test_a_whole_file_is_read(change, tmp_path):
    assert read(tmp_path, MODEL | change) == MODEL | change


@pytest.mark.parametrize("key", MODEL)
def test_a_key_that_is_missing_or_of_another_kind_is_named(key, tmp_path):
    for model in ({name: value for name, value in MODEL.items() if name != key}, MODEL | {key: None}):
        with pytest.raises(ValueError, match=key):
            read(tmp_path, model)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("temperature", value) for value in (True, 0, -1.0, float("nan"), float("inf"), 10**400)],
        *[("test_classes", value) for value in ([], [0, 0], [2], [-1], [True], [0.0], 1)],
        *[("models", value) for value in ([], {}, [1])],
        ("classes", []),
        ("transductive", 1),
    ],
)
def test_a_wrong_value_is_named(key, value, tmp_path):
    with pytest.raises(ValueError, match=key):
        read(tmp_path, MODEL | {key: value})


@pytest.mark.parametrize(
    ("node", "key", "value"),
    [
        *[("backbone", key, None) for key in ("name", "id", "architecture", "tag")],
        *[("preprocessing", key, None) for key in ("size", "interpolation", "resize_mode", "mean", "std", "crops")],
        *[("preprocessing", "size", value) for value in ([], 0, True, ["32"], [32, -1])],
        *[("preprocessing", "crops", value) for value in (0, True, 1.5)],
    ],
)
def test_a_wrong_value_of_a_backbone_is_named(node, key, value, tmp_path):
    part = PART | {node: PART[node] | {key: value}}
    for model in (MODEL | part, MODEL | {"models": [PART, part]}):
        with pytest.raises(ValueError, match=key):
            read(tmp_path, model)
