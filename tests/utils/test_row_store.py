"""A store of rows: they come back by their keys, other processes read them, and damaged files are dropped."""

import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import torch

from unskew.utils import row_store
from unskew.utils.row_store import RowStore, stored


def keys(*numbers):
    return np.array(numbers, np.int64)


def test_rows_come_back_by_their_keys(tmp_path):
    store = RowStore(tmp_path)
    store.add(keys(5, -3, 9), torch.arange(6.0).view(3, 1, 2))
    store.add(keys(1), torch.full((1, 1, 2), 7.0))
    assert store.missing(keys(9, 2, 1, -3)).tolist() == [False, True, False, False]
    assert store.take(keys(9, 1, 5, 9))[:, 0].tolist() == [[4, 5], [7, 7], [0, 1], [4, 5]]
    other = RowStore(tmp_path)
    other.refresh()
    assert torch.equal(other.take(keys(-3, 1)), store.take(keys(-3, 1)))


def test_a_full_disk_leaves_no_part_of_a_file(tmp_path, monkeypatch, warned):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=10))
    store = RowStore(tmp_path)
    store.add(keys(1), torch.ones(1, 1, 2))
    assert store.take(keys(1)).tolist() == [[[1, 1]]] and not list(tmp_path.iterdir())
    assert "nearly full" in warned()[0]


def test_one_process_at_a_time(tmp_path):
    entered, order = threading.Event(), []

    def second():
        entered.wait(10)
        with RowStore(tmp_path).exclusive_lock():
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with RowStore(tmp_path).exclusive_lock():
        entered.set()
        thread.join(0.3)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_only_files_with_wanted_rows_are_checked(tmp_path, monkeypatch):
    checked = []
    checksum = row_store._checksum
    monkeypatch.setattr(row_store, "_checksum", lambda *args: checked.append(1) or checksum(*args))
    writer = RowStore(tmp_path)
    for number in range(3):
        writer.add(np.array([number]), torch.full((1, 1, 2), float(number)))
    checked.clear()
    reader = RowStore(tmp_path)
    reader.refresh()
    for _ in range(2):
        assert not reader.missing(np.array([1])).any() and len(checked) == 1
    assert reader.take(np.array([1])).tolist() == [[[1, 1]]]


def test_a_damaged_file_does_not_hide_the_rows_of_a_good_one(tmp_path, warned):
    good, bad = RowStore(tmp_path), RowStore(tmp_path)
    bad.add(np.array([1, 2]), torch.zeros(2, 1, 2))
    (file,) = tmp_path.glob("*.safetensors")
    good.add(np.array([2, 3]), torch.ones(2, 1, 2))
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    reader = RowStore(tmp_path)
    reader.refresh()
    assert reader.missing(np.array([1, 2, 3])).tolist() == [True, False, False]
    assert reader.take(np.array([2, 3])).tolist() == [[[1, 1]], [[1, 1]]]


HOLDER = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_process_that_waits_for_the_lock_warns(tmp_path, monkeypatch, warned):
    monkeypatch.setattr(row_store, "QUIET_SECONDS", 0.2)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / ".lock")], **pipes) as holder:
        assert holder.stdout.readline() == "locked\n"
        handler = logging.Handler()
        handler.emit = lambda record: holder.stdin.close()  # the holder ends after the message
        logging.getLogger("unskew").addHandler(handler)
        try:
            with RowStore(tmp_path).exclusive_lock():
                pass
        finally:
            logging.getLogger("unskew").removeHandler(handler)
        holder.wait(20)
    assert len(warned()) == 1 and str(tmp_path / ".lock") in warned()[0]


def make_in_process(folder, made):
    os.environ["UNSKEW_CACHE"] = folder

    def make():
        made.put(os.getpid())
        time.sleep(0.3)  # the other process waits for the lock meanwhile
        return torch.arange(6.0).view(3, 2)

    made.put(stored("kind", {"a": 1}, 3, make).tolist())


def test_of_processes_that_need_the_same_rows_one_makes_them(tmp_path):
    context = multiprocessing.get_context("spawn")
    made = context.Queue()
    processes = [context.Process(target=make_in_process, args=(str(tmp_path), made)) for _ in range(2)]
    for process in processes:
        process.start()
    results = [made.get(timeout=60) for _ in range(3)]
    for process in processes:
        process.join(60)
    assert [result for result in results if isinstance(result, list)] == [[[0, 1], [2, 3], [4, 5]]] * 2
    assert made.empty()


def test_rows_of_other_settings_are_others(tmp_path, monkeypatch):
    monkeypatch.setenv("UNSKEW_CACHE", str(tmp_path))
    first, second, again = (stored("kind", {"a": a}, 1, lambda a=a: torch.full((1, 2), a)) for a in (1.0, 2.0, 1.0))
    assert first.tolist() == again.tolist() == [[1, 1]] and second.tolist() == [[2, 2]]
    first.add_(5)  # a copy
    row_store.open_folder.cache_clear()
    assert stored("kind", {"a": 1.0}, 1, None).tolist() == [[1, 1]]
    assert len(list(tmp_path.glob("kind/*/settings.json"))) == 2
