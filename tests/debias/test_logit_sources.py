"""Sources give the rows of the arrays in their files, and refuse files that hold no such rows."""

import itertools
import os
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from unskew.debias import classification_metrics, sources
from unskew.debias.sources import FeatureLogits, MappedLogits, SelectedRows, ShardedLogits, open_source

SAMPLES, WIDTH = 103, 7
LOGITS = torch.randn(SAMPLES, WIDTH, generator=torch.Generator().manual_seed(0))
SLICES = [slice(0, 1), slice(0, 40), slice(35, 90), slice(90, None), slice(None), slice(50, 50), slice(-3, None)]
SUFFIXES = (".npy", ".safetensors", ".parquet")


def lists(rows, fixed: bool):
    flat = pa.array(np.ascontiguousarray(rows).reshape(-1))
    if fixed:
        return pa.FixedSizeListArray.from_arrays(flat, rows.shape[1])
    return pa.ListArray.from_arrays(pa.array(np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1]), flat)


def write(path, rows: torch.Tensor, fixed: bool = True, group: int = 20):
    """Write rows; the file has other content too, where its format allows it."""
    if path.suffix == ".npy":
        np.save(path, rows.numpy())
    elif path.suffix == ".safetensors":
        save_file({"logits": rows, "other": torch.zeros(WIDTH)}, path)
    else:
        columns = {"label": pa.array(np.arange(len(rows)) % 5), "logits": lists(rows.numpy(), fixed)}
        pq.write_table(pa.table(columns), path, row_group_size=group)
    return path


def shards(folder, suffix: str, sizes, rows=LOGITS, **options):
    ends = list(itertools.accumulate(sizes))
    starts = [0, *ends[:-1]]
    numbered = enumerate(zip(starts, ends, strict=True))
    return [write(folder / f"shard_{n}{suffix}", rows[a:b].clone(), **options) for n, (a, b) in numbered]


def check_rows(source, rows=LOGITS):
    assert source.is_source and source.shape == tuple(rows.shape) and len(source) == len(rows)
    assert source.device == torch.device("cpu") and source.dtype == rows.dtype
    for part in SLICES:
        assert torch.equal(source[part], rows[part])
    for size in (1, 13, 64):  # one block after the other, as fits read
        blocks = [source[first : first + size] for first in range(0, len(source), size)]
        assert torch.equal(torch.cat(blocks), rows)


# --- files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_one_file_gives_the_bits_of_its_array(tmp_path, suffix, dtype):
    rows = LOGITS.to(dtype)
    source = open_source(write(tmp_path / f"a{suffix}", rows))
    check_rows(source, rows.to(torch.promote_types(dtype, torch.float32)))
    assert isinstance(source, MappedLogits) == (suffix == ".npy")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_shards_of_different_sizes_are_one_below_the_other(tmp_path, suffix):
    paths = shards(tmp_path, suffix, (1, 30, 2, 3, 4, 5, 6, 7, 8, 9, 10, 18))
    check_rows(ShardedLogits(paths))
    source = open_source(f"{tmp_path}/shard_*{suffix}")
    check_rows(source)  # shard_2 is before shard_10
    assert source.paths == paths
    check_rows(open_source(sorted(map(str, paths))))  # the shell's order of a pattern
    check_rows(ShardedLogits(paths[1:] + paths[:1]), torch.cat([LOGITS[1:], LOGITS[:1]]))  # the given order


def test_formats_may_be_mixed(tmp_path):
    first = write(tmp_path / "a.npy", LOGITS[:50])
    second = write(tmp_path / "b.parquet", LOGITS[50:].double())
    check_rows(ShardedLogits([first, second]), LOGITS.double())


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("group", [1, 20, 1000])
def test_lists_of_parquet_files(tmp_path, fixed, group):
    check_rows(open_source(write(tmp_path / "a.parquet", LOGITS, fixed=fixed, group=group)))


