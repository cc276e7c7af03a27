import gc
import json
import os
import re
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from unskew.cli.main import main
from unskew.engine.run_dir import RunDir, run_folder, trainer_label
from unskew.runs import tables
from unskew.runs.launch import launch, plan, sweep
from unskew.runs.run import Run, execute, load_run, train
from unskew.runs.tables import text_tables

SHORT = ("OPTIM.MAX_EPOCH", 2, "INPUT.VIEWS", 1, "DATALOADER.NUM_WORKERS", 0)


@pytest.fixture
def run(data_root, tmp_path):
    return Run("digits", "CoOp", shots=2, root=data_root, output=str(tmp_path / "out"), opts=SHORT)


def test_a_run_leaves_what_the_design_says(run):
    metrics = execute(run, console=False)
    folder = Path(run.output) / "digits" / "CoOp" / "micro_2shots" / "seed1"
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"log.txt", "config.yaml", "metrics.json", "done", "prompt_learner/checkpoint"} <= files
    predictions = load_file(folder / "predictions.safetensors")
    accuracy = 100 * (predictions["logits"].argmax(1) == predictions["labels"]).float().mean().item()
    assert accuracy == pytest.approx(metrics["accuracy"])
    assert "prompt_learner/model.pth.tar-2" in files
    assert not any(name.startswith(".") for name in files)
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    described = {key: metrics[key] for key in ("dataset", "trainer", "backbone", "shots", "seed")}
    assert described == {"dataset": "digits", "trainer": "CoOp", "backbone": "micro", "shots": 2, "seed": 1}
    log = (folder / "log.txt").read_text()
    for line in ("Finish training", "=> result", "* total:", "* correct:", "* accuracy:", "* macro_f1:"):
        assert line in log


def test_a_finished_run_is_skipped_and_an_unfinished_one_redone(run):
    first = execute(run, console=False)
    folder = Path(run.config.OUTPUT_DIR)
    log = (folder / "log.txt").stat().st_mtime_ns
    assert execute(run, console=False) == first
    assert (folder / "log.txt").stat().st_mtime_ns == log
    (folder / "done").unlink()
    again = execute(run, console=False)
    assert again["accuracy"] == first["accuracy"]
    assert (folder / "log.txt").stat().st_mtime_ns != log


def test_a_finished_run_with_another_config_is_an_error_that_names_the_keys(run):
    execute(run, console=False)
    with pytest.raises(ValueError, match=r"TRAINER\.COOP\.N_CTX"):
        execute(replace(run, opts=(*SHORT, "TRAINER.COOP.N_CTX", 8)), console=False)


def test_an_unfinished_run_of_another_config_starts_again_and_keeps_foreign_files(run):
    execute(run, console=False)
    folder = Path(run.config.OUTPUT_DIR)
    (folder / "done").unlink()
    (folder / "mine").mkdir()
    for name in ("checkpoint", "thesis.txt"):
        (folder / "mine" / name).write_text("mine")
    other = replace(run, opts=(*SHORT, "TRAINER.COOP.N_CTX", 8))
    assert execute(other, console=False)["shots"] == 2
    assert "differs in TRAINER.COOP.N_CTX" in (folder / "log.txt").read_text()
    assert {path.name for path in (folder / "mine").iterdir()} == {"checkpoint", "thesis.txt"}
    (folder / "done").unlink()
    (folder / "config.yaml").write_text("")
    assert execute(other, console=False)["shots"] == 2


