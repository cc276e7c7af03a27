"""A record of what reaches the disk before and after each rename."""

import os
from pathlib import Path


def record_disk(monkeypatch):
    """Return the calls that reach the disk, in order: ("fsync", path) and ("move", source, target)."""
    calls = []
    real_fsync, real_replace, real_rename = os.fsync, os.replace, os.rename

    def fsync(descriptor):
        calls.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        real_fsync(descriptor)

    def move(real):
        def call(source, target, **options):
            inside = [str(path) for path in Path(source).rglob("*")] if os.path.isdir(source) else []
            calls.append(("move", os.path.realpath(source), os.path.realpath(target), inside))
            real(source, target, **options)

        return call

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", move(real_replace))
    monkeypatch.setattr(os, "rename", move(real_rename))
    return calls


def check_order(calls):
    """Check each move: its source and all that is in it reached the disk before, its target's folder after."""
    moves = [number for number, call in enumerate(calls) if call[0] == "move"]
    for number in moves:
        _, source, target, inside = calls[number]
        before = {call[1] for call in calls[:number] if call[0] == "fsync"}
        after = {call[1] for call in calls[number:] if call[0] == "fsync"}
        assert {source, *inside} <= before, (source, target)
        assert os.path.dirname(target) in after, (source, target)
    return len(moves)
