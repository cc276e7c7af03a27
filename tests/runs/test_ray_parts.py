"""The parts of the launcher of Ray that need no cluster: bundles, resources, files, environment."""

import os
import resource
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from plugin_traces import as_a_process

import unskew
from unskew.cli.main import main
from unskew.runs import elsewhere
from unskew.runs.launch import Training, plan
from unskew.runs.launchers import Options, choose, options
from unskew.runs.launchers import _ray_files as files
from unskew.runs.launchers import _ray_packages as packages
from unskew.runs.launchers import ray as on_ray
from unskew.runs.run import Run


def node(cpus=0.0, gpus=0.0, alive=True):
    return {"Alive": alive, "Resources": {"CPU": cpus, "GPU": gpus}}


# --- bundles ------------------------------------------------------------------------------------------


def share_out(parts, workers, seconds):
    """Let workers take jobs whose duration is known; return the bundles of each worker in order."""
    left = [list(part) for part in parts]
    free, current, taken = [0.0] * workers, [None] * workers, [[] for _ in range(workers)]
    while any(left):
        worker = min(range(workers), key=free.__getitem__)
        counts = [sum(n == b for w, n in enumerate(current) if w != worker) for b in range(len(left))]
        current[worker] = choose(left, counts, current[worker])
        job = left[current[worker]].pop(0)
        taken[worker].append(current[worker])
        free[worker] += seconds[job]
    return taken


def test_a_worker_stays_with_its_bundle_and_idle_ones_join_the_longest():
    taken = share_out([range(0, 4), range(4, 8), range(8, 20)], 3, dict.fromkeys(range(20), 1.0))
    changes = [sum(a != b for a, b in pairwise(part)) for part in taken]
    assert sorted(changes) == [0, 1, 1]  # two finish their four jobs, then join the third
    assert max(map(len, taken)) - min(map(len, taken)) <= 1


def test_all_workers_share_a_single_bundle():
    assert [len(part) for part in share_out([range(9)], 3, dict.fromkeys(range(9), 1.0))] == [3, 3, 3]


def test_no_job_is_left_to_choose():
    assert choose([[], []], [1, 0], 0) is None


# --- resources ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "nodes", "expected"),
    [
        ({"launcher": "ray"}, [node(4)], (1, 0)),
        ({"launcher": "ray"}, [node(4), node(4, 2)], (1, 1)),
        ({"launcher": "ray", "gpus_per_run": 0.25, "cpus_per_run": 2}, [node(4, 2)], (2, 0.25)),
        ({"launcher": "ray"}, [node(4, 2, alive=False), node(1)], (1, 0)),
        ({"jobs": 4}, [node(4, 1)], (1, 0.25)),
        ({"jobs": 3}, [node(3, 2)], (1, 0.5)),
    ],
)
def test_resources_of_a_worker(given, nodes, expected):
    assert tuple(on_ray.demand(Options(**given), nodes).values()) == expected


@pytest.mark.parametrize(
    ("cpus", "gpus", "nodes", "expected"),
    [
        (1, 0, [node(4), node(3)], 7),
        (2, 0, [node(4), node(3), node(8, alive=False)], 3),
        (1, 0.25, [node(16, 2)], 8),
        (1, 0.4, [node(16, 2)], 4),
        (1, 1 / 3, [node(16, 1)], 3),
        (1, 2, [node(16, 3)], 1),
        (1, 1, [node(16)], 0),
        (0, 0, [node(4)], 4),
        (0.1, 0, [node(1)], 10),
    ],
)
def test_room_for_workers(cpus, gpus, nodes, expected):
    demanded = {"num_cpus": cpus, "num_gpus": gpus}
    assert on_ray.room(demanded, nodes) == expected
    if not expected:
        with pytest.raises(ValueError, match="gpus-per-run"):
            on_ray.check_room(demanded, nodes)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--launcher", "ray", "--gpus-per-run", "1.5"], "1.5"),
        (["--launcher", "ray", "--jobs", "0"], "--jobs"),
        (["--launcher", "ray", "--cpus-per-run", "1e-9"], "--cpus-per-run must be 0, or 0.0001"),
        (["--launcher", "ray", "--cpus-per-run", "1e300"], "--cpus-per-run"),
        (["--launcher", "ray", "--cpus-per-run", "nan"], "--cpus-per-run"),
        (["--jobs", "2", "--gpus-per-run", "-1"], "--gpus-per-run"),
        (["--cpus-per-run", "2"], "--cpus-per-run"),
        (["--jobs", "2", "--ship"], "--ship"),
    ],
)
def test_options_that_do_not_fit(words, named, capsys, tmp_path):
    argv = ["sweep", "-d", "digits", "-t", "ZeroshotCLIP", "--output", str(tmp_path / "out"), *words]
    assert main(argv) == 2 and named in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999"])
