"""`unskew adjust` on shards, Parquet files, and features with a classifier gives the numbers of arrays in memory."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from unskew.cli.main import main
from unskew.debias import _streamed, _streamed_scan, samples
from unskew.debias._source_labels import read_labels

SAMPLES, CLASSES, WIDTH = 3000, 6, 24


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    """Sources of this size are not loaded, and have several parts."""
    monkeypatch.setattr(_streamed_scan, "KEPT_NUMBERS", 0)
    monkeypatch.setattr(_streamed, "PART_ROWS", 400)


def world(seed: int, count: int = SAMPLES):
    """Features, two classifiers, each of half of them, and labels; the zero-shot one prefers the first classes."""
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(99)
    heads = fixed.normal(size=(CLASSES, WIDTH)) / 5
    labels = rng.integers(CLASSES, size=count)
    features = heads[labels] + 0.25 * rng.normal(size=(count, WIDTH))
    features[:, -1] = 1
    zs, ft = heads.copy(), heads.copy()
    zs[:, 12:], ft[:, :12], ft[:, -1] = 0, 0, 0
    zs[:, -1] = np.linspace(0.03, -0.03, CLASSES)
    return features.astype(np.float16), zs.astype(np.float32), ft.astype(np.float32), labels


def lists(rows):
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])


def write_shards(folder, prefix: str, arrays: dict, suffix: str, sizes=(700, 1, 1299, 1000)):
    """Write shards with the arrays as tensors, as columns, or in .npy files of their own."""
    bounds = np.cumsum([0, *sizes])
    for number, (first, last) in enumerate(itertools.pairwise(bounds)):
        part = {name: np.ascontiguousarray(array[first:last]) for name, array in arrays.items()}
        path = folder / f"{prefix}{number + 8}{suffix}"  # 8, 9, 10, 11
        if suffix == ".safetensors":
            save_file({name: torch.from_numpy(array) for name, array in part.items()}, path)
        elif suffix == ".parquet":
            columns = {name: pa.array(a) if a.ndim == 1 else lists(a) for name, a in part.items()}
            pq.write_table(pa.table(columns), path, row_group_size=300)
        else:
            for name, array in part.items():
                np.save(folder / f"{prefix}{name}_{number + 8}.npy", array)


class Files:
    """Logits of the samples and of val in all formats, in one folder."""

    def __init__(self, folder) -> None:
        self.folder = folder
        for prefix, seed in (("", 0), ("v", 1)):
            features, zs, ft, labels = world(seed)
            both = {"zs": features.astype(np.float32) @ (20 * zs.T), "ft": features.astype(np.float32) @ (20 * ft.T)}
            np.save(folder / f"{prefix}y.npy", labels)
            for name, logits in both.items():
                np.save(folder / f"{prefix}{name}.npy", logits)
            for suffix in (".npy", ".safetensors", ".parquet"):
                arrays = {**both, "label": labels, "embedding": features}
                write_shards(folder, f"{prefix}s{suffix[1:]}_", arrays, suffix)
        np.save(folder / "zs_w.npy", zs)
        save_file({"weight": torch.from_numpy(ft)}, folder / "ft_w.safetensors")

    def specs(self, form: str, prefix: str = "") -> dict[str, str]:
        """Return the specs of the zero-shot and fine-tuned logits and the labels in one form."""
        d = self.folder
        if form == "arrays":
            return {
                "zeroshot": f"{d}/{prefix}zs.npy",
                "finetuned": f"{d}/{prefix}ft.npy",
                "labels": f"{d}/{prefix}y.npy",
            }
        if form == "features":
            rows = f"{d}/{prefix}snpy_embedding_*.npy"
            halves = {"zeroshot": f"{rows}@{d}/zs_w.npy", "finetuned": f"{rows}@{d}/ft_w.safetensors:weight"}
            return {**halves, "labels": f"{d}/{prefix}sparquet_*.parquet"}
        if form == "npy":
            names = {"zeroshot": "zs", "finetuned": "ft", "labels": "label"}
            return {flag: f"{d}/{prefix}snpy_{name}_*.npy" for flag, name in names.items()}
        files = f"{d}/{prefix}s{form}_*.{form}"
        return {"zeroshot": f"{files}:zs", "finetuned": f"{files}:ft", "labels": f"{files}:label"}

    def flags(self, form: str, *more: str, omit=(), val: str = "") -> list[str]:
        specs = self.specs(form)
        if val:
            specs |= {f"val-{name}": spec for name, spec in self.specs(val, "v").items()}
        words = [word for name, spec in specs.items() if name not in omit for word in (f"--{name}", spec)]
        return ["adjust", *words, "--logit-scale", "20", *more]

    def adjust(self, capsys, *args, **options):
        """Return the printed text, the tensors and the metadata."""
        out = self.folder / "out.safetensors"
        assert main([*self.flags(*args, **options), "--out", str(out)]) == 0
        with safe_open(out, "pt") as file:
            return capsys.readouterr().out, load_file(out), file.metadata()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return Files(tmp_path_factory.mktemp("files"))


def check_equal(found, expected, atol=1e-4):
    said, tensors, facts = found
    text, arrays, true_facts = expected
    assert said == text and facts["description"] == true_facts["description"]
    for name in ("logits", "log_q"):
        assert tensors[name].dtype == arrays[name].dtype and tensors[name].shape == arrays[name].shape
        torch.testing.assert_close(tensors[name], arrays[name], rtol=0, atol=atol)
    for name in facts.keys() - {"description"}:
        assert float(facts[name]) == pytest.approx(float(true_facts[name]), abs=1e-5, nan_ok=True)


FORMS = ("npy", "safetensors", "parquet", "features")


@pytest.mark.parametrize("form", FORMS)
def test_val_fits_and_the_samples_are_scored(files, form, capsys):
    expected = files.adjust(capsys, "arrays", val="arrays")
    assert "GLA" in expected[0] and "from 3,000 val samples" in expected[0]
    check_equal(files.adjust(capsys, form, val=form), expected)
    check_equal(files.adjust(capsys, form, val="arrays"), expected)
    check_equal(files.adjust(capsys, "arrays", val=form), expected)


@pytest.mark.parametrize("form", FORMS)
def test_cross_fitting(files, form, capsys):
    expected = files.adjust(capsys, "arrays")
    assert "cross-fitted" in expected[0]
    check_equal(files.adjust(capsys, form), expected)


def test_large_files_are_streamed(files, capsys, monkeypatch):
    expected = files.adjust(capsys, "arrays")
    monkeypatch.setattr(samples, "STREAM_FROM", 10)
    opened = []
    real = samples.open_source
    monkeypatch.setattr(samples, "open_source", lambda *a, **k: opened.append(a) or real(*a, **k))
    check_equal(files.adjust(capsys, "arrays"), expected)
    assert opened


@pytest.mark.parametrize("options", [(), ("--method", "unlabelled"), ("--temperature", "none")])
def test_without_labels_of_the_samples(files, capsys, options):
    val = "" if options == ("--temperature", "none") else "arrays"
    expected = files.adjust(capsys, "arrays", *options, omit=("labels",), val=val)
    check_equal(files.adjust(capsys, "features", *options, omit=("labels",), val=val), expected)


@pytest.mark.parametrize("form", ["arrays", "parquet"])
def test_the_zero_shot_half_alone(files, capsys, form):
    said, tensors, facts = files.adjust(capsys, form, omit=("finetuned", "labels"))
    assert "|" not in said and "zs/T - log q" in said and "fine-tuned" in said and "GLA's" not in said
    zs = torch.from_numpy(np.load(files.folder / "zs.npy"))
    torch.testing.assert_close(tensors["logits"], zs - tensors["log_q"], rtol=0, atol=1e-5)
    assert facts["finetuned_temperature"] == "nan"
    labelled, _, _ = files.adjust(capsys, form, omit=("finetuned",))
    assert "| zero-shot - log q " in labelled and "| GLA" not in labelled and "cross-fitted" in labelled


def test_the_zero_shot_half_alone_is_equal_in_all_forms(files, capsys):
    for options in ({"omit": ("finetuned",)}, {"omit": ("finetuned", "labels")}):
        expected = files.adjust(capsys, "arrays", **options)
        for form in FORMS:
            check_equal(files.adjust(capsys, form, **options), expected)


def test_other_options(files, capsys):
    np.save(files.folder / "target.npy", np.arange(1.0, CLASSES + 1))
    np.save(files.folder / "counts.npy", np.arange(10.0, CLASSES + 10))
    target, counts = (str(files.folder / f"{name}.npy") for name in ("target", "counts"))
    for options in (("--target", target), ("--train-counts", counts, "--combine", "fitted"), ("--prior", counts)):
        expected = files.adjust(capsys, "arrays", *options, val="arrays")
        check_equal(files.adjust(capsys, "safetensors", *options, val="safetensors"), expected)


def test_two_processes_give_the_bits_of_one(files, capsys):
    said, alone, facts = files.adjust(capsys, "features", val="features")
    text, both, same = files.adjust(capsys, "features", "--jobs", "2", val="features")
    assert said == text and facts == same
    assert all(torch.equal(alone[name], both[name]) for name in ("logits", "log_q"))


@pytest.mark.ray
def test_ray_gives_the_bits_of_one_process(files, capsys, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "local")
    said, alone, facts = files.adjust(capsys, "features", val="features")
    text, spread, same = files.adjust(capsys, "features", "--launcher", "ray", val="features")
    assert said == text and facts == same
    assert all(torch.equal(alone[name], spread[name]) for name in ("logits", "log_q"))


# --- labels ----------------------------------------------------------------------------------------------


def test_labels_of_all_formats(files):
    expected = torch.from_numpy(np.load(files.folder / "y.npy"))
    for form in ("arrays", *FORMS):
        assert torch.equal(read_labels(files.specs(form)["labels"]), expected)
    paths = sorted(str(path) for path in files.folder.glob("snpy_label_*.npy"))
    assert torch.equal(read_labels(paths), expected)


def test_wrong_labels(tmp_path):
    def refuses(words, **columns):
        pq.write_table(pa.table(columns), tmp_path / "a.parquet")
        with pytest.raises(ValueError, match=words) as caught:
            read_labels(f"{tmp_path}/a.parquet")
        assert "\n" not in str(caught.value)

    refuses("missing", label=pa.array([1, None]))
    refuses("integers", label=pa.array([0.5, 1.0]))
    refuses("KEY", one=pa.array([1]), two=pa.array([1]))
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"a\.parquet' cannot be read"):
        read_labels(f"{tmp_path}/a.parquet")
    with pytest.raises(FileNotFoundError, match="matches"):
        read_labels(f"{tmp_path}/*.npy")
    with pytest.raises(ValueError, match="one key"):
        read_labels(["a.parquet:x", "b.parquet:y"])


# --- mistakes --------------------------------------------------------------------------------------------


def refused(capsys, words: list[str], *expected: str) -> None:
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert all(text in said.err for text in expected), said.err


def test_mistakes_are_one_line_and_write_nothing(files, capsys, tmp_path):
    out = str(tmp_path / "out.safetensors")
    np.save(tmp_path / "short.npy", np.zeros(5, np.int64))
    np.save(tmp_path / "narrow.npy", np.zeros((CLASSES, 3), np.float32))
    features = f"{files.folder}/snpy_embedding_*.npy"
    given = {"--zeroshot": f"{features}@{files.folder}/zs_w.npy", "--out": out}

    def refuses(changes: dict[str, str], *expected: str) -> None:
        words = [word for pair in (given | changes).items() for word in pair]
        refused(capsys, ["adjust", *words], *expected)

    refuses({"--labels": f"{tmp_path}/short.npy"}, "--labels", "3000 integers", "got 5")
    refuses({"--zeroshot": f"{features}@{tmp_path}/narrow.npy"}, "narrow.npy", "[C, 24]")
    refuses({"--zeroshot": f"{tmp_path}/none_*.npy"}, "none_*.npy")
    refuses({"--finetuned": f"{files.folder}/vsnpy_zs_8.npy"}, "[3000, 6]", "[700, 6]")
    refuses({"--finetuned": f"{tmp_path}/a.pt"}, "a.pt", "block by block")
    refuses({"--logit-scale": "0"}, "scale")
    refuses({"--jobs": "0"}, "--jobs")
    refuses({"--combine": "fitted"}, "--finetuned")
    refuses({"--val-labels": f"{files.folder}/y.npy"}, "--val-zeroshot")
    pytest.importorskip("ot")
    refuses({"--finetuned": given["--zeroshot"], "--combine": "otter"}, "otter")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["narrow.npy", "short.npy"]


def test_a_logit_that_is_not_finite_is_found_by_its_row(files, capsys, tmp_path):
    zs = np.load(files.folder / "zs.npy")
    zs[2345, 3] = np.nan
    write_shards(tmp_path, "bad_", {"zs": zs}, ".npy")
    (tmp_path / "out.safetensors").write_bytes(b"an earlier result")
    words = ["adjust", "--zeroshot", f"{tmp_path}/bad_zs_*.npy", "--out", f"{tmp_path}/out.safetensors"]
    val = files.specs("arrays", "v")
    for more in ([], ["--val-zeroshot", val["zeroshot"], "--val-labels", val["labels"]]):
        refused(capsys, [*words, *more], "2345", "NaN", f" of '{tmp_path}/bad_zs_")
    assert (tmp_path / "out.safetensors").read_bytes() == b"an earlier result"
    assert not list(tmp_path.glob(".*"))


def test_out_never_replaces_a_shard(files, capsys):
    path = files.folder / "ssafetensors_9.safetensors"
    before = path.read_bytes()
    refused(capsys, files.flags("safetensors", "--out", str(path)), "--out")
    assert path.read_bytes() == before


# --- memory ----------------------------------------------------------------------------------------------

PROGRAM = """
import sys
from unskew.cli.main import main

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) // 1024

peaks = []
for count in (100000, 400000):
    flags = [f"--{half}={sys.argv[1]}/{count}.npy@{sys.argv[1]}/w.npy" for half in ("zeroshot", "finetuned")]
    labels = f"--labels={sys.argv[1]}/{count}_y.npy"
    assert main(["adjust", *flags, labels, f"--out={sys.argv[1]}/out.safetensors", "--method", "map"]) == 0
    peaks.append(peak())
print(*peaks)
"""


@pytest.mark.world
@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM")
def test_memory_does_not_grow_with_the_samples(tmp_path):
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(200, 8)).astype(np.float32)
    np.save(tmp_path / "w.npy", weights / np.linalg.norm(weights, axis=1, keepdims=True))
    for count in (100_000, 400_000):  # the logits of each half have 80 and 320 MB
        labels = rng.integers(200, size=count)
        np.save(tmp_path / f"{count}_y.npy", labels)
        features = weights[labels] / 3 + 0.3 * rng.normal(size=(count, 8))
        np.save(tmp_path / f"{count}.npy", features.astype(np.float32))
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=900, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    few, many = map(int, done.stdout.splitlines()[-1].split())
    assert many < few + 200  # of the 480 MB more; the allocator keeps up to 110
