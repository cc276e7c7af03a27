"""A corpus of hostile files, and a program that runs readers through it under a limit of memory and time.

``python hostile.py FOLDER`` writes the corpus and prints ``{reader: {damage: outcome}}`` as JSON. An outcome is
"refused" for an error of one line, "read" for a result, and else what went wrong.
"""

import io
import json
import os
import pickle
import resource
import signal
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from scipy.io import savemat

MEMORY, SECONDS = 2 * 2**30, 5

OPEN_FILES = ("scripts' pickles",)  # readers of a file that the script has opened


# --- pickles -------------------------------------------------------------------------------------------


def call(name, *arguments):
    """Opcodes that call ``name`` ("builtins range") with pickled arguments; they leave the result on the stack."""
    module, function = name.split()
    return b"c%s\n%s\n(%stR" % (module.encode(), function.encode(), b"".join(arguments))


def number(value):
    return b"L%dL\n" % value


HUGE = number(10**10)
DOUBLED = b"]q\0" + b"".join(b"\x86q\0h\0" if i else b"0)q\0h\0" for i in range(61)) + b"0"  # (t, t) sixty times
RANGE = call("builtins range", HUGE)

PICKLES = {
    "range": RANGE,
    "a list of a range": call("builtins list", RANGE),
    "bytes": call("builtins bytes", HUGE),
    "a bytearray": call("builtins bytearray", HUGE),
    "a set of a range": call("builtins set", RANGE),
    "a tuple of a range": call("builtins tuple", RANGE),
    "a Counter of a range": call("collections Counter", RANGE),
    "a deque of a range": call("collections deque", RANGE, number(3)),
    "a slice of a list": b"]" + call("builtins slice", number(0), number(0)) + RANGE + b"s",
    "a doubled tuple as key": b"}" + DOUBLED + b"Ns",
    "a doubled tuple in a set": call("builtins set", b"]" + DOUBLED + b"a"),
    "a doubled tuple as text": call("builtins str", DOUBLED),
    "a doubled slice as key": b"}" + call("builtins slice", DOUBLED, DOUBLED) + b"Ns",
    "bytes claimed": b"\x8e" + struct.pack("<Q", 10**12),
    "text claimed": b"X" + struct.pack("<I", 2**31),
    "a frame claimed": b"\x95" + struct.pack("<Q", 10**13),
    "a number claimed": b"\x8b" + struct.pack("<i", 2**31 - 1),
    "many small lists": b"]"
    + b"".join(call("builtins list", call("builtins range", number(900_000))) + b"a" for _ in range(300)),
    "deep lists": b"]" * 100_000 + b"a" * 99_999,
    "another class": call("os system", b"Vtrue\n"),
    "a changed class": b"cdassl.data.datasets.base_dataset\nDatum\n(N}Vlabel\nNstb",
    "no pickle": b"no pickle",
}
PICKLES = {name: b"\x80\x02" + body + b"." for name, body in PICKLES.items()} | {"empty": b""}


# --- other formats -------------------------------------------------------------------------------------


def npy(header):
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text + b"\0" * 64


ARRAYS = {
    "terabytes": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000)}"),
    "a wide type": npy("{'descr': [('a', '<f8', (1000000, 1000000))], 'fortran_order': False, 'shape': (1,)}"),
    "a negative shape": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 2)}"),
    "a deep header": npy("(" * 5000 + ")" * 5000),
    "objects": npy("{'descr': '|O', 'fortran_order': False, 'shape': (2,)}"),
    "no header": b"\x93NUMPY\x01\0\xff\xff",
    "text": b"text",
    "empty": b"",
}


