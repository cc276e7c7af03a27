"""Tests of the limits on YAML: aliases and merge keys may be used, within the size of a config."""

import os

import pytest
import yaml

from unskew import config
from unskew.config._yaml import MOST_LEAVES, parse


def test_aliases_and_merge_keys_are_read_as_yaml_reads_them(tmp_path):
    text = "a: &a {x: 1, y: [1, 2]}\nb: *a\nc: {<<: *a, x: 3}\nd: [*a, *a]\ne: !!set {f, g}\n"
    (tmp_path / "a.yaml").write_text(text)
    assert parse(tmp_path / "a.yaml") == yaml.safe_load(text)


@pytest.mark.parametrize(("copies", "is_read"), [(90, True), (110, False)])
def test_aliases_may_expand_to_100_000_values(tmp_path, copies, is_read):
    text = f"a: &a [{', '.join(['1'] * 1000)}]\nb: [{', '.join(['*a'] * (copies - 1))}]\n"
    (tmp_path / "a.yaml").write_text(text)
    assert (copies * 1000 < MOST_LEAVES) == is_read
    if is_read:
        assert len(parse(tmp_path / "a.yaml")["b"]) == copies - 1
    else:
        with pytest.raises(ValueError, match="100,000"):
            parse(tmp_path / "a.yaml")


def test_a_pipe_is_no_config(tmp_path):
    os.mkfifo(tmp_path / "a.yaml")
    with pytest.raises(ValueError, match="pipe"):
        config.load("digits", "micro", "GLA", config_file=str(tmp_path / "a.yaml"))


@pytest.mark.parametrize("value", ["(" * 50_000, " " + "-" * 50_000 + "1"], ids=("brackets", "signs"))
@pytest.mark.parametrize("key", ["OPTIM.MAX_EPOCH", "OPTIM.STEPSIZE", "OPTIM.LR"])
def test_a_value_that_cannot_be_parsed_names_its_key(key, value):
    with pytest.raises(ValueError, match=key) as error:
        config.load("digits", "micro", "GLA", (key, value))
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000