def test_an_address_without_a_cluster_is_one_line_at_once(address, capsys, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", address)
    argv = ["sweep", "-d", "digits", "-t", "ZeroshotCLIP", "--output", str(tmp_path), "--launcher", "ray"]
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert address in line


def test_an_output_folder_that_cannot_be_written_is_named(tmp_path):
    """No file may grow, as on a full disk; nothing is left."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(OSError, match="cannot write") as caught, on_ray._driver(str(tmp_path)):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(tmp_path) in str(caught.value) and not list(tmp_path.iterdir())


def test_the_file_of_a_killed_command_is_deleted(tmp_path):
    code = "import os; from unskew.runs.launchers.ray import _driver; d = _driver('.'); d.__enter__(); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == 9
    (left,) = tmp_path.iterdir()
    with on_ray._driver(str(tmp_path)) as driver:
        assert not left.exists() and Path(driver.token).exists()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("jobs", [1.5, "two", True])
def test_a_number_of_workers_that_is_none_is_refused(jobs, tmp_path):
    with pytest.raises(ValueError, match="jobs"):
        unskew.sweep("digits", ["ZeroshotCLIP"], output=tmp_path, jobs=jobs)


def test_without_ray_the_command_names_the_extra(tmp_path):
    code = "import sys; sys.modules['ray'] = None; from unskew.cli.main import main; sys.exit(main(sys.argv[1:]))"
    argv = ["sweep", "-d", "digits", "-t", "ZeroshotCLIP", "--jobs", "2", "--output", str(tmp_path)]
    answer = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=False)
    (line,) = answer.stderr.splitlines()
    assert answer.returncode == 2 and "pip install 'unskew[ray]'" in line


def test_the_names_of_launchers_are_those_of_the_command():
    for name in options.NAMES:
        assert Options(name).launcher == name


# --- files --------------------------------------------------------------------------------------------


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(files, "CHUNK", 10)


def test_files_reach_a_worker_in_parts_with_their_times(small_parts, tmp_path):
    source, root = tmp_path / "run", tmp_path / "root"
    (source / "model").mkdir(parents=True)
    (source / "eval" / "pets").mkdir(parents=True)
    for name, size in {"model/model.pth.tar-1": 25, "done": 0, "log.txt": 10, "eval/pets/done": 3, ".x.tmp": 3}.items():
        (source / name).write_bytes(os.urandom(size))
    os.utime(source / "done", ns=(1, 1234567890123456789))
    found = files.listing([source])
    assert {Path(path).name for path in found} == {"model.pth.tar-1", "done", "log.txt"}
    wanted = files.differing(found, str(root))
    assert wanted == list(found)
    files.send(found, wanted, lambda path, *part: files.write_chunk(f"{root}{path}", *part))
    assert files.differing(found, str(root)) == []
    assert files.listing([f"{root}{source}"], str(root)) == found
    for path in found:
        assert Path(f"{root}{path}").read_bytes() == Path(path).read_bytes()


def test_results_replace_a_folder_and_done_comes_last(small_parts, tmp_path, monkeypatch):
    place, root = tmp_path / "run", tmp_path / "root"
    there = Path(f"{root}{place}")
    for folder in (place, there):
        (folder / "members" / "a").mkdir(parents=True)
        (folder / "old.bin").write_bytes(b"x")
        (folder / "done").write_bytes(b"stale")
    before = files.listing([place])
    (there / "old.bin").unlink()
    (there / "done").write_bytes(b"new state")
    (there / "members/a/done").write_bytes(b"member")
    (there / "model.pth.tar-2").write_bytes(content := os.urandom(35))
    (there / "config.yaml").write_text(f"OUTPUT_DIR: {there}\nBASE: {root}/x\n", encoding="utf-8")
    moves = []
    real = files.move_into_place
    monkeypatch.setattr(
        files, "move_into_place", lambda a, b: (moves.append((b, (place / "done").exists())), real(a, b))
    )
    states = files.listing([there], str(root), unread=True)
    files.fetch(states, before, lambda path, start: files.read_chunk(f"{root}{path}", start, str(root)))
    assert not (place / "old.bin").exists() and (place / "model.pth.tar-2").read_bytes() == content
    assert (place / "config.yaml").read_text(encoding="utf-8") == f"OUTPUT_DIR: {place}\nBASE: /x\n"
    assert [Path(path).name for path, _ in moves][-2:] == ["done", "done"] and moves[-1][0] == str(place / "done")
    assert not any(is_done for _, is_done in moves)
    assert not list(place.rglob("*.tmp"))


def test_a_worker_that_dies_while_files_come_back_leaves_the_folder_as_it_was(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.txt").write_text("earlier", encoding="utf-8")

    def read(path, start):
        if path.endswith("b.bin"):
            raise ConnectionError("lost")
        return b"new" if not start else b""

    states = {str(tmp_path / "run" / name): (3, 1) for name in ("log.txt", "a.bin", "b.bin")}
    with pytest.raises(OSError, match=r"lost|None"):
        files.fetch(states, {}, read)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["log.txt"]
    assert (tmp_path / "run" / "log.txt").read_text(encoding="utf-8") == "earlier"


def test_a_run_elsewhere_keeps_its_fingerprint(tmp_path, monkeypatch):
    from unskew.engine.fingerprint import config_hash

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("", encoding="utf-8")
    (tmp_path / "beside.py").write_text("", encoding="utf-8")
    run = Run("digits", "GLA", shots=1, seed=1, output=str(tmp_path / "out"), plugins=(str(tmp_path / "mine.py"),))
    with as_a_process(tmp_path):
        moved = elsewhere.moved(run, "/root-of-worker")
        assert moved.output == f"/root-of-worker{tmp_path}/out" and moved.plugins[0].startswith("/root-of-worker")
        assert config_hash(elsewhere.replace(moved, plugins=()).config) == config_hash(run.config)
        assert elsewhere.moved(Run("digits", "GLA", output="out"), "/r").output == "out"
        sent = {Path(path).name for path in elsewhere.reads(run).sent}
        assert {"mine.py", "beside.py"} <= sent


def test_paths_in_keys_are_sent_if_relative_and_must_exist_if_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("prior.csv", "weights.pt"):
        (tmp_path / name).write_text("1", encoding="utf-8")
    (run,) = plan("digits", ["GLA"], shots=[1], seeds=[1], opts={"TRAINER.GLA.PRIOR": "prior.csv"})
    assert "prior.csv" in Training(run).reads().sent and not Training(run).reads().there
    opts = {"TRAINER.GLA.PRIOR": str(tmp_path / "prior.csv")}
    run = Run("digits", "GLA", "RN50@weights.pt", 1, 1, "pets", opts=unskew.runs.run.flat(opts))
    reads = Training(run).reads()
    assert set(reads.there) == {str(tmp_path / "prior.csv"), "weights.pt"} and reads.images == "pets"


# --- code and environment -----------------------------------------------------------------------------


def test_shipped_code_has_the_digest_of_this_code(tmp_path):
    with packages.runtime_env(ship_code=True, ship_packages=False) as env:
        (copy,) = env["py_modules"]
        code = "import unskew.runs.launchers._ray_packages as p; print(p.unskew.__file__); print(p.code_digest())"
        environment = {**os.environ, "PYTHONPATH": str(Path(copy).parent)}
        command = [sys.executable, "-c", code]
        answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    place, digest = answer.stdout.splitlines()
    assert place.startswith(copy) and digest == packages.code_digest()
    assert digest.startswith(f"{unskew.__version__} ") and not Path(copy).exists()


def test_workers_share_the_environment_that_decides_results(monkeypatch):
    monkeypatch.setenv("UNSKEW_THREADS", "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("HF_HOME", "/models")
    variables = packages.variables()
    assert variables["UNSKEW_THREADS"] == "3" and variables["HF_HOME"] == "/models"
    assert "CUDA_VISIBLE_DEVICES" not in variables and "PATH" not in variables


def test_packages_have_the_versions_of_this_process():
    names = {entry.partition("==")[0]: entry.partition("==")[2] for entry in packages.packages()}
    import torch

    assert names["torch"] == torch.__version__.partition("+")[0] and "pytest" not in names and "submitit" not in names