def torch_file(content, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def torch_archive(body, padding=0):
    """A file of torch.save whose pickle is replaced; ``padding`` compressed bytes are added."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if padding else zipfile.ZIP_STORED) as archive:
        archive.writestr("a/data.pkl", body)
        archive.writestr("a/version", "3\n")
        archive.writestr("a/byteorder", "little")
        archive.writestr("a/data/0", b"\0" * max(padding, 16))
    return file.getvalue()


TENSORS = {
    "complex": torch_file({"logits": torch.zeros(4, 3, dtype=torch.cfloat)}),
    "sparse": torch_file({"logits": torch.zeros(4, 3).to_sparse()}),
    "quantised": torch_file({"logits": torch.quantize_per_tensor(torch.zeros(4, 3), 0.1, 0, torch.quint8)}),
    "meta": torch_file({"logits": torch.zeros(4, 3, device="meta")}),
    "expanded": torch_file({"logits": torch.zeros(1).expand(10**6, 10**6)}),
    "float8": torch_file({"logits": torch.zeros(4, 3).to(torch.float8_e4m3fn)}),
    "compressed": torch_archive(pickle.dumps({}, 2), padding=10**8),
    "truncated": torch_file({"logits": torch.zeros(400, 3)})[:-700],
    "a list": torch_file([1, 2]),
    "keys of tuples": torch_file({(1, 2): torch.zeros(2, 3), 3: torch.zeros(2, 3)}),
    **{f"{name}, in an archive": torch_archive(body) for name, body in PICKLES.items()},
    **{f"{name}, alone": body for name, body in PICKLES.items()},
}
STATES = {
    "no mapping": torch_file({"state_dict": [1], "epoch": 1}),
    "numbers as keys": torch_file({"state_dict": {1: torch.zeros(2)}}),
    "text as epoch": torch_file({"state_dict": {}, "epoch": "one"}),
    "a list as result": torch_file({"state_dict": {}, "epoch": 1, "val_result": [1]}),
    "meta weights": torch_file({"state_dict": {"w": torch.zeros(2, device="meta")}, "epoch": 1}),
}


def safetensors(header, body=b""):
    return struct.pack("<Q", len(header)) + header + body


SAFETENSORS = {
    "a huge header": struct.pack("<Q", 2**60) + b"{}",
    "terabytes": safetensors(b'{"logits":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4000000000000]}}'),
    "other offsets": safetensors(b'{"logits":{"dtype":"F32","shape":[2,2],"data_offsets":[0,4]}}', b"\0" * 4),
    "deep": safetensors(b"[" * 100_000),
    "float8": save({"logits": torch.zeros(4, 3).to(torch.float8_e4m3fn)}),
    "truncated": save({"logits": torch.zeros(4, 3)})[:-5],
    "empty": b"",
}

TEXTS = {
    "deep": b"[" * 200_000,
    "deep objects": b'{"a":' * 200_000,
    "no UTF-8": b"\xff\xfe\xfa",
    "a long number": b"9" * 100_000,
    "a null byte": b"a\0b",
    "an open quote": b'path,label\n"' + b"x" * 200_000,
    "a list of lists": b"[[[1]]]",
    "a number": b"3",
    "empty": b"",
}


def bomb(pattern, first="[1, 2, 3, 4, 5, 6, 7, 8, 9]", levels=12):
    lines = [f"a0: &a0 {first}"]
    return "\n".join(lines + [pattern.replace("NEW", f"a{i}").replace("OLD", f"a{i - 1}") for i in range(1, levels)])


YAMLS = {
    "aliases in lists": bomb("NEW: &NEW [" + ", ".join(["*OLD"] * 9) + "]"),
    "aliases in maps": bomb("NEW: &NEW {" + ", ".join(f"k{i}: *OLD" for i in range(9)) + "}"),
    "merge keys": bomb("NEW: &NEW {<<: [" + ", ".join(["*OLD"] * 9) + "]}", "{a: 1, b: 2}"),
    "repeated merge keys": bomb("NEW: &NEW {" + ", ".join(["<<: *OLD"] * 9) + "}", "{a: 1, b: 2}"),
    "an endless alias": "a: &a [*a]",
    "an endless map": "a: &a {b: *a}",
    "a Python object": "!!python/object/apply:os.system [true]",
    "a list as key": "? [1]\n: 2",
    "a wrong date": "a: 2020-99-99",
    **{
        f"SCHEDULES, {value}": f"SCHEDULES: {value}"
        for value in ("3", "{a: 1}", "[3]", "[{shots: 3, set: {}}]", "[{}]")
    },
    **{f"TRAINER, {value}": f"TRAINER: {value}" for value in ("3", "[1]", "{GLA: 3}", "text")},
    **{
        f"OPTIM, {value}": f"OPTIM: {value}"
        for value in ("3", "[1]", "{LR: [1]}", "{LR: 0x" + "f" * 9000 + "}", "{LR: 2020-01-01}")
    },
}
YAMLS = {name: text.encode() for name, text in YAMLS.items()} | TEXTS


# Bytes at which SciPy's reader ends the process with a segmentation fault.
CRASHES = ((144, 5), (145, 14), (172, 16), (184, 0))


def damaged_mats(folder):
    struct_ = np.array([(1, "x")], dtype=[("a", "i4"), ("b", "O")])
    content = {"labels": np.arange(40), "other": np.array(["a", "bb"], dtype=object), "s": struct_}
    savemat(folder / "whole.mat", content)
    whole = (folder / "whole.mat").read_bytes()
    crashes = {f"byte {place} is {value}": (place, bytes([value])) for place, value in CRASHES}
    flips = {f"byte {place}": (place, b"\xff\x7f") for place in range(126, 700, 140)}
    damaged = {name: whole[:at] + new + whole[at + len(new) :] for name, (at, new) in (crashes | flips).items()}
    return {"cut": whole[:200], "text": b"no MATLAB file" * 20, "empty": b"", **damaged}


# --- readers -------------------------------------------------------------------------------------------


def readers(folder):
    """Return ``{name: (suffix, function of a path, corpus)}``."""
    from unskew import config
    from unskew.dassl.data import Datum
    from unskew.data.custom_csv import read_csv
    from unskew.data.names import read_names
    from unskew.data.splits import read_mat, read_split, read_table
    from unskew.debias.io import read_prior
    from unskew.debias.samples import read_sample
    from unskew.debias.sources import open_source
    from unskew.engine.checkpoint import best_result, load_checkpoint
    from unskew.runs.run import load_run
    from unskew.runs.tables import read_metrics
    from unskew.utils.safe_pickle import read_arrays, read_fewshot, read_plain

    def plain(path):
        with path.open("rb") as file:
            return read_plain(file, Datum)

    def adjust(path):
        return read_sample(str(path), str(path))

    def source(path):
        return open_source(path)[:]

    def run(path):
        (path.parent / "done").write_text("0" * 16)
        path.replace(path.parent / "config.yaml")
        return load_run(path.parent).config

    def best(path):
        return best_result(path.replace(path.parent / "model-best.pth.tar").parent)

    return {
        "few-shot files": (".pkl", read_fewshot, PICKLES),
        "CIFAR": ("", read_arrays, PICKLES),
        "scripts' pickles": (".pkl", plain, PICKLES),
        "logits, npy": (".npy", adjust, ARRAYS),
        "logits, pt": (".pt", adjust, TENSORS),
        "logits, safetensors": (".safetensors", adjust, SAFETENSORS),
        "source, npy": (".npy", source, ARRAYS),
        "source, safetensors": (".safetensors", source, SAFETENSORS),
        "prior, npy": (".npy", lambda path: read_prior(path, 3), ARRAYS),
        "prior, pt": (".pt", lambda path: read_prior(path, 3), TENSORS),
        "prior, json": (".json", lambda path: read_prior(path, 3), TEXTS),
        "prior, csv": (".csv", lambda path: read_prior(path, 3), TEXTS),
        "checkpoint": (".pth.tar-1", load_checkpoint, TENSORS | STATES),
        "best checkpoint": (".pth.tar", best, STATES),
        "config": (".yaml", lambda path: config.load("digits", "micro", "GLA", config_file=str(path)), YAMLS),
        "dataset": (".yaml", lambda path: config.load(str(path), "micro", "GLA"), YAMLS),
        "run": (".yaml", run, YAMLS),
        "metrics": (".json", read_metrics, TEXTS),
        "split": (".json", lambda path: read_split(path, "."), TEXTS),
        "table": (".txt", lambda path: read_table(path, 2), TEXTS),
        "class names": (".json", lambda path: read_names(str(path), ["a", "b"]), TEXTS),
        "csv": (".csv", read_csv, TEXTS),
        "MATLAB": (".mat", lambda path: read_mat(path, "labels"), damaged_mats(folder)),
    }


def special_files(folder):
    """Return a pipe and a device by name, made for one reader."""
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    return {"a pipe": pipe, "a device": Path("/dev/zero")}


def attempt(read, path):
    signal.alarm(SECONDS)
    try:
        read(path)
        return "read"
    except (ValueError, OSError) as error:
        return "refused" if str(error) and "\n" not in str(error) else f"an error of several lines: {error!r:.200}"
    except BaseException as error:
        return f"{type(error).__name__}: {error!s:.200}"
    finally:
        signal.alarm(0)


class _Late(BaseException):
    """A reader took too long."""


def _late(*_):
    raise _Late


def main(folder):
    signal.signal(signal.SIGALRM, _late)
    outcomes = {}
    found = readers(folder)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    for number_, (reader, (suffix, read, corpus)) in enumerate(found.items()):
        outcomes[reader] = {}
        for place, (damage, content) in enumerate(corpus.items()):
            path = folder / str(number_) / str(place) / f"file{suffix}"
            path.parent.mkdir(parents=True)
            path.write_bytes(content)
            outcomes[reader][damage] = attempt(read, path)
        if reader in OPEN_FILES:
            continue
        for place, (damage, source) in enumerate(special_files(folder / str(number_)).items()):
            path = folder / str(number_) / f"special{place}" / f"file{suffix}"
            path.parent.mkdir()
            path.symlink_to(source)
            outcomes[reader][damage] = attempt(read, path)
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