def test_large_row_groups_are_decoded_in_parts(tmp_path):
    rows = torch.arange(20_000.0).view(-1, 2)
    source = open_source(write(tmp_path / "a.parquet", rows, group=10_000))
    for first, last in ((0, 10), (9000, 9100), (10, 3000), (3000, 3001), (9999, 10_000), (0, 10_000)):
        assert torch.equal(source[first:last], rows[first:last])


def test_bfloat16_becomes_float32(tmp_path):
    save_file({"x": LOGITS.bfloat16()}, tmp_path / "a.safetensors")
    check_rows(open_source(tmp_path / "a.safetensors"), LOGITS.bfloat16().float())


def test_bytes_in_the_other_order(tmp_path):
    np.save(tmp_path / "a.npy", LOGITS.numpy().astype(">f4"))
    check_rows(MappedLogits(tmp_path / "a.npy"))


@pytest.mark.parametrize("suffix", [".safetensors", ".parquet"])
def test_a_key_selects_a_tensor_or_a_column(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".safetensors":
        save_file({"zs": LOGITS, "ft": -LOGITS}, path)
    else:
        pq.write_table(pa.table({"zs": lists(LOGITS.numpy(), True), "ft": lists(-LOGITS.numpy(), True)}), path)
    check_rows(open_source(f"{path}:ft"), -LOGITS)
    check_rows(open_source(f"{tmp_path}/*{suffix}:ft"), -LOGITS)
    check_rows(open_source(path))  # "zs" is preferred
    check_rows(open_source(path, preferred=("ft",)), -LOGITS)
    with pytest.raises(ValueError, match=r"has no 'xx'; it holds (zs|ft), (zs|ft)"):
        open_source(f"{path}:xx")
    with pytest.raises(ValueError, match="KEY"):
        open_source(path, preferred=())


def test_a_file_whose_name_looks_like_a_spec(tmp_path):
    check_rows(open_source(write(tmp_path / "a[1].npy", LOGITS)))
    check_rows(open_source(write(tmp_path / "a.npy@b.npy", LOGITS)))
    (tmp_path / "user@host").mkdir()
    check_rows(open_source(write(tmp_path / "user@host" / "a.npy", LOGITS)))


# --- features and a classifier ---------------------------------------------------------------------------

FEATURES = torch.randn(SAMPLES, 16, generator=torch.Generator().manual_seed(1)).half()
WEIGHTS = torch.randn(WIDTH, 16, generator=torch.Generator().manual_seed(2))


def of_features(features, weights=WEIGHTS, scale=100.0):
    return scale * (features.double() @ weights.double().T)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_features_and_a_classifier(tmp_path, suffix):
    shards(tmp_path, suffix, (40, 3, 60), rows=FEATURES)
    np.save(tmp_path / "w.npy", WEIGHTS.numpy())
    key = ":logits" if suffix != ".npy" else ""
    source = open_source(f"{tmp_path}/shard_*{suffix}{key}@{tmp_path}/w.npy", scale=10)
    assert source.shape == (SAMPLES, WIDTH) and source.dtype == torch.float32
    for part in SLICES:
        torch.testing.assert_close(source[part].double(), of_features(FEATURES[part], scale=10), rtol=1e-5, atol=1e-4)


def test_all_forms_of_features_are_equal(tmp_path):
    path = write(tmp_path / "a.npy", FEATURES)
    save_file({"classifier": WEIGHTS, "other": WEIGHTS[0].clone()}, tmp_path / "w.safetensors")
    classifier = f"{tmp_path}/w.safetensors"
    forms = [str(path), path, [path], FEATURES, FEATURES.numpy(), ShardedLogits([path])]
    found = [FeatureLogits(form, classifier)[:] for form in forms]
    found += [FeatureLogits(path, weights)[:] for weights in (WEIGHTS, WEIGHTS.numpy(), classifier + ":classifier")]
    found.append(open_source(f"{path}@{classifier}")[:])
    assert all(torch.equal(each, found[0]) for each in found)
    torch.testing.assert_close(found[0].double(), of_features(FEATURES), rtol=1e-5, atol=1e-3)


def test_double_features_give_double_logits():
    source = FeatureLogits(FEATURES.double(), WEIGHTS.double())
    assert source.dtype == torch.float64
    assert torch.equal(source[:], FEATURES.double() @ (WEIGHTS.double() * 100).T)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (WEIGHTS.T.contiguous(), "transpose"),
        (WEIGHTS[:, :5].clone(), r"\[C, 16\]"),
        (WEIGHTS[0].clone(), r"\[C, 16\]"),
        (torch.full_like(WEIGHTS, torch.nan), "finite"),
        (WEIGHTS.long(), "floating"),
    ],
)
def test_a_classifier_that_does_not_fit(tmp_path, weights, words):
    path = write(tmp_path / "a.npy", FEATURES)
    np.save(tmp_path / "w.npy", weights.numpy())
    for classifier in (weights, tmp_path / "w.npy"):
        with pytest.raises(ValueError, match=words):
            FeatureLogits(path, classifier)


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf")])
def test_a_scale_that_is_no_positive_number(scale):
    with pytest.raises(ValueError, match="scale"):
        FeatureLogits(FEATURES, WEIGHTS, scale)


