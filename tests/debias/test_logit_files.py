import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from unskew.debias.io import read_tensor
from unskew.debias.samples import read_sample

LOGITS = torch.tensor([[1.5, -2.0, 0.25], [0.0, 3.0, -1.0]])
LABELS = torch.tensor([0, 2])


def write(path, content) -> str:
    """Write a tensor or a dict of them in the format that the name says."""
    if path.suffix == ".npy":
        np.save(path, content.numpy())
    elif path.suffix == ".pt":
        torch.save(content, path)
    else:
        save_file(content if isinstance(content, dict) else {"x": content}, path)
    return str(path)


@pytest.mark.parametrize("suffix", [".npy", ".pt", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_every_format_gives_back_what_was_saved(tmp_path, suffix, dtype):
    read = read_tensor(write(tmp_path / f"a{suffix}", LOGITS.to(dtype)))
    assert read.dtype == dtype
    assert torch.equal(read, LOGITS.to(dtype))


def test_numpy_layouts(tmp_path):
    for name, array in {"big": LOGITS.numpy().astype(">f4"), "fortran": np.asfortranarray(LOGITS.numpy())}.items():
        np.save(tmp_path / f"{name}.npy", array)
        assert torch.equal(read_tensor(str(tmp_path / f"{name}.npy")), LOGITS)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_key_is_given_or_found(tmp_path, suffix):
    content = {"logits": LOGITS, "ft": LOGITS + 1, "zs": LOGITS + 2, "labels": LABELS}
    file = write(tmp_path / f"a{suffix}", content)
    for name, tensor in content.items():
        assert torch.equal(read_tensor(f"{file}:{name}"), tensor)
    assert torch.equal(read_tensor(file, ("none", "ft", "zs")), content["ft"])
    sample = read_sample(file, file, file)
    assert torch.equal(sample.zs, content["zs"])
    assert torch.equal(sample.ft, content["ft"])
    assert torch.equal(sample.labels, LABELS)
    with pytest.raises(ValueError, match=r"'zz'.*logits"):
        read_tensor(f"{file}:zz")
    with pytest.raises(ValueError, match=r"zs.*:KEY"):
        read_tensor(file)


def test_without_halves_the_runs_own_logits_serve(tmp_path):
    file = write(tmp_path / "a.safetensors", {"logits": LOGITS, "labels": LABELS})
    assert torch.equal(read_sample(file, file).ft, LOGITS)


def test_a_colon_may_be_part_of_a_files_name(tmp_path):
    assert torch.equal(read_tensor(write(tmp_path / "a.pt:b.npy", LOGITS)), LOGITS)


def test_a_lone_array_has_no_keys(tmp_path):
    for suffix in (".npy", ".pt"):
        with pytest.raises(ValueError, match="'zs'"):
            read_tensor(write(tmp_path / f"a{suffix}", LOGITS) + ":zs")
    torch.save({"epoch": 3}, tmp_path / "b.pt")
    with pytest.raises(ValueError, match="no tensor"):
        read_tensor(str(tmp_path / "b.pt"))


class Bomb:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_no_pickled_object_is_loaded(tmp_path):
    mark, bomb = tmp_path / "exploded", Bomb(tmp_path / "exploded")
    with (tmp_path / "a.pkl").open("wb") as file:
        pickle.dump(bomb, file)
    torch.save({"logits": bomb}, tmp_path / "new.pt")
    torch.save({"logits": bomb}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(bomb))
    np.save(tmp_path / "array.npy", np.array([bomb, bomb], dtype=object), allow_pickle=True)
    (tmp_path / "bare.npy").write_bytes(pickle.dumps(bomb))
    with pytest.raises(ValueError, match=r"a\.pkl"):
        read_tensor(str(tmp_path / "a.pkl"))
    for name in ("new.pt", "old.pt", "bare.pt", "array.npy", "bare.npy"):
        with pytest.raises(ValueError, match=f"{name}.*Python objects") as caught:
            read_tensor(str(tmp_path / name))
        assert "weights_only" not in str(caught.value)  # no advice to load it all the same
    assert not mark.exists()
    pickle.loads(pickle.dumps(bomb)).close()
    assert mark.exists()  # it would have been seen


@pytest.mark.parametrize("suffix", [".npy", ".pt", ".safetensors"])
@pytest.mark.parametrize("share", [0, 0.3, 0.9])
def test_a_file_that_is_cut_short_is_named(tmp_path, suffix, share):
    path = tmp_path / f"cut{suffix}"
    write(path, torch.zeros(50, 40))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=f"cut{suffix}") as caught:
        read_tensor(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [np.array(["a", "b"]), np.zeros(2, dtype=[("x", "f4")])])
def test_arrays_of_other_things_than_numbers(tmp_path, content):
    np.save(tmp_path / "a.npy", content)
    with pytest.raises(ValueError, match=r"a\.npy"):
        read_tensor(str(tmp_path / "a.npy"))


def test_logits_are_float32_at_least_and_labels_any_integers(tmp_path):
    logits = write(tmp_path / "z.npy", LOGITS.half())
    for kind in (np.uint8, np.int16, np.uint16, np.uint32, np.uint64):
        np.save(tmp_path / "y.npy", LABELS.numpy().astype(kind))
        sample = read_sample(logits, logits, str(tmp_path / "y.npy"))
        assert (sample.zs.dtype, sample.labels.dtype) == (torch.float32, torch.int64)
        assert sample.labels.tolist() == [0, 2]


def test_a_tensor_that_is_not_dense_and_real_is_refused(tmp_path, recwarn):
    quantised = torch.quantize_per_tensor(LOGITS, 1.0, 0, torch.quint8)
    for number, odd in enumerate((LOGITS.to_sparse(), LOGITS.cfloat(), LOGITS.to("meta"), quantised)):
        path = write(tmp_path / f"odd{number}.pt", odd)
        recwarn.clear()
        with pytest.raises(ValueError, match=f"odd{number}"):
            read_tensor(path)
        assert not recwarn.list  # a command prints one line
    with pytest.raises(ValueError, match="complex128"):
        read_tensor(write(tmp_path / "odd.npy", LOGITS.to(torch.cdouble)))