def test_a_run_resumes_only_its_own_checkpoints(run, tmp_path, capsys):
    """The same config may have more epochs; the result is that of a run without an interruption."""
    execute(run, console=False)
    folder = str(run.path)
    argv = ["train", "-d", "digits", "-t", "CoOp", "--root", run.root, "--resume"]

    def error(*more):
        assert main([*argv, *more]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and not (tmp_path / "other").exists()
        return lines[0]

    same = ["--shots", "2", *map(str, SHORT)]
    other = ["--output-dir", str(tmp_path / "other")]
    assert "DATASET.NUM_SHOTS, OPTIM.LR, SEED)" in error(
        folder, "--shots", "1", "--seed", "2", *other, *map(str, SHORT), "OPTIM.LR", "0.1", "OPTIM.MAX_EPOCH", "3"
    )
    assert "MODEL.BACKBONE.NAME" in error(folder, "-b", "micro-a", *other, *same)
    assert "TRAINER.NAME" in error(folder, "-t", "ProGrad", *other, *same)
    assert "OPTIM.MAX_EPOCH" in error(folder, *other, *same, "OPTIM.MAX_EPOCH", "1")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"'{empty}' holds no checkpoints" in error(str(empty), *other, *same)
    more = [*same, "OPTIM.MAX_EPOCH", "3", "TRAIN.CHECKPOINT_FREQ", "1"]
    assert main([*argv, folder, *other, *more]) == 0
    log = (tmp_path / "other" / "log.txt").read_text()
    assert "epoch [3/3]" in log and "epoch [2/3]" not in log
    (run.path / "config.yaml").unlink()  # as a folder of CoOp
    assert main([*argv, folder, "--output-dir", str(tmp_path / "again"), *more]) == 0


def test_a_value_that_the_trainer_refuses_keeps_the_checkpoints_of_an_unfinished_run(run):
    execute(run, console=False)
    (run.path / "done").unlink()
    before = {file: file.read_bytes() for file in (*run.path.rglob("model*"), run.path / "config.yaml")}
    wrong = replace(run, folder=str(run.path), opts=(*SHORT, "TRAINER.COOP.N_CTX", 0))
    with pytest.raises(ValueError, match="N_CTX"):
        execute(wrong, console=False)
    assert len(before) > 1 and {file: file.read_bytes() for file in before} == before


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"TRAINER: 3", b"DATASET: {NAME: digits}", b"SEED: [", b"- 1"])
def test_a_damaged_config_starts_an_unfinished_run_again_and_names_the_file_of_a_finished_one(run, content, capsys):
    first = execute(run, console=False)
    run.path.joinpath("config.yaml").write_bytes(content)
    assert execute(run, console=False) == first  # its fingerprint is in `done`
    changed = replace(run, opts=(*SHORT, "OPTIM.LR", 0.1))
    for action in (lambda: execute(changed, console=False), lambda: load_run(run.path), lambda: restored(run.path)):
        with pytest.raises(ValueError, match=rf"config\.yaml'.*delete the folder '{run.path}'"):
            action()
    (run.path / "done").write_bytes(b"")  # as after a power cut
    assert not run.is_finished
    assert execute(run, console=False)["accuracy"] == first["accuracy"]


def restored(folder):
    return RunDir(folder).read_config()


def test_without_a_test_there_is_no_accuracy(run):
    metrics = execute(replace(run, opts=(*SHORT, "TEST.NO_TEST", True, "TEST.FINAL_MODEL", "best_val")), console=False)
    assert "accuracy" not in metrics


def test_names_of_folders():
    def where(*opts, **kwargs):
        cfg = Run("digits", opts=opts, **({"shots": 16} | kwargs)).config
        return run_folder(cfg, "o").as_posix()

    assert where(trainer="GLA") == "o/digits/GLA/micro_16shots/seed1"
    assert where("TRAINER.GLA.BASE", "CoOp", trainer="GLA") == "o/digits/GLA-CoOp/micro_16shots/seed1"
    assert where(trainer="CoOp", backbone="ViT-B/16", shots=-1, seed=0) == "o/digits/CoOp/ViT-B-16_allshots/seed0"
    assert where(trainer="CoOp", backbone="ViT-B-16@laion2b_s34b_b88k").split("/")[3].startswith("ViT-B-16-laion2b")
    assert trainer_label(Run("digits", "CoOp").config) == "CoOp"
    cfg = Run("shapes_lt", "CoOp").config
    assert run_folder(cfg, "o").as_posix() == "o/shapes_lt/CoOp/micro_lt/seed1"
    assert run_folder(Run("shapes_lt", "CoOp", shots=4).config, "o").as_posix().split("/")[3] == "micro_4shots"


def test_a_long_tailed_run_uses_all_images_and_is_labelled_long_tailed(run):
    metrics = execute(replace(run, dataset="digits_lt", trainer="ZeroshotCLIP", shots=None), console=False)
    assert (metrics["shots"], metrics["longtail"]) == (-1, True)
    assert (Path(run.output) / "digits_lt" / "ZeroshotCLIP" / "micro_lt" / "seed1" / "done").is_file()
    assert "long-tailed" in text_tables.table(tables.collect(run.output))


