"""The libraries of training are frozen in the process of a command, and only there."""

import gc
import sys

import pytest

from unskew.cli.main import main
from unskew.runs import libraries
from unskew.runs.run import Run, execute


@pytest.fixture(autouse=True)
def _unfrozen(monkeypatch):
    monkeypatch.setattr(libraries, "_may_freeze", False)
    yield
    gc.unfreeze()


def test_a_command_freezes_once_and_collects_again():
    libraries.allow_freezing()
    before = gc.get_freeze_count()
    libraries.freeze()
    frozen = gc.get_freeze_count()
    assert frozen - before > 100_000 and gc.isenabled() and "open_clip" in sys.modules
    later = [[] for _ in range(1000)]
    libraries.freeze()
    assert gc.get_freeze_count() <= frozen and len(later) == 1000


def test_a_failing_import_leaves_the_garbage_collection_on(monkeypatch):
    libraries.allow_freezing()
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ImportError):
        libraries.freeze()
    assert gc.isenabled()


def test_only_a_process_of_a_command_may_freeze(tmp_path, monkeypatch):
    assert main(["table", str(tmp_path)]) == 0  # called by a user's program
    assert not libraries._may_freeze
    monkeypatch.setattr(sys, "argv", ["unskew", "table", str(tmp_path)])
    assert main() == 0
    assert libraries._may_freeze


def test_a_run_in_a_users_process_freezes_nothing(data_root, tmp_path):
    before = gc.get_freeze_count()
    execute(Run("digits", "ZeroshotCLIP", shots=1, root=data_root, folder=str(tmp_path)), console=False)
    assert gc.get_freeze_count() == before


def test_a_run_of_a_command_freezes(data_root, tmp_path):
    libraries.allow_freezing()
    before = gc.get_freeze_count()
    execute(Run("digits", "ZeroshotCLIP", shots=1, root=data_root, folder=str(tmp_path)), console=False)
    assert gc.get_freeze_count() - before > 100_000