def test_features_in_memory_are_checked():
    for features in (FEATURES[0], FEATURES.long(), FEATURES[:0]):
        with pytest.raises(ValueError, match="features"):
            FeatureLogits(features, WEIGHTS)


def test_features_that_are_not_normalised_bring_a_warning(warned):
    ones, rows = torch.nn.functional.normalize(WEIGHTS), FEATURES.float()
    FeatureLogits(torch.nn.functional.normalize(rows), ones)
    FeatureLogits(rows, WEIGHTS)  # a linear probe
    assert not warned()
    FeatureLogits(rows, ones)
    (message,) = warned()
    assert "norm" in message


# --- use -------------------------------------------------------------------------------------------------


def test_a_block_has_about_32_megabytes(tmp_path):
    assert open_source(write(tmp_path / "a.npy", LOGITS)).block_rows == 2**23 // WIDTH
    assert FeatureLogits(FEATURES, WEIGHTS).block_rows == 2**23 // (WIDTH + 16)


def test_only_slices_of_rows_are_read(tmp_path):
    source = open_source(write(tmp_path / "a.npy", LOGITS))
    for rows in (0, [0, 1], torch.tensor([0])):
        with pytest.raises(TypeError, match="slices"):
            source[rows]
    with pytest.raises(ValueError, match="step"):
        source[::2]


def test_a_function_of_arrays_refuses_a_source():
    with pytest.raises(ValueError, match="in memory"):
        classification_metrics(FeatureLogits(FEATURES, WEIGHTS), [0] * SAMPLES)


def total(task):
    source, rows = task
    return source[rows].double().sum(0)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_pickled_source_is_small_and_opens_in_another_process(tmp_path, suffix):
    rows = LOGITS.repeat(20, 20)
    source = open_source(write(tmp_path / f"a{suffix}", rows))
    np.save(tmp_path / "w.npy", torch.ones(300, rows.shape[1]).numpy())
    features = FeatureLogits(source, tmp_path / "w.npy")
    source[5:9], features[5:9]  # readers that have been used
    assert len(pickle.dumps(source)) < 2000 and len(pickle.dumps(features)) < 3000
    tasks = [(each, part) for each in (source, features) for part in (slice(0, 1000), slice(1000, None))]
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        found = list(pool.map(total, tasks))
    assert all(torch.equal(*pair) for pair in zip(found, map(total, tasks), strict=True))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_threads_share_a_source(tmp_path, suffix):
    rows = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0))
    source = open_source(write(tmp_path / f"a{suffix}", rows, group=700))
    parts = [slice(first, first + 77) for first in range(0, 5000, 77)]
    with ThreadPoolExecutor(12) as pool:
        assert torch.equal(torch.cat(list(pool.map(source.__getitem__, parts))), rows)