def test_launch_maps_runs_to_results(run):
    runs = [replace(run, trainer="ZeroshotCLIP", seed=seed) for seed in (1, 2)]
    rows = [row for _, row in launch(runs)]
    assert [row["seed"] for row in rows] == [1, 2]
    collected = tables.collect(run.output)
    assert [{**row, "folder": where["folder"]} for row, where in zip(rows, collected, strict=True)] == collected


def test_a_run_that_fails_does_not_stop_the_others(run, capsys):
    """GLA has no val to choose an epoch on; zero-shot needs none."""
    argv = ["sweep", "-d", "digits", "-t", "GLA", "ZeroshotCLIP", "--shots", "1", "--seeds", "1", "2"]
    opts = [*map(str, SHORT), "DATASET.NUM_VAL_SHOTS", "0"]
    assert main([*argv, "--root", run.root, "--output", run.output, "--opts", *opts]) == 2
    said = capsys.readouterr()
    assert "2 of 4 runs failed" in said.err
    assert "GLA, 1 shot, seed 1: TEST.FINAL_MODEL is best_val, but 'digits' has no val split" in said.err
    assert said.err.count("no val split") == 1 and "2 runs failed with the error of run 1" in said.err
    assert "| ZeroshotCLIP | 69." in said.out
    # No terminal, so there is a line for each run instead of a bar.
    assert "run 3 of 4, ZeroshotCLIP, 1 shot, seed 1, accuracy 69." in said.err and "\r" not in said.err


def test_an_error_of_any_kind_stops_one_run_and_is_in_its_log(run, capsys, monkeypatch):
    from unskew.trainers.coop import CoOp

    monkeypatch.setattr(CoOp, "build_model", lambda self: self.cfg["NOTHING"])
    argv = ["sweep", "-d", "digits", "-t", "CoOp", "ZeroshotCLIP", "--shots", "1", "--seeds", "1", "--root", run.root]
    assert main([*argv, "--output", run.output]) == 2
    said = capsys.readouterr()
    log = Path(run.output) / "digits" / "CoOp" / "micro_1shots" / "seed1" / "log.txt"
    assert f"run 1 of 2, CoOp, 1 shot, seed 1: KeyError: 'NOTHING' ({log})" in said.err
    assert "Traceback" not in said.err and "Traceback" in log.read_text() and "KeyError" in log.read_text()
    assert "1 of 2 runs failed" in said.err and "| ZeroshotCLIP | 69." in said.out
    monkeypatch.setenv("UNSKEW_DEBUG", "1")
    with pytest.raises(KeyError):
        main([*argv, "--output", run.output])


@pytest.fixture
def work(monkeypatch):
    """Replace the execution of runs by a function of the run."""
    return lambda function: monkeypatch.setattr("unskew.runs.launch.execute", lambda run, console: function(run))


def failing(error, kept=()):
    """A function that raises from a frame that holds something large."""

    class Trainer:
        pass

    def work(run):
        trainer = Trainer()
        kept.append(weakref.ref(trainer))
        try:
            {}["inside"]
        except KeyError:
            raise error  # noqa: B904 - with the context of another error

    return work


def test_the_memory_of_a_failed_run_is_freed(run, work):
    kept = []
    work(failing(RuntimeError("CUDA out of memory"), kept))
    outcomes = [outcome for _, outcome in launch([run, run])]
    gc.collect()
    assert [str(outcome) for outcome in outcomes] == ["CUDA out of memory"] * 2
    assert [reference() for reference in kept] == [None, None]


