"""Scripts written for PyTorch 1 on a current PyTorch; each test undoes the patches."""

import io
import os
import pickle
import re
import sys
import types
import warnings
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch
from items import dump, dump_fewshot

from unskew.dassl import compat
from unskew.dassl.data import Datum


@pytest.fixture
def applied(monkeypatch):
    """Return a function that applies all patches, as at the start of a script."""
    monkeypatch.setattr(torch, "load", torch.load)
    monkeypatch.setattr(pickle, "load", pickle.load)
    monkeypatch.setattr(compat.multiprocessing, "set_start_method", lambda method, force: None)
    with warnings.catch_warnings():
        yield compat.apply


def test_amp_names_are_quiet(applied, recwarn):
    applied()
    from torch.cuda.amp import GradScaler, autocast

    scaler = GradScaler(enabled=False)
    with autocast(enabled=False):
        assert scaler.scale(torch.ones(2)).tolist() == [1, 1]
    assert not [warning for warning in recwarn if warning.category is FutureWarning]


def test_removed_amp_names_are_restored(applied, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.cuda.amp", torch.cuda.amp)
    monkeypatch.delattr(torch.cuda, "amp")
    monkeypatch.delattr(re, "template", raising=False)
    applied()
    from torch.cuda.amp import GradScaler, autocast

    assert isinstance(GradScaler(enabled=False), torch.amp.GradScaler)
    assert isinstance(autocast(enabled=False), torch.amp.autocast)
    assert re.template("a+").match("aa")
    monkeypatch.delattr(re, "template")


@pytest.mark.parametrize("protocol", [None, 2, 4, 5])
def test_arrays_of_numbers_are_loaded(applied, tmp_path, protocol):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    content = {"logits": array, "more": [array, (array.T, np.array([1, 0]))], "f": np.float64(2.5), "none": array[:0]}
    path = tmp_path / ("features.pkl" if protocol else "features.pt")
    with path.open("wb") as file:
        pickle.dump(content, file, protocol) if protocol else torch.save(content, file)
    applied()
    with path.open("rb") as file:
        loaded = pickle.load(file) if protocol else torch.load(file)
    assert type(loaded["logits"]) is np.ndarray and loaded["logits"].dtype == np.float32
    assert loaded["more"][0] is loaded["logits"]
    assert loaded["logits"].tolist() == array.tolist()
    assert loaded["more"][1][0].tolist() == array.T.tolist()
    assert (loaded["more"][1][1].tolist(), loaded["f"], loaded["none"].shape) == ([1, 0], 2.5, (0, 3))
    loaded["logits"] += 1  # not read-only


@pytest.mark.parametrize("array", [np.array(["cat", "ü"]), np.array([b"x"]), np.ones(2, "c8"), np.array([], "U2")])
def test_arrays_of_text_and_complex_numbers_are_loaded(applied, tmp_path, array):
    path = dump({"x": array, "type": array.dtype}, tmp_path / "names.pkl")
    applied()
    with path.open("rb") as file:
        loaded = pickle.load(file)
    assert loaded["x"].tolist() == array.tolist()
    assert loaded["x"].dtype == loaded["type"] == array.dtype


class Made:
    """An object that pickles as any call and any state."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


RECONSTRUCT = np.zeros(0).__reduce__()[0]


def made_array(code, state, shape=(10,), content=b"A" * 80):
    return Made(
        RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, shape, Made(np.dtype, (code, False, True), state), False, content)
    )


PLAIN_STATE = (3, "<", None, None, None, -1, -1, 0)


def test_a_forged_array_with_a_valid_state_is_loaded(applied, tmp_path):
    torch.save({"x": made_array("i8", PLAIN_STATE)}, tmp_path / "a.pth")
    applied()
    assert torch.load(tmp_path / "a.pth")["x"].tolist() == [0x4141414141414141] * 10


@pytest.mark.parametrize(
    ("array", "fact"),
    [
        (made_array("O", PLAIN_STATE), "'O'"),
        (made_array("O8", PLAIN_STATE), "'O8'"),
        (made_array("i8", PLAIN_STATE, shape=(1 << 61,)), "reshape"),
        (made_array("i8", PLAIN_STATE, shape=(3,)), "reshape"),
        (made_array("i8", PLAIN_STATE, content=[1] * 10), "bytes"),
        (np.array([{}]), "'O8'"),
        (np.zeros(2, "M8[s]"), "'M8'"),
        (made_array("U1", PLAIN_STATE, content=b"\xff" * 40), "text"),
    ],
)
def test_a_forged_array_is_refused(applied, tmp_path, array, fact):
    torch.save({"x": array}, tmp_path / "a.pth")
    dump({"x": array}, tmp_path / "a.pkl")
    applied()
    with pytest.raises(ValueError, match=rf"a\.pth.*{fact}"):
        torch.load(tmp_path / "a.pth")
    with (tmp_path / "a.pkl").open("rb") as file, pytest.raises(ValueError, match=rf"a\.pkl.*{fact}"):
        pickle.load(file)


def test_the_state_of_a_forged_dtype_is_ignored(applied, tmp_path):
    of_objects = (3, "<", (Made(np.dtype, ("O",)), (1,)), None, None, -1, -1, 0)  # NumPy: the numbers are pointers
    torch.save({"x": made_array("i8", of_objects)}, tmp_path / "a.pth")
    applied()
    assert torch.load(tmp_path / "a.pth")["x"].dtype.subdtype is None
    assert torch.load(tmp_path / "a.pth")["x"][[0, 1]].tolist() == [0x4141414141414141] * 2


def test_other_pickles_of_numpy_are_refused(applied, tmp_path):
    torch.save({"x": np.zeros(2)}, tmp_path / "a.pth")
    before = torch.serialization.get_safe_globals()
    applied()
    torch.load(tmp_path / "a.pth")
    assert set(torch.serialization.get_safe_globals()) == set(before)
    with pytest.raises(pickle.UnpicklingError, match="_reconstruct"):
        torch.load(tmp_path / "a.pth", weights_only=True)


def test_old_checkpoints_load_without_running_code(applied, tmp_path, monkeypatch):
    module = types.ModuleType("dassl.optim.lr_scheduler")
    module.ConstantWarmupScheduler = type("ConstantWarmupScheduler", (), {"__module__": module.__name__})
    for name in ("dassl", "dassl.optim", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    state = {"state_dict": {"ctx": torch.ones(2)}, "epoch": 50, "scheduler": module.ConstantWarmupScheduler()}
    torch.save(state, tmp_path / "model.pth.tar-50")
    torch.save({"state_dict": {}, "hook": warnings.warn}, tmp_path / "other.pt")
    applied()
    loaded = torch.load(str(tmp_path / "model.pth.tar-50"), map_location="cpu")
    assert (loaded["epoch"], loaded["state_dict"]["ctx"].tolist()) == (50, [1, 1])
    with pytest.raises(ValueError, match=r"_?warnings\.warn"):
        torch.load(tmp_path / "other.pt")


# --- pickle.load -------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("module", ["dassl.data.datasets.base_dataset", "datasets.mine"])
def test_few_shot_files_are_read_as_our_datum(applied, tmp_path, module, protocol):
    path = dump_fewshot(tmp_path / "split_fewshot" / "shot_1-seed_1.pkl", module, protocol, train=[("a.png", 2, "cat")])
    applied()
    with path.open("rb") as file:
        (item,) = pickle.load(file)["train"]
    assert type(item) is Datum
    assert repr(item) == repr(Datum("a.png", 2, 0, "cat"))


@pytest.mark.parametrize("name", ["split_fewshot/shot_1-seed_1.pkl", "split_fewshot/sample", "preprocessed.PKL"])
def test_few_shot_files_load_without_running_code(applied, tmp_path, monkeypatch, name):
    mark = tmp_path / "was called"
    path = dump({"train": [Made(os.system, (f"touch '{mark}'",))], "val": []}, tmp_path / name)
    applied()
    monkeypatch.chdir(path.parent)
    for opened in (path, path.name, os.fsencode(path)):
        with open(opened, "rb") as file, pytest.raises(ValueError, match=r"\w+\.system") as error:
            pickle.load(file)
        assert "\n" not in str(error.value)
    assert not mark.exists()


def test_other_files_are_read_as_before(applied, tmp_path):
    mark = tmp_path / "was called"
    path = dump(Made(os.mkdir, (str(mark),)), tmp_path / "features.bin")
    applied()
    with path.open("rb") as file:
        pickle.load(file)
    assert mark.exists()
    assert pickle.load(io.BytesIO(pickle.dumps(io.StringIO))) is io.StringIO
    with os.fdopen(os.open(path, os.O_RDONLY), "rb") as file, pytest.raises(FileExistsError):  # its name is a number
        pickle.load(file, encoding="latin1")


@pytest.mark.parametrize("protocol", [2, 5])
def test_files_of_a_script_are_read_back(applied, tmp_path, protocol):
    content = {"a": [1, 2.5, None, True, "ü", b"\xff", b""], "b": ({1, 2}, frozenset("x"), 1j, bytearray(b"y"))}
    content["c"] = OrderedDict(x=defaultdict(list, y=[np.int64(3)]))
    applied()
    with open(tmp_path / "a.pkl", "wb") as file:
        for part in (content, [content]):
            pickle.dump(part, file, protocol=protocol)
    with open(tmp_path / "a.pkl", "rb") as file:
        assert pickle.load(file, encoding="latin1") == content
        assert pickle.load(file) == [content]
        with pytest.raises(EOFError):
            pickle.load(file)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_prototypes_of_a_script_are_read_back(applied, tmp_path, protocol):
    features = torch.arange(12.0).reshape(3, 4)
    content = {
        "features": features,
        "again": features,
        "views": [features.T, features[1:], torch.ones(1).expand(3, 4), torch.tensor(3), torch.empty(0, 5)],
        "kinds": (features.half(), features.bfloat16(), torch.tensor([True]), torch.ones(2, dtype=torch.complex64)),
        "layer": torch.nn.Linear(2, 3).state_dict(),
        "weight": torch.nn.Parameter(torch.tensor(2.0)),
        "fixed": torch.nn.Parameter(torch.ones(2), requires_grad=False),
        "facts": [features.shape, features.dtype, features.device],
    }
    with open(tmp_path / "a.pkl", "wb") as file:
        pickle.dump(content, file, protocol=protocol)
    applied()
    with open(tmp_path / "a.pkl", "rb") as file:
        loaded = pickle.load(file)
    pairs = [(loaded[name], content[name]) for name in ("features", "weight", "fixed")]
    for name in ("views", "kinds"):
        pairs += zip(loaded[name], content[name], strict=True)
    pairs += [(loaded["layer"][key], value) for key, value in content["layer"].items()]
    for ours, theirs in pairs:
        assert (type(ours), ours.dtype, ours.stride()) == (type(theirs), theirs.dtype, theirs.stride())
        assert ours.requires_grad == theirs.requires_grad and torch.equal(ours, theirs)
    assert loaded["facts"] == content["facts"]
    assert type(loaded["facts"][0]) is torch.Size
    assert loaded["again"] is loaded["features"]


STORAGE = torch.ones(4)._typed_storage().__reduce__()
REBUILD = torch._utils._rebuild_tensor_v2


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        ((Made(*STORAGE), 0, (5,), (1,), False, OrderedDict()), "4 numbers"),
        ((Made(*STORAGE), 3, (2,), (1,), False, OrderedDict()), "4 numbers"),
        ((Made(*STORAGE), 0, (1 << 40,), (1,), False, OrderedDict()), "4 numbers"),
        ((Made(*STORAGE), -1, (1,), (1,), False, OrderedDict()), "shape"),
        ((Made(*STORAGE), 0, (1, 1), (1,), False, OrderedDict()), "shape"),
        ((Made(*STORAGE), 0, (1,), (1.0,), False, OrderedDict()), "shape"),
        (([1.0], 0, (1,), (1,), False, OrderedDict()), "storage"),
        ((Made(STORAGE[0], ("text",)), 0, (1,), (1,), False, OrderedDict()), "storage"),
        ((Made(STORAGE[0], (b"\x80\x02.",)), 0, (1,), (1,), False, OrderedDict()), "a.pkl"),
    ],
)
def test_a_forged_tensor_is_refused(applied, tmp_path, arguments, fact, recwarn):
    path = dump({"x": Made(REBUILD, arguments)}, tmp_path / "a.pkl")
    applied()
    with path.open("rb") as file, pytest.raises(ValueError, match=rf"a\.pkl.*{fact}"):
        pickle.load(file)


def test_a_storage_runs_no_code(applied, tmp_path):
    mark = tmp_path / "was called"
    content = io.BytesIO()
    torch.save(Made(os.mkdir, (str(mark),)), content, _use_new_zipfile_serialization=False)
    path = dump(Made(REBUILD, (Made(STORAGE[0], (content.getvalue(),)), 0, (1,), (1,), False, {})), tmp_path / "a.pkl")
    applied()
    with path.open("rb") as file, pytest.raises(ValueError, match=r"\w+\.mkdir"):
        pickle.load(file)
    assert not mark.exists()


@pytest.mark.parametrize("value", [torch.ones(2), np.ones(2)])
def test_the_state_of_a_tensor_or_an_array_is_not_changed(applied, tmp_path, value):
    function, arguments = value.__reduce_ex__(5)[:2]
    path = dump(Made(function, arguments, {"x": 1}), tmp_path / "a.pkl")
    if isinstance(value, np.ndarray):
        with path.open("wb") as file:
            pickle.dump(Made(*value.__reduce_ex__(5)[:2], (1,)), file, 5)
    applied()
    with path.open("rb") as file, pytest.raises(ValueError, match=r"a\.pkl.*changes"):
        pickle.load(file)


def test_a_trusted_file_alone_may_run_code(applied, tmp_path, monkeypatch):
    monkeypatch.setattr(compat, "_trusted", set())
    monkeypatch.chdir(tmp_path)
    for name in ("mine.pkl", "theirs.pkl"):
        dump(warnings.warn, tmp_path / name)
    for name in ("mine.pt", "theirs.pt"):
        torch.save({"hook": warnings.warn}, tmp_path / name)
    (tmp_path / "link.pkl").symlink_to("mine.pkl")
    applied(["mine.pkl", tmp_path / "mine.pt"])
    for path in ("mine.pkl", tmp_path / "mine.pkl", "link.pkl"):
        with open(path, "rb") as file:
            assert pickle.load(file) is warnings.warn
    assert torch.load("mine.pt")["hook"] is warnings.warn
    with open("theirs.pkl", "rb") as file, pytest.raises(ValueError, match=r"warn.*--trust theirs\.pkl"):
        pickle.load(file)
    with pytest.raises(ValueError, match=r"warn.*--trust theirs\.pt"):
        torch.load("theirs.pt")


def test_a_truncated_few_shot_file_is_an_error(applied, tmp_path):
    whole = dump_fewshot(tmp_path / "whole.pkl", train=[("a.png", 2, "cat")]).read_bytes()
    applied()
    for size in range(len(whole)):
        (tmp_path / "a.pkl").write_bytes(whole[:size])
        with (tmp_path / "a.pkl").open("rb") as file, pytest.raises(ValueError, match=r"a\.pkl"):
            pickle.load(file)


def test_a_module_for_pickle_runs_no_code(applied, tmp_path):
    path, sign = tmp_path / "evil.pt", tmp_path / "sign"
    torch.save({"code": Touch(str(sign))}, path)
    applied()
    for args, options in (((), {"pickle_module": pickle}), (("cpu", pickle), {})):
        with pytest.raises(ValueError, match="--trust"):
            torch.load(path, *args, **options)
    assert not sign.exists()


def test_a_stream_without_a_name_is_never_trusted(applied, monkeypatch):
    monkeypatch.setattr(compat, "_trusted", set())
    content = io.BytesIO()
    torch.save({"hook": warnings.warn}, content)
    applied([""])
    content.seek(0)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(content)


class Touch:
    """An object whose pickle creates a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)
