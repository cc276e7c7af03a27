"""Sweeps on real clusters of Ray, of two nodes on one computer: equal to `local`, also when a node is lost."""

import os
from pathlib import Path

import pytest
from plugin_traces import as_a_process
from ray_clusters import PLUGIN, can_unshare, journal, own_nodes, results, shared_nodes
from trees import put

from unskew.cli.main import main
from unskew.runs import protocols
from unskew.runs.launch import launch, plan
from unskew.runs.launchers import Options, build

pytestmark = pytest.mark.ray

EPOCHS = 6
OPTS = {"OPTIM.MAX_EPOCH": EPOCHS, "INPUT.VIEWS": 1, "DATALOADER.NUM_WORKERS": 0, "TRAIN.CHECKPOINT_FREQ": 1}
PRIOR = {"TRAINER.GLA.PRIOR": "./prior.csv"}


@pytest.fixture
def at(tmp_path, monkeypatch):
    """An empty current folder with the plugin, and a journal."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "steady.py").write_text(PLUGIN, encoding="utf-8")
    with journal(monkeypatch) as lines, as_a_process(tmp_path):
        yield lines


def runs_at(output, root, **given):
    given = {"trainers": ["Steady", "ZeroshotCLIP"], "shots": [1, 2], "seeds": [1, 2], **given}
    return plan("digits", root=root, output=output, opts=OPTS, plugins=["steady.py"], **given)


def states_of(output):
    return {str(done): (done.stat().st_ino, done.stat().st_mtime_ns) for done in Path(output).rglob("done")}


def sweep_with_a_lost_node(runs, output, kill, journal):
    """Launch the runs; kill a node as soon as two runs are finished and its worker is in the middle of a training."""
    outcomes, before, killed = {}, {}, ()
    for position, outcome in launch(runs, build(Options("ray"), output)):
        outcomes[position] = outcome
        if not killed and len(outcomes) >= 2:
            os.environ["UNSKEW_TEST_PAUSE"] = "0"
            before = states_of(output)
            killed = journal.wait(begun_but_not_ended)
            kill(killed[1])
    assert {type(outcome) for outcome in outcomes.values()} == {dict}, outcomes
    return before, killed


def begun_but_not_ended(lines):
    """Return the line of a training that has a checkpoint, and is far from its end."""
    ended = {line[2] for line in lines if line[0] == "end"}
    return next((line for line in reversed(lines) if line[0] == "epoch" and line[2] not in ended), None)


def check_lost_node(journal, before, killed, output):
    """Check that only the lost training was begun twice, and that nothing wrote to the finished runs again."""
    begun = [line[2] for line in journal.lines("begin")]
    assert {run for run in begun if begun.count(run) > 1} == {killed[2]}
    assert begun.count(killed[2]) == 2
    nodes = {line[1] for line in journal.lines("begin") if line[2] == killed[2]}
    assert len(nodes) == 2  # the other node took over
    after = states_of(output)
    assert before and before == {path: after[path] for path in before}


def test_a_node_is_lost_in_a_sweep_with_a_shared_folder(at, data_root, tmp_path, monkeypatch):
    expected = tmp_path / "local"
    assert all(isinstance(outcome, dict) for _, outcome in launch(runs_at(expected, data_root)))
    at.path.unlink()
    monkeypatch.setenv("UNSKEW_TEST_PAUSE", "1")
    with shared_nodes(monkeypatch) as kill:
        before, killed = sweep_with_a_lost_node(runs_at("out", data_root), "out", kill, at)
    check_lost_node(at, before, killed, "out")
    starts = [int(line[3]) for line in at.lines("begin") if line[2] == killed[2]]
    assert starts[0] == 0 and starts[1] > 0  # it resumed from its checkpoint
    theirs, ours = results("out"), results(expected)
    assert theirs.keys() == ours.keys() and len(ours) == 8
    for name, parts in theirs.items():
        assert parts == ours[name], name
    assert not list(Path("out").rglob("*.tmp"))


@pytest.mark.skipif(not can_unshare(), reason="this user may not start processes with mounts of their own")
def test_a_node_is_lost_whose_workers_have_a_folder_of_their_own(
    at, data_root, tmp_path, monkeypatch, tmp_path_factory
):
    expected = tmp_path / "local"
    assert all(isinstance(outcome, dict) for _, outcome in launch(runs_at(expected, data_root)))
    at.path.unlink()
    monkeypatch.setenv("UNSKEW_TEST_PAUSE", "1")
    output = tmp_path / "out"
    with own_nodes(monkeypatch, tmp_path_factory.getbasetemp()) as kill:
        before, killed = sweep_with_a_lost_node(runs_at(output, data_root), output, kill, at)
    check_lost_node(at, before, killed, output)
    theirs, ours = results(output), results(expected)
    assert theirs.keys() == ours.keys() and len(ours) == 8
    for name, parts in theirs.items():
        assert parts == ours[name], name
    texts = [file.read_text(encoding="utf-8") for file in output.rglob("*.*") if file.suffix in (".yaml", ".txt")]
    assert texts and not any("unskew-worker" in text for text in texts)
    assert any(str(output) in text for text in texts)
    assert not list(output.rglob("*.tmp"))


@pytest.mark.skipif(not can_unshare(), reason="this user may not start processes with mounts of their own")
def test_workers_with_their_own_folder_get_the_files_of_the_driver(
    at, data_root, tmp_path, monkeypatch, capsys, tmp_path_factory
):
    """They get the trained run of an evaluation, the checkpoints of an interrupted run, and the file of a prior."""
    small = {"OPTIM.MAX_EPOCH": 1, "INPUT.VIEWS": 1}
    given = {"trainers": ["Steady"], "shots": [1], "seeds": [1], "root": data_root, "opts": small}
    chosen = {**given, "plugins": ["steady.py"]}
    expected = protocols.execute(protocols.plan("base_to_new", ["digits"], output=tmp_path / "local", **chosen))
    assert all(isinstance(outcome, dict) for part in expected for outcome in part)
    Path("prior.csv").write_text("0.1\n" * 10, encoding="utf-8")
    with_prior = plan("digits", ["GLA"], shots=[1], seeds=[1], root=data_root, output="out2", opts={**small, **PRIOR})
    interrupted = runs_at("out2", data_root, trainers=["Steady"], shots=[1], seeds=[1])
    assert [type(outcome) for _, outcome in launch(interrupted)] == [dict]
    (interrupted[0].path / "done").unlink()
    at.path.unlink()
    for name in ("robin/1", "robin/2", "wren/1", "wren/2"):
        put(tmp_path / "birds" / f"{name}.png", 1)
    with own_nodes(monkeypatch, tmp_path_factory.getbasetemp(), 1):
        launcher = build(Options("ray"), "out")
        outcomes = protocols.execute(protocols.plan("base_to_new", ["digits"], output="out", **chosen), launcher)
        assert all(isinstance(outcome, dict) for part in outcomes for outcome in part), outcomes
        begun = len(at.lines("begin"))
        ((_, prior),) = launch(with_prior, build(Options("ray"), "out2"))
        ((_, resumed),) = launch(interrupted, build(Options("ray"), "out2"))
        words = ["sweep", "-d", "folder", "-t", "ZeroshotCLIP", "-b", "micro", "--root", "birds", "--seeds", "1"]
        assert main([*words, "--launcher", "ray", "--output", "out3"]) == 2
    assert isinstance(prior, dict) and isinstance(resumed, dict), (prior, resumed)
    assert [int(line[3]) for line in at.lines("begin")[begun:]] == [EPOCHS]  # it trained no epoch again
    assert "there is no 'birds'" in (error := capsys.readouterr().err) and "on the worker" in error
    theirs, ours = results("out"), results(tmp_path / "local")
    assert theirs.keys() == ours.keys() and len(ours) == 2
    for name, (metrics, *parts) in theirs.items():
        evaluated = ours[name][0] | ({"evaluated_from": metrics["evaluated_from"]} if "eval" in name else {})
        assert [metrics, *parts[:2]] == [evaluated, *ours[name][1:3]], name
        assert metrics.get("evaluated_from", "out").startswith("out")


def test_ship_brings_the_code_to_workers_with_another_unskew(at, data_root, tmp_path, monkeypatch, capsys):
    old = tmp_path / "old" / "unskew"
    old.mkdir(parents=True)
    (old / "__init__.py").write_text("__version__ = '0.0.1'", encoding="utf-8")
    words = ["sweep", "-d", "digits", "-t", "ZeroshotCLIP", "--shots", "1", "--seeds", "1", "--root", data_root]
    words += ["--launcher", "ray", "--output", "out"]
    path = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", str(old.parent))
    with shared_nodes(monkeypatch, 1):
        monkeypatch.delenv("PYTHONPATH") if path is None else monkeypatch.setenv("PYTHONPATH", path)
        assert main(words) == 2
        assert "--ship" in (error := capsys.readouterr().err) and len(error.splitlines()) == 1
        monkeypatch.setattr("unskew.runs.launchers._ray_packages.packages", list)  # no package index is needed
        assert main([*words, "--ship"]) == 0
    assert "ZeroshotCLIP" in capsys.readouterr().out