@pytest.mark.parametrize("block", [1, 40, 2**23])
def test_selected_rows(tmp_path, monkeypatch, block):
    monkeypatch.setattr(sources, "BLOCK", block)
    source = open_source(write(tmp_path / "a.npy", LOGITS))
    generator = torch.Generator().manual_seed(0)
    for share in (0.02, 0.2, 0.8, 1.0):
        mask = torch.rand(SAMPLES, generator=generator) < share
        check_rows(SelectedRows(source, mask), LOGITS[mask])


PROGRAM = """
import sys
from unskew.debias.sources import open_source

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) // 1024

source = open_source(sys.argv[1])
def read():
    return sum(float(source[first:first + 1000].sum()) for first in range(0, len(source), 1000))

source[:1000]
before = peak()
read()
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_reading_takes_the_memory_of_a_block(tmp_path, suffix):
    rows = torch.rand(100_000, 256).half()  # 51 MB, and 0.5 MB each block
    write(tmp_path / f"a{suffix}", rows, group=100_000)
    command = [sys.executable, "-c", PROGRAM, f"{tmp_path}/a{suffix}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 25


# --- wrong input -----------------------------------------------------------------------------------------


def refuses(spec, words, kind=ValueError):
    with pytest.raises(kind, match=words) as caught:
        open_source(spec)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_missing_files(tmp_path):
    refuses(tmp_path / "a.npy", "a.npy", FileNotFoundError)
    refuses(f"{tmp_path}/*.npy", "matches", FileNotFoundError)
    refuses([], "at least one")
    with pytest.raises(ValueError, match="at least one"):
        ShardedLogits([])


def test_a_file_that_is_listed_twice(tmp_path):
    path = write(tmp_path / "a.npy", LOGITS)
    refuses([path, path], "twice")
    refuses([path, f"{tmp_path}/*.npy"], "twice")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_shards_of_different_widths(tmp_path, suffix):
    write(tmp_path / f"a{suffix}", LOGITS)
    write(tmp_path / f"b{suffix}", LOGITS[:, :5].clone())
    refuses(f"{tmp_path}/*{suffix}", r"one width.*7\].*5\]")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_truncated_file(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}", LOGITS)
    whole = path.read_bytes()
    for size in (0, 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refuses(path, f"a{suffix}' cannot be read")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_is_cut_after_it_was_opened(tmp_path, suffix):
    source = open_source(write(tmp_path / f"a{suffix}", LOGITS))
    os.truncate(tmp_path / f"a{suffix}", 600)
    with pytest.raises(ValueError, match=f"a{suffix}' has changed"):
        source[90:]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_is_written_again_between_two_passes(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}", LOGITS)
    source = open_source(path)
    assert torch.equal(source[:50], LOGITS[:50])
    write(tmp_path / f"b{suffix}", LOGITS + 1)  # of the same shape
    os.replace(tmp_path / f"b{suffix}", path)
    os.utime(path, (0, 0))  # the clock of some file systems is coarse
    with pytest.raises(ValueError, match=f"a{suffix}' has changed while it was read: start again"):
        source[50:]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_shards_without_rows_are_left_out(tmp_path, suffix):
    """Spark writes an empty file for a part without rows."""
    check_rows(ShardedLogits(shards(tmp_path, suffix, [0, 50, 0, 53, 0])))
    refuses(tmp_path / f"shard_0{suffix}", f"shard_0{suffix}' has no rows")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_integers_and_other_shapes(tmp_path, suffix):
    refuses(write(tmp_path / f"int{suffix}", LOGITS.long()), "floating")
    if suffix != ".parquet":
        for name, rows in (("flat", LOGITS[0]), ("cube", LOGITS[None]), ("none", LOGITS[:, :0])):
            path = tmp_path / f"{name}{suffix}"
            np.save(path, rows.numpy()) if suffix == ".npy" else save_file({"x": rows.clone()}, path)
            refuses(path, r"\[N, C\]")


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


def test_objects_and_pickles_are_refused_and_never_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", np.array([[Trap()]], dtype=object))
    refuses("a.npy", "Python objects")
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Trap()))
    refuses("b.npy", "b.npy")
    torch.save(LOGITS, "c.pt")
    refuses("c.pt", "block by block")
    np.savez("d.npz", LOGITS)
    os.rename("d.npz", "d.npy")
    refuses("d.npy", "several arrays")
    assert not (tmp_path / "trapped").exists()


def test_an_array_in_column_order(tmp_path):
    np.save(tmp_path / "a.npy", np.asfortranarray(LOGITS.numpy()))
    refuses(tmp_path / "a.npy", "ascontiguousarray")


def test_no_file_but_a_folder_or_a_pipe(tmp_path):
    (tmp_path / "a.npy").mkdir()
    os.mkfifo(tmp_path / "b.npy")
    refuses(tmp_path / "a.npy", "folder")
    refuses(tmp_path / "b.npy", "pipe")


def test_parquet_files_without_rows_of_numbers(tmp_path):
    def refused(words, key="", **columns):
        pq.write_table(pa.table(columns), tmp_path / "a.parquet")
        refuses(f"{tmp_path}/a.parquet{key}", words)

    labels = pa.array([0, 1])
    refused("no column of lists.*label", label=labels)
    refused("list of numbers per row", ":label", label=labels, logits=pa.array([[0.5], [1.0]]))
    refused("floating", logits=pa.array([["a"], ["b"]]))
    refused(r"\[N, C\]|floating", logits=pa.array([None, [1.0]]))
    for rows, words in (([[0.5, 1.0], [1.0]], "must have 2 numbers"), ([[0.5, 1.0], [1.0, None]], "missing")):
        pq.write_table(pa.table({"logits": pa.array(rows)}), tmp_path / "a.parquet")
        with pytest.raises(ValueError, match=words):
            open_source(tmp_path / "a.parquet")[:]


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", LOGITS)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    refuses(path, r"pip install 'unskew\[import\]'")


def test_paths_with_an_at_sign_or_a_colon(tmp_path):
    """Folders such as user@host:1 and files such as text@v2.npy are no classifiers or keys."""
    folder = tmp_path / "user@host:1" / "x@y"
    folder.mkdir(parents=True)
    rows = FEATURES.clone()
    for number in range(2):
        write(folder / f"a_{number}.npy", rows[50 * number : 50 + 53 * number])
    np.save(folder.parent / "text@v2.npy", WEIGHTS.numpy())
    source = open_source(f"{folder}/a_*.npy@{folder.parent}/text@v2.npy")
    assert torch.equal(source[:], FeatureLogits(rows, WEIGHTS)[:])


def test_files_whose_numbers_are_equal_have_one_order(tmp_path, monkeypatch):
    paths = [write(tmp_path / f"a_{name}.npy", LOGITS) for name in ("01", "1", "02", "2", "10")]
    for order in (paths, paths[::-1]):
        monkeypatch.setattr(sources.glob, "glob", lambda _, order=order: list(map(str, order)))
        assert open_source(f"{tmp_path}/a_*.npy").paths == paths


def test_specs_that_contradict_each_other(tmp_path):
    path = write(tmp_path / "a.npy", FEATURES)
    for name in ("v", "w"):
        np.save(tmp_path / f"{name}.npy", WEIGHTS.numpy())
    refuses([f"{path}@{tmp_path}/v.npy", f"{path}@{tmp_path}/w.npy"], "one classifier")
    refuses([f"{path}@{tmp_path}/v.npy", f"{tmp_path}/v.npy"], "one classifier")
    refuses([f"{path}:a", f"{tmp_path}/v.npy:b"], "one key")
    refuses(f"{path}:a", "omit ':a'")
    with pytest.raises(ValueError, match="npy"):
        MappedLogits(tmp_path / "a.parquet")
