"""Tests of tensorboard events on a full disk: one line, and the run continues."""

import errno
import os
import threading

import pytest
from building import build
from tensorboard.summary.writer import record_writer

from unskew.engine.events import EventWriter

NO_SPACE = os.strerror(errno.ENOSPC)


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, NO_SPACE)


@pytest.mark.parametrize("moment", ["first", "later", "close"])
def test_a_run_continues_without_events(moment, data_root, tmp_path, monkeypatch, warned, capfd):
    plain = build("CoOp", data_root, tmp_path / "plain")
    plain.train()
    calls = []
    real = record_writer.RecordWriter.write

    def write(self, data):
        calls.append(data)
        if moment == "first" or len(calls) > 2:
            full()
        real(self, data)

    monkeypatch.setattr(record_writer.RecordWriter, *(("close", full) if moment == "close" else ("write", write)))
    trainer = build("CoOp", data_root, tmp_path / "full")
    hook = threading.excepthook
    trainer.train()
    assert trainer.results == plain.results and threading.excepthook == hook
    assert len([line for line in warned() if NO_SPACE in line and "tensorboard" in line]) == 1
    assert "Traceback" not in capfd.readouterr().err


def test_a_folder_of_events_that_cannot_be_made(data_root, tmp_path, warned):
    (tmp_path / "tensorboard").write_text("a file")
    trainer = build("CoOp", data_root, tmp_path)
    trainer.train()
    assert trainer.results and len([line for line in warned() if "tensorboard" in line]) == 1


def test_other_methods_of_the_writer_work(tmp_path):
    writer = EventWriter(tmp_path)
    writer.add_text("name", "text")
    writer.add_scalars("several", {"a": 1.0}, 0)
    writer.close()
    assert list(tmp_path.glob("events*")) and writer.get_logdir() == str(tmp_path)
