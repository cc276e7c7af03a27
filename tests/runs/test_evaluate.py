"""``--eval-only`` takes the model's settings from the trained run and never writes into its folder."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from unskew.cli.main import main
from unskew.runs import tables

SHORT = ["OPTIM.MAX_EPOCH", "2", "INPUT.VIEWS", "1", "DATALOADER.NUM_WORKERS", "0"]


@pytest.fixture(scope="module")
def trained(data_root, tmp_path_factory):
    """A function that returns a copy of a run's folder on digits, with a context of 3 tokens on micro-a."""
    output, done = tmp_path_factory.mktemp("runs"), {}

    def run(trainer, *opts):
        key = (trainer, *opts)
        if key not in done:
            done[key] = output / str(len(done)) / "digits" / trainer
            backbone = [] if trainer == "Backdoor" else ["-b", "micro-a"]
            flags = ["--root", data_root, "--shots", "2", "--seed", "5", "--output-dir", str(done[key])]
            assert main(["train", "-d", "digits", "-t", trainer, *backbone, *flags, *SHORT, *opts]) == 0
        return done[key]

    return run


def content(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "eval" not in path.relative_to(folder).parts
    }


def metrics_in(folder):
    return json.loads((Path(folder) / "metrics.json").read_text())


def test_another_dataset_needs_only_the_folder_of_the_run(trained, data_root, capsys):
    folder = trained("CoOp", "TRAINER.COOP.N_CTX", "3")
    before = content(folder)
    assert main(["train", "--eval-only", "--model-dir", str(folder), "-d", "shapes", "--root", data_root]) == 0
    place = folder / "eval" / "shapes"
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"%, in {place}")
    assert {path.name for path in place.iterdir()} == {
        *("config.yaml", "done", "log.txt", "metrics.json", "predictions.safetensors")
    }
    metrics, predictions = metrics_in(place), load_file(place / "predictions.safetensors")
    assert predictions["logits"].shape[1] == 96 == len(metrics["classnames"])
    right = predictions["logits"].argmax(1) == predictions["labels"]
    assert 100 * right.float().mean().item() == pytest.approx(metrics["accuracy"])
    described = {key: metrics[key] for key in ("dataset", "trainer", "backbone", "shots", "seed", "evaluated_from")}
    names = {"dataset": "shapes", "trainer": "CoOp", "backbone": "micro-a", "shots": 2, "seed": 5}
    assert described == {**names, "evaluated_from": str(folder)}
    assert content(folder) == before


def test_without_a_dataset_the_run_is_tested_again(trained, capsys):
    folder = trained("CoOp", "TRAINER.COOP.N_CTX", "3")
    assert main(["train", "--eval-only", "--model-dir", str(folder)]) == 0
    assert metrics_in(folder / "eval" / "digits")["accuracy"] == metrics_in(folder)["accuracy"]
    assert [row["folder"] for row in tables.collect(folder.parent)] == [str(folder)]  # tables leave it out


def test_explicit_settings_win_and_a_wrong_one_names_its_key(trained, data_root, tmp_path, capsys):
    folder = trained("CoOp", "TRAINER.COOP.N_CTX", "3")
    argv = ["train", "--eval-only", "--model-dir", str(folder), "--output-dir", str(tmp_path / "out")]
    assert main([*argv, "--seed", "1", "DATASET.NUM_SHOTS", "1"]) == 0
    assert [metrics_in(tmp_path / "out")[key] for key in ("seed", "shots")] == [1, 1]
    capsys.readouterr()
    assert main([*argv, "TRAINER.COOP.N_CTX", "4"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "TRAINER.COOP.N_CTX 3" in line and "size mismatch" not in line


def test_a_checkpoint_of_another_context_names_the_key_without_a_config(trained, data_root, tmp_path, capsys):
    """A folder of CoOp has no config.yaml."""
    folder = tmp_path / "coop"
    shutil.copytree(trained("CoOp", "TRAINER.COOP.N_CTX", "3") / "prompt_learner", folder / "prompt_learner")
    flags = ["-d", "digits", "-t", "CoOp", "-b", "micro-a", "--root", data_root, "--shots", "2"]
    argv = ["train", *flags, "--eval-only", "--model-dir", str(folder), "--output-dir", str(tmp_path / "out")]
    assert main([*argv, "TRAINER.COOP.N_CTX", "4"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "TRAINER.COOP.N_CTX" in line and "[3, " in line and "[4, " in line
    assert main([*argv, "TRAINER.COOP.N_CTX", "3", "--load-epoch", "2"]) == 0


@pytest.mark.parametrize(
    ("words", "named"),
    [("--load-epoch 7", "--load-epoch 7"), ("--output-dir {}", "--output-dir"), ("--model-dir {}/nope", "nope")],
)
def test_a_wrong_folder_or_epoch_is_one_line_before_data_is_read(trained, words, named, capsys, monkeypatch):
    folder = trained("CoOp", "TRAINER.COOP.N_CTX", "3")
    monkeypatch.setattr("unskew.data.loaders.build_dataset", None)
    before = content(folder)
    assert main(["train", "--eval-only", "--model-dir", str(folder), *words.format(folder).split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line and content(folder) == before


def test_a_base_in_another_folder_is_found_again(trained, data_root):
    base = trained("CoOp", "TRAINER.COOP.N_CTX", "3")
    pairs = ("TRAINER.GLA.BASE", "CoOp", "TRAINER.GLA.BASE_DIR", str(base))
    folder = trained("GLA", *pairs)
    assert main(["train", "--eval-only", "--model-dir", str(folder)]) == 0
    assert metrics_in(folder / "eval" / "digits")["accuracy"] == metrics_in(folder)["accuracy"]


def test_the_members_of_another_dataset_are_only_read(trained, data_root):
    folder = trained("Backdoor", "TRAINER.BACKDOOR.MEMBERS", "['micro-a']", "TRAINER.BACKDOOR.BASE", "CoOp")
    before = content(folder)
    argv = ["train", "--eval-only", "--model-dir", str(folder), "--root", data_root]
    assert main([*argv, "-d", "patterns"]) == 0
    assert metrics_in(folder / "eval" / "patterns")["backbone"] == "micro-a"
    assert content(folder) == before