def test_no_process_of_several_continues_alone(run, work, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    work(failing(RuntimeError("out of memory"), []))
    with pytest.raises(RuntimeError, match="out of memory"):
        list(launch([run, run]))
    work(failing(ValueError("no val"), []))
    assert len(list(launch([run, run]))) == 2  # every process meets this error
    assert capsys.readouterr().err == ""  # only the first process prints it


@pytest.mark.parametrize("metrics", [{}, {"accuracy": None}, {"accuracy": 5}])
def test_lines_of_runs_need_no_numbers(run, metrics, work, capsys):
    work(lambda one: metrics)
    assert list(launch([run])) == [(0, metrics)]
    shown = ", accuracy 5.0" if metrics.get("accuracy") else ""
    assert capsys.readouterr().err == f"run 1 of 1, CoOp, 2 shots, seed None{shown}\n"


def test_a_wrong_config_fails_only_its_own_run(run, work, capsys):
    runs = [replace(run, opts=("NO.SUCH", 1)), run]
    work(lambda one: {})
    assert [type(outcome) for _, outcome in launch(runs)] == [ValueError, dict]
    error = capsys.readouterr().err
    assert "run 1 of 2, CoOp, 2 shots, seed None: " in error and "'NO.SUCH'" in error


def test_finished_runs_are_said_to_be_and_so_is_a_method_that_was_changed_since(run, capsys, caplog, tmp_path):
    argv = ["-d", "digits", "--shots", "1", "--root", run.root]
    sweep_argv = ["sweep", *argv, "-t", *["ZeroshotCLIP"] * 2, "--seeds", "1", "1", "--output", str(tmp_path)]
    assert main(sweep_argv) == 0
    assert "run 1 of 1, ZeroshotCLIP, 1 shot, seed 1, accuracy" in (said := capsys.readouterr().err)
    assert "earlier" not in said
    assert main(sweep_argv) == 0
    assert ", finished earlier\n" in capsys.readouterr().err and not caplog.text
    done = tmp_path / "digits" / "ZeroshotCLIP" / "micro_1shots" / "seed1" / "done"
    os.utime(done, (0, 0))
    assert main(sweep_argv) == 0
    assert f"zeroshotclip.py' was changed after '{done.parent}' was finished" in caplog.text
    capsys.readouterr()
    assert main(["train", *argv, "-t", "ZeroshotCLIP", "--seed", "1", "--output-dir", str(done.parent)]) == 0
    assert "%, finished earlier, in" in capsys.readouterr().out


def test_a_long_tailed_set_is_swept_with_all_its_images(run, capsys):
    argv = [
        "sweep",
        "-d",
        "digits_lt",
        "-t",
        "ZeroshotCLIP",
        "--seeds",
        "1",
        "--root",
        run.root,
        "--output",
        run.output,
    ]
    for wrong in ("acuracy", "p_feww", "d_foo"):
        assert main([*argv, "--columns", "accuracy", wrong]) == 2
        assert f"'{wrong}'" in capsys.readouterr().err
    assert not Path(run.output).exists()  # before the first run
    assert main([*argv, "--columns", "accuracy", "d_few"]) == 0
    assert "d few" in capsys.readouterr().out
    assert (Path(run.output) / "digits_lt" / "ZeroshotCLIP" / "micro_lt" / "seed1" / "done").is_file()


def test_weights_of_another_backbone_are_not_evaluated(run, capsys):
    folder = execute(run, console=False) and run.config.OUTPUT_DIR
    argv = ["train", "-d", "digits", "--shots", "2", "--root", run.root, "--eval-only", "--model-dir", folder]
    assert main([*argv, "-t", "CoOp", "-b", "micro-b"]) == 2
    assert "MODEL.BACKBONE.NAME micro, " in capsys.readouterr().err
    assert main([*argv, "-t", "ProGrad"]) == 2
    assert "TRAINER.NAME CoOp, " in capsys.readouterr().err
    assert main([*argv[:-1], "nope", "-t", "ZeroshotCLIP"]) == 2
    assert "'nope'" in capsys.readouterr().err
    assert main([*argv, "-t", "CoOp"]) == 0


def test_a_run_that_diverges_is_one_line(run, capsys):
    argv = ["train", "-d", "digits", "-t", "CoOp", "--shots", "1", "--root", run.root, "--output-dir", run.output]
    assert main([*argv, "OPTIM.LR", "1e38", "OPTIM.MAX_EPOCH", "4"]) == 2
    error = capsys.readouterr().err.strip()
    assert re.fullmatch(r"unskew: error: Loss is infinite or NaN! \(epoch \d\); lower OPTIM.LR", error)


def test_a_wrong_key_gives_one_error(run, capsys):
    argv = ["sweep", "-d", "digits", "-t", "ZeroshotCLIP", "--seeds", "1", "2", "--root", run.root]
    assert main([*argv, "--output", run.output, "--opts", "OPTIM.LRR", "1"]) == 2
    assert capsys.readouterr().err.count("OPTIM.LRR") == 1


def test_sweep_command_ends_with_the_table(run, capsys):
    argv = ["sweep", "-d", "digits", "-t", "ZeroshotCLIP", "CoOp", "--shots", "1 2", "--seeds", "1", "2"]
    assert main([*argv, "--root", run.root, "--output", run.output, "--opts", *map(str, SHORT)]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line.split("|")[1].strip() for line in lines[-2:]] == ["ZeroshotCLIP", "CoOp"]
    assert "1 shot" in lines[-4]
    assert "2 shots" in lines[-4]
    assert main(["table", run.output, "--metric", "macro_f1"]) == 0
    assert "macro_f1" in capsys.readouterr().out


def test_train_then_eval_only_gives_the_same_accuracy(run, tmp_path, capsys):
    flags = ["-d", "digits", "-t", "CoOp", "--shots", "2", "--seed", "0", "--root", run.root]
    where = str(tmp_path / "run")
    assert main(["train", *flags, "--output-dir", where, *map(str, SHORT)]) == 0
    accuracy = json.loads((tmp_path / "run" / "metrics.json").read_text())["accuracy"]
    capsys.readouterr()
    coop = [
        "--dataset-config-file",
        "configs/datasets/digits.yaml",
        "--trainer",
        "CoOp",
        "--root",
        run.root,
        "--seed",
        "0",
    ]
    argv = ["train", *coop, "--eval-only", "--model-dir", where, *map(str, SHORT), "DATASET.NUM_SHOTS", "2"]
    assert main(argv) == 0
    assert f"* accuracy: {accuracy:.1f}%" in capsys.readouterr().out


def test_more_shots_than_images_take_all_and_say_so_once(run, tmp_path):
    import shutil

    execute(replace(run, trainer="ZeroshotCLIP"), console=False)  # renders the images
    shutil.copytree(Path(run.root) / "digits", tmp_path / "data" / "digits", ignore=shutil.ignore_patterns("split_*"))
    opts = (*SHORT, "DATASET.NUM_VAL_SHOTS", 4)
    run = replace(run, trainer="ZeroshotCLIP", shots=100_000, root=str(tmp_path / "data"), opts=opts)
    metrics = execute(run, console=False)
    assert metrics["shots"] == 100_000
    log = (Path(run.output) / "digits" / "ZeroshotCLIP" / "micro_100000shots" / "seed1" / "log.txt").read_text()
    assert log.count("fewer than 100000 images") == 1


def test_a_broken_image_names_the_file(run, data_root, tmp_path):
    import shutil

    root = tmp_path / "data"
    execute(replace(run, trainer="ZeroshotCLIP"), console=False)
    shutil.copytree(Path(data_root) / "digits", root / "digits")
    victim = sorted((root / "digits").rglob("test*/**/*.png"))[0]
    victim.write_bytes(victim.read_bytes()[:40])
    with pytest.raises(ValueError, match=victim.name):
        execute(replace(run, trainer="ZeroshotCLIP", root=str(root), output=str(tmp_path / "o2")), console=False)
    victim.unlink()
    with pytest.raises(FileNotFoundError, match=victim.name):
        execute(replace(run, trainer="ZeroshotCLIP", root=str(root), output=str(tmp_path / "o3")), console=False)


def test_train_loads_its_config_once(run, monkeypatch, capsys):
    from unskew import config

    calls = []
    load = config.load
    monkeypatch.setattr(config, "load", lambda *args, **kwargs: (calls.append(args), load(*args, **kwargs))[1])
    argv = ["train", "-d", "digits", "--shots", "1", "--root", run.root, "--output-dir", run.output]
    for trainer in ("ZeroshotCLIP", "GLA", "Backdoor"):
        opts = [*map(str, SHORT), "OPTIM.MAX_EPOCH", "1"]
        assert main([*argv[:-1], f"{run.output}/{trainer}", "-t", trainer, "--shots", "2", *opts]) == 0
        assert len(calls) == 1
        calls.clear()


def test_a_base_of_a_finished_run_needs_no_second_config(run, tmp_path, monkeypatch):
    from unskew import config

    base = replace(run, trainer="CoOp", folder=str(tmp_path / "base"))
    execute(base, console=False)
    over = replace(run, trainer="GLA", opts=(*SHORT, "TRAINER.GLA.BASE", "CoOp", "TRAINER.GLA.BASE_DIR", base.folder))
    assert over.config
    monkeypatch.setattr(config, "load", None)
    assert execute(over, console=False)["accuracy"] > 50


def test_load_run_returns_the_run_with_its_config_metrics_and_predictions(run):
    trained = train(
        "digits",
        "CoOp",
        shots=2,
        root=run.root,
        output=run.output,
        opts=dict(zip(SHORT[::2], SHORT[1::2], strict=True)),
    )
    loaded = load_run(trained.path)
    assert (loaded.dataset, loaded.trainer, loaded.backbone, loaded.shots, loaded.seed) == (
        *("digits", "CoOp", "micro"),
        *(2, 1),
    )
    assert loaded.config == trained.config and loaded.path == trained.path
    assert loaded.metrics == trained.metrics == json.loads((trained.path / "metrics.json").read_text())
    right = loaded.predictions["logits"].argmax(1) == loaded.predictions["labels"]
    assert 100 * right.float().mean().item() == pytest.approx(loaded.metrics["accuracy"])
    assert execute(loaded, console=False) == loaded.metrics  # the fingerprint is the same
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_run("nowhere")
    with pytest.raises(FileNotFoundError, match=r"metrics\.json"):
        replace(run, seed=9).metrics  # noqa: B018


def test_sweep_returns_its_runs_and_results_reads_them(run):
    runs = sweep(
        "digits", ["ZeroshotCLIP", "CoOp"], shots=[1], seeds=[1, 2], root=run.root, output=run.output, opts=SHORT
    )
    assert [(one.trainer, one.seed) for one in runs] == [
        *(("ZeroshotCLIP", 1), ("ZeroshotCLIP", 2)),
        *(("CoOp", 1), ("CoOp", 2)),
    ]
    frame = tables.results(run.output)
    rows = {(row.trainer, row.seed): row.accuracy for row in frame.itertuples()}
    assert rows == {(one.trainer, one.seed): one.metrics["accuracy"] for one in runs}
    with pytest.raises(ValueError, match="1 of 1"):
        opts = (*SHORT, "DATASET.NUM_VAL_SHOTS", 0)
        sweep("digits", ["GLA"], shots=[1], seeds=[1], root=run.root, output=run.output, opts=opts)


@pytest.mark.parametrize("key", ["SEED", "DATASET.NUM_SHOTS", "OUTPUT_DIR"])
def test_a_sweep_refuses_overrides_that_would_make_its_runs_one(key, run, capsys):
    argv = ["sweep", "-d", "digits", "-t", "ZeroshotCLIP", "--shots", "1", "--root", run.root, "--output", run.output]
    assert main([*argv, "--opts", key, "9"]) == 2
    assert f"{key} " in capsys.readouterr().err
    with pytest.raises(ValueError, match=key):
        sweep("digits", ["ZeroshotCLIP"], root=run.root, output=run.output, opts={key: 9})
    assert not Path(run.output).exists()


def test_two_spellings_of_a_name_are_one_run(run):
    backbones = ["ViT-B/16", "ViT-B-16", "RN50"]
    runs = plan("digits", ["CoOp", "CoOp"], backbones=backbones, shots=[1], seeds=[2, 1, 2], output=run.output)
    assert [(one.backbone, one.seed) for one in runs] == [(b, s) for b in ("ViT-B/16", "RN50") for s in (2, 1)]


def test_overrides_may_not_contradict_the_names_of_a_run(run):
    """They may repeat them, and name the backbone and the folder if no argument does."""
    for key, value in (
        *(("TRAINER.NAME", "GLA"), ("TRAINER.CLASS", "LinearProbe")),
        *(("DATASET.NAME", "shapes"), ("MODEL.BACKBONE.NAME", "micro-a")),
    ):
        other = replace(run, backbone="micro", opts=(*SHORT, key, value))
        with pytest.raises(ValueError, match=f"{key} is '{value}'"):
            other.config  # noqa: B018
        file = Path(run.output).with_name("extra.yaml")
        file.write_text(f"{key}: {value}")
        with pytest.raises(ValueError, match=f"{key} is '{value}'"):
            replace(run, backbone="micro", config_file=str(file)).config  # noqa: B018
    same = ("TRAINER.NAME", "CoOp", "DATASET.NAME", "digits", "TRAINER.CLASS", "", "OUTPUT_DIR", "there")
    cfg = replace(run, opts=(*same, "MODEL.BACKBONE.NAME", "ViT-B-16")).config
    assert (cfg.MODEL.BACKBONE.NAME, cfg.OUTPUT_DIR) == ("ViT-B/16", "there")
    assert replace(run, backbone="ViT-B/16", opts=("MODEL.BACKBONE.NAME", "ViT-B-16")).config


def test_numbers_paths_and_lists_of_other_kinds_make_the_same_run(run, tmp_path):
    plain = Run("digits", "CoOp", shots=2, seed=3, opts=("OPTIM.LR", 0.5, "INPUT.RRCROP_SCALE", (0.5, 1.0)))
    opts = {"OPTIM": {"LR": np.float32(0.5)}, "INPUT.RRCROP_SCALE": [0.5, np.float64(1)]}
    numpy = Run("digits", "CoOp", shots=np.int64(2), seed=np.int64(3), output=Path("output"), opts=opts)
    assert numpy == plain and hash(numpy) == hash(plain) and numpy.config == plain.config
    one = plan("digits", "CoOp", shots=2, seeds=3, opts=opts)
    assert [(r.trainer, r.shots, r.seed) for r in one] == [("CoOp", 2, 3)]
    assert [r.seed for r in plan("digits", "CoOp", shots=["2"], seeds=np.arange(2), opts=None)] == [0, 1]
    assert Run("digits", "CoOp", plugins=Path("x.py")).plugins == ("x.py",)
    for wrong in ({"dataset": None}, {"output": None}, {"shots": "many"}, {"seed": 1.5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Run(**({"dataset": "digits", "trainer": "CoOp"} | wrong))
    with pytest.raises(ValueError, match="None"):
        sweep("digits", "CoOp", output=None)
    with pytest.raises(ValueError, match=r"OPTIM\.LR"):
        replace(run, opts=("OPTIM.LR", None)).config  # noqa: B018
    with pytest.raises(ValueError, match="-1"):
        plan("digits", "CoOp", seeds=[-1])


def test_a_run_is_found_after_a_change_of_the_folder(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained = train("digits", "ZeroshotCLIP", shots=1, seed=1, root=run.root, output="here")
    loaded = load_run("here/digits/ZeroshotCLIP/micro_1shots/seed1")
    monkeypatch.chdir("/")
    assert trained.is_finished and loaded.metrics == trained.metrics
    (trained.path / "predictions.safetensors").write_bytes(b"\xff" * 9)
    with pytest.raises(ValueError, match=r"predictions\.safetensors"):
        trained.predictions  # noqa: B018


def test_dry_run_lists_the_runs_with_state_and_folder(run, capsys):
    execute(replace(run, trainer="ZeroshotCLIP", shots=1, seed=1), console=False)
    other = replace(run, trainer="ZeroshotCLIP", shots=2, seed=1, opts=(*SHORT, "DATASET.SEED", 5))
    execute(other, console=False)
    argv = ["sweep", "-d", "digits", "-t", "ZeroshotCLIP", "CoOp", "--shots", "1 2", "--seeds", "1", "--dry-run"]
    assert main([*argv, "--root", run.root, "--output", run.output, "--opts", *map(str, SHORT)]) == 0
    out = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")][2:]
    states = {(trainer, shots): state for trainer, _, shots, _, state, _ in lines}
    assert states[("ZeroshotCLIP", "1")] == "finished" and states[("ZeroshotCLIP", "2")].startswith("finished with")
    assert states[("CoOp", "1")] == states[("CoOp", "2")] == "new"
    assert lines[0][5] == f"{run.output}/digits/ZeroshotCLIP/micro_1shots/seed1"
    assert "1 of 4 runs are finished; 1 would fail" in out
    assert not (Path(run.output) / "digits" / "CoOp").exists()
