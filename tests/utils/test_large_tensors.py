"""A tensor that is written block by block gives the file of the whole tensor."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from unskew.utils.tensor_files import METADATA_ROOM, Blocks, read_safetensors, write_large_safetensors

ROWS, OTHER = torch.randn(50, 3), torch.randn(3)


def write(path, blocks, metadata=None, samples=50, other=OTHER, dtype=torch.float32):
    tensors = {"logits": Blocks((samples, 3), dtype, blocks), "log_q": other}
    with path.open("wb") as file:
        write_large_safetensors(file, tensors, lambda: metadata or {})
    return path


def test_blocks_and_metadata_that_are_known_last(tmp_path):
    path = write(tmp_path / "a.safetensors", ROWS.split(7), {"description": "a\nb ü", "rho": "0.5"})
    for found in (load_file(path), read_safetensors(path)):
        assert torch.equal(found["logits"], ROWS) and torch.equal(found["log_q"], OTHER) and len(found) == 2
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"description": "a\nb ü", "rho": "0.5"}
        assert torch.equal(file.get_slice("logits")[10:13], ROWS[10:13])


def test_the_metadata_may_fill_their_room_and_no_more(tmp_path):
    write(tmp_path / "a.safetensors", [ROWS], {"x": "y" * (METADATA_ROOM - 50)})
    assert torch.equal(load_file(tmp_path / "a.safetensors")["logits"], ROWS)
    with pytest.raises(ValueError, match="metadata"):
        write(tmp_path / "b.safetensors", [ROWS], {"x": "y" * METADATA_ROOM})


def test_larger_numbers_come_first_so_that_all_are_aligned(tmp_path):
    path = write(tmp_path / "a.safetensors", ROWS[:49].split(7), samples=49, other=OTHER.double())
    assert torch.equal(load_file(path)["log_q"], OTHER.double())
    content = path.read_bytes()
    assert content.index(OTHER.double().numpy().tobytes()) < content.index(ROWS[:1].numpy().tobytes())


def test_blocks_of_other_shapes_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="40 rows"):
        write(tmp_path / "a.safetensors", [ROWS[:40]])
    for block in (ROWS[:, :2], ROWS.double()):
        with pytest.raises(ValueError, match="a block of 'logits'"):
            write(tmp_path / "a.safetensors", [block])
