"""Tests of a read-only data root: every dataset loads, and derived files go to ``UNSKEW_CACHE``."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import trees

SHOTS = 1

# A separate process, because root has to give up its rights to be refused a write.
SCRIPT = """
import encodings.utf_8_sig, json, os, sys
from pathlib import Path
import open_clip, scipy.io, trees
from unskew import config
config.load("dtd", trainer="ZeroshotCLIP")
trees.of("dtd")  # imports all modules, which the other user may not read
if os.geteuid() == 0:
    os.setgroups([])
    os.setegid(65534)
    os.seteuid(65534)
data, found = Path(sys.argv[1]), {}
for folder in (data, data / "dtd", data / "birds"):
    try:
        (folder / "probe").touch()
        sys.exit(f"{folder} can be written")
    except PermissionError:
        pass
for name in [*trees.TREES, "folder", "csv"]:
    root = {"folder": data / "birds", "csv": data / "birds.csv"}.get(name, data)
    for again in (False, True):
        dataset = trees.load(name, root, shots=int(sys.argv[2]))
        items = [*dataset.train_x, *dataset.val, *dataset.test]
        paths = [item.impath for item in items]
        assert again is False or paths == found[name], name
        found[name] = paths
        assert all(Path(path).read_bytes() for path in paths)
print(json.dumps(found))
"""


def files_below(root):
    return {str(path.relative_to(root)) for path in root.rglob("*")}


@pytest.fixture
def places():
    """The data root, readable for all, and a folder that is writable for all, outside of pytest's closed folders."""
    with tempfile.TemporaryDirectory() as base:
        base = Path(base)
        base.chmod(0o755)
        (base / "cache").mkdir()
        (base / "cache").chmod(0o777)
        (base / "data").mkdir()
        yield base / "data", base / "cache"
        for folder in (base / "data", *(path for path in (base / "data").rglob("*") if path.is_dir())):
            folder.chmod(0o755)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="the rights of POSIX")
def test_a_read_only_data_root(places):
    data, cache = places
    for tree in trees.TREES.values():
        tree(data)
    for n in range(12):
        trees.put(data / "birds" / ("robin", "wren")[n % 2] / f"{n}.jpg")
    lines = [f"birds/{name}/{n}.jpg,{name}" for n in range(12) for name in [("robin", "wren")[n % 2]]]
    trees.write(data / "birds.csv", "path,label", *lines)
    for folder in [data, *(path for path in data.rglob("*") if path.is_dir())]:
        folder.chmod(0o555)
    before = files_below(data)
    environment = {**os.environ, "UNSKEW_CACHE": str(cache), "HOME": str(data), "PYTHONDONTWRITEBYTECODE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(data), str(SHOTS)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert set(found) == {*trees.TREES, "folder", "csv"}
    assert files_below(data) == before
    for name, paths in found.items():
        assert len(paths) >= 3
        where = cache if name == "cifar100_lt" else data  # its images are unpacked from one file
        assert all(path.startswith(str(where)) for path in paths)
    samples = list(cache.rglob("shot_1-seed_*.json"))
    assert len(samples) == len(found) - 4  # one of each dataset that has training images
    assert sorted(path.name for path in cache.rglob("images-*")) == ["images-test", "images-train"]
    assert not list(cache.rglob(".*"))  # no temporary file is left
