import gc
import json
import os
import re
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from unskew.cli.main import main
from unskew.engine.run_dir import run_folder, trainer_label
from unskew.runs import report
from unskew.runs.launch import launch
from unskew.runs.run import Run, execute

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


def test_an_unfinished_run_of_another_config_starts_anew_and_spares_what_is_not_its_own(run, caplog):
    execute(run, console=False)
    folder = Path(run.config.OUTPUT_DIR)
    (folder / "done").unlink()
    (folder / "mine").mkdir()
    for name in ("checkpoint", "thesis.txt"):
        (folder / "mine" / name).write_text("mine")
    other = replace(run, opts=(*SHORT, "TRAINER.COOP.N_CTX", 8))
    assert execute(other, console=False)["shots"] == 2
    assert "TRAINER.COOP.N_CTX" in caplog.text
    assert {path.name for path in (folder / "mine").iterdir()} == {"checkpoint", "thesis.txt"}
    (folder / "done").unlink()
    (folder / "config.yaml").write_text("")
    assert execute(other, console=False)["shots"] == 2


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


def test_a_long_tailed_run_uses_all_images_and_its_table_says_so(run):
    metrics = execute(replace(run, dataset="digits_lt", trainer="ZeroshotCLIP", shots=None), console=False)
    assert (metrics["shots"], metrics["longtail"]) == (-1, True)
    assert (Path(run.output) / "digits_lt" / "ZeroshotCLIP" / "micro_lt" / "seed1" / "done").is_file()
    assert "long-tailed" in report.table(report.collect(run.output))


def test_launch_maps_runs_to_results(run):
    runs = [replace(run, trainer="ZeroshotCLIP", seed=seed) for seed in (1, 2)]
    rows = list(launch(runs, lambda one: execute(one, console=False)))
    assert [row["seed"] for row in rows] == [1, 2]
    collected = report.collect(run.output)
    assert [{**row, "folder": where["folder"]} for row, where in zip(rows, collected, strict=True)] == collected


def test_a_run_that_fails_does_not_stop_the_others(run, capsys):
    """GLA has no val to choose an epoch on; zero-shot needs none."""
    argv = ["sweep", "-d", "digits", "-t", "GLA", "ZeroshotCLIP", "--shots", "1", "--seeds", "1", "2"]
    opts = [*map(str, SHORT), "DATASET.NUM_VAL_SHOTS", "0"]
    assert main([*argv, "--root", run.root, "--output", run.output, "--opts", *opts]) == 2
    said = capsys.readouterr()
    assert "2 of 4 runs failed" in said.err
    assert "GLA, 1 shot, seed 2: TEST.FINAL_MODEL is best_val, but 'digits' has no val split" in said.err
    assert "| ZeroshotCLIP | 69." in said.out
    # No terminal, so there is a line for each run in place of a bar.
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


def failing(error, kept=()):
    """What stands for a run's work: it raises from a frame that holds something large."""

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


def test_what_a_failed_run_held_is_let_go(run):
    kept = []
    outcomes = list(launch([run, run], failing(RuntimeError("CUDA out of memory"), kept)))
    gc.collect()
    assert [str(outcome) for outcome in outcomes] == ["CUDA out of memory"] * 2
    assert [reference() for reference in kept] == [None, None]


def test_of_several_processes_none_goes_on_alone(run, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(RuntimeError, match="out of memory"):
        list(launch([run, run], failing(RuntimeError("out of memory"), [])))
    assert len(list(launch([run, run], failing(ValueError("no val"), [])))) == 2  # all of them have that
    assert capsys.readouterr().err == ""  # the first one says it


@pytest.mark.parametrize("metrics", [{}, {"accuracy": None}, {"accuracy": 5}])
def test_lines_of_runs_need_no_numbers(run, metrics, capsys):
    assert list(launch([run], lambda one: metrics)) == [metrics]
    shown = ", accuracy 5.0" if metrics.get("accuracy") else ""
    assert capsys.readouterr().err == f"run 1 of 1, CoOp, 2 shots, seed None{shown}\n"


def test_a_config_that_cannot_be_read_is_that_runs_error(run, capsys):
    runs = [replace(run, opts=("NO.SUCH", 1)), run]
    assert [type(outcome) for outcome in launch(runs, lambda one: {})] == [ValueError, dict]
    assert (
        "run 1 of 2, CoOp, 2 shots, seed None: the command line: unknown config key 'NO.SUCH'"
        in capsys.readouterr().err
    )


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


def test_a_long_tailed_set_is_swept_with_all_its_images_and_a_wrong_column_is_said(run, capsys):
    argv = ["sweep", "-d", "digits_lt", "-t", "ZeroshotCLIP", "--seeds", "1", "--root", run.root]
    assert main([*argv, "--output", run.output, "--columns", "accuracy", "d_few", "acuracy"]) == 2
    assert "no run has the metric 'acuracy'; there are accuracy" in capsys.readouterr().err
    assert (Path(run.output) / "digits_lt" / "ZeroshotCLIP" / "micro_lt" / "seed1" / "done").is_file()


def test_weights_of_another_backbone_are_not_evaluated(run, capsys):
    folder = execute(run, console=False) and run.config.OUTPUT_DIR
    argv = ["train", "-d", "digits", "--shots", "2", "--root", run.root, "--eval-only", "--model-dir", folder]
    assert main([*argv, "-t", "CoOp", "-b", "micro-b"]) == 2
    assert "has MODEL.BACKBONE.NAME micro, this one micro-b" in capsys.readouterr().err
    assert main([*argv, "-t", "ProGrad"]) == 2
    assert "has TRAINER.NAME CoOp, this one ProGrad" in capsys.readouterr().err
    assert main([*argv, "-t", "CoOp"]) == 0


def test_a_run_that_diverges_is_one_line(run, capsys):
    argv = ["train", "-d", "digits", "-t", "CoOp", "--shots", "1", "--root", run.root, "--output-dir", run.output]
    assert main([*argv, "OPTIM.LR", "1e38", "OPTIM.MAX_EPOCH", "4"]) == 2
    error = capsys.readouterr().err.strip()
    assert re.fullmatch(r"unskew: error: Loss is infinite or NaN! \(epoch \d\); lower OPTIM.LR", error)


def test_a_wrong_key_is_said_once(run, capsys):
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

    shutil.copytree(Path(run.root) / "digits", tmp_path / "data" / "digits", ignore=shutil.ignore_patterns("split_*"))
    opts = (*SHORT, "DATASET.NUM_VAL_SHOTS", 4)
    run = replace(run, trainer="ZeroshotCLIP", shots=100_000, root=str(tmp_path / "data"), opts=opts)
    metrics = execute(run, console=False)
    assert metrics["shots"] == 100_000
    log = (Path(run.output) / "digits" / "ZeroshotCLIP" / "micro_100000shots" / "seed1" / "log.txt").read_text()
    assert log.count("100000 images per class were asked for") == 1


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
