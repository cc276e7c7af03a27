"""Files of tensors that hold each tensor once, and formulas for other names and sums."""

import io
import json

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from unskew.utils import derived_tensors
from unskew.utils.tensor_files import NUMBERS, read_safetensors, write_safetensors

A, B, ROW = torch.randn(5, 3), torch.randn(5, 3), torch.randn(3)


def write(path, content):
    held, formulas = derived_tensors.split(content)
    with path.open("wb") as file:
        write_safetensors(file, held, formulas)
    return path


def test_a_tensor_with_two_names_is_written_once(tmp_path):
    path = write(tmp_path / "a.safetensors", {"logits": A, "labels": torch.arange(5), "gla": A.detach()})
    assert load_file(path).keys() == {"logits", "labels"}
    found = read_safetensors(path)
    assert found.keys() == {"logits", "labels", "gla"}
    assert torch.equal(found["gla"], A) and torch.equal(found["labels"], torch.arange(5))


def test_equal_numbers_in_other_memory_are_other_tensors(tmp_path):
    assert load_file(write(tmp_path / "a.safetensors", {"a": A, "b": A.clone()})).keys() == {"a", "b"}


def test_sums_are_computed_when_the_file_is_read(tmp_path):
    content = {"zs": A, "ft": B, "ensemble": ("ft", "zs"), "debiased": ("zs", -ROW)}
    path = write(tmp_path / "a.safetensors", content)
    assert load_file(path).keys() == {"zs", "ft", "debiased.term"}
    found = read_safetensors(path)
    assert found.keys() == content.keys()
    assert torch.equal(found["ensemble"], B + A) and torch.equal(found["debiased"], A - ROW)


def test_a_sum_has_the_type_of_its_first_term_and_half_precision_becomes_single(tmp_path):
    content = {"zs": A.half(), "ft": B, "x": ("zs", "ft"), "y": ("ft", ROW.double()), "other": A, "z": ("zs", "again")}
    found = read_safetensors(write(tmp_path / "a.safetensors", {**content, "again": content["other"]}))
    assert torch.equal(found["x"], A.half().float() + B)
    assert torch.equal(found["y"], (B + ROW.double()).float())
    assert torch.equal(found["z"], A.half().float() + A)


@pytest.mark.parametrize("dtype", [*NUMBERS, torch.bool])
def test_every_type_can_be_written_and_is_aligned(dtype, tmp_path):
    content = {"one": torch.ones(1, dtype=torch.int8), "x": torch.ones(3, 2).to(dtype).T, "labels": torch.arange(3)}
    file = io.BytesIO()
    write_safetensors(file, content, {})
    found = load(file.getvalue())
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in content.items()
    )
    size = int.from_bytes(file.getvalue()[:8], "little")
    header = json.loads(file.getvalue()[8 : 8 + size])
    assert size % 8 == 0 and "__metadata__" not in header
    assert all(entry["data_offsets"][0] % content[name].element_size() == 0 for name, entry in header.items())


@pytest.mark.parametrize(
    "formulas",
    [
        {"format": "pt"},  # of other programs
        {"x": "a + missing"},
        {"x": "a + b + a"},
        {"x": "column + row"},  # would be large
        {"a": "b"},  # is in the file
        {f"x{number}": "a + b" for number in range(65)},
    ],
)
def test_other_metadata_are_ignored(formulas, tmp_path):
    held = {"a": A, "b": B, "column": torch.ones(1000, 1), "row": torch.ones(1, 1000)}
    save_file(held, tmp_path / "a.safetensors", formulas)
    found = read_safetensors(tmp_path / "a.safetensors")
    assert found.keys() == held.keys() and all(torch.equal(found[name], tensor) for name, tensor in held.items())


def test_sums_that_readers_cannot_compute_are_not_expressible():
    names = ["a", "b + c", "s", "t", "u", "v", "v.term", *(f"x{n}" for n in range(100))]
    sums = {"s": ("a", ROW), "t": ("s", "a"), "u": ("b + c", ROW), "v": ("a", ROW), "missing": ("a", ROW)}
    assert derived_tensors.expressible(sums, names) == {"s": ("a", ROW)}
    assert derived_tensors.expressible({"s": ("a", "missing")}, names) == {}
    many = {f"x{n}": ("a", "a") for n in range(100)}
    path_content = {"a": A, **derived_tensors.expressible(many, names)}
    assert derived_tensors.evaluate(*derived_tensors.split(path_content)).keys() == path_content.keys()


def test_a_name_with_a_plus_can_have_a_second_name(tmp_path):
    found = read_safetensors(write(tmp_path / "a.safetensors", {"x + y": A, "z": A}))
    assert found.keys() == {"x + y", "z"} and torch.equal(found["z"], A)


def test_names_and_metadata_that_are_not_utf8_leave_a_readable_file(tmp_path):
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        write_safetensors(file, {"part\udcff": A}, {"other": "part\udcff", "note\udcff": "x"})
    found = read_safetensors(path)
    assert found.keys() == {r"part\udcff", "other"} and torch.equal(found["other"], A)
