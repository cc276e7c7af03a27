from pathlib import Path

import pytest

from unskew.cli.main import main
from unskew.runs.launch import check_shots


def answer(capsys, *argv):
    """(exit code, what is on stderr) of a command that a user got wrong."""
    try:
        code = main(argv)
    except SystemExit as error:
        code = error.code
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["train", "-d", "digit", "-t", "GLA"], "did you mean digits"),
        (["train", "-d", "digits", "-t", "GLAA"], "did you mean GLA"),
        (["train", "-d", "digits", "-t", "GLA", "-b", "micr"], "did you mean micro"),
        (["train", "-d", "digits", "-t", "GLA", "OPTIM.LRR", "1"], "did you mean OPTIM.LR"),
        (["train", "-d", "digits", "-t", "GLA", "--shots", "0"], "shots must be 1 or more"),
        (["train", "-d", "digits", "-t", "GLA", "--resume", "nowhere"], "--resume 'nowhere' is not a folder"),
        (["train", "-d", "digits", "-t", "GLA", "OPTIM.MAX_EPOCH", "-3"], "OPTIM.MAX_EPOCH must be 0 or more, got -3"),
        (["train", "-d", "digits", "-t", "GLA", "TEST.FINAL_MODEL", "best"], "did you mean best_val"),
        (["train", "-d", "digits"], "--trainer"),
        (["train", "-d", "digits", "-t", "GLA", "--shots", "x"], "--shots"),
        (["train", "-d", "digits", "-t", "GLA", "OPTIM.LR", "1", "--resume", "c2"], "--resume 'c2'"),
        (["train", "-d", "digits", "-t", "GLA", "OPTIM.LR", "--load-epoch", "7", "2"], "'--load-epoch'"),
        (["train", "-d", "digits", "-t", "GLA", "OPTIM.LR", "1", "--no-eval"], "--no-eval"),
        (["train", "-d", "digits", "-t", "GLA", "--eval-only", "--model-dir", "nowhere"], "--model-dir 'nowhere'"),
        (["train", "-d", "digits", "-t", "GLA", "QQQ.ZZZ", "1"], "unskew/config/defaults.py"),
        (["sweep", "-d", "digits", "-t", "GLA", "--shots", "-3"], "shots must be 1 or more"),
        (["sweep", "-d", "digits", "-t", "GLA", "Coops"], "did you mean CoOp"),
        (["sweep", "-d", "digits", "-t", "GLA", "--shots", "many"], "shots must be numbers"),
        (["train", "-d", "digits", "-t", "GLA", "--shots", "16", "OPTIM.MAX_EPOCH"], "'OPTIM.MAX_EPOCH' has no value"),
        (["sweep", "-d", "digits", "-t", "GLA", "--output", "/dev/null/x"], "'/dev/null/x'"),
        (["train", "-d", "folder", "-t", "ZeroshotCLIP", "--root", "/nope dir"], "'/nope dir'"),
        (["train", "-d", "csv", "-t", "GLA", "--root", "/nope.csv", "--no-train"], "'/nope.csv'"),
        (["table", "nowhere"], "nowhere"),
        (["micro", "pretrain", "macro"], "micro"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_two(argv, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, said = answer(capsys, *argv)
    assert code == 2
    assert words in said
    assert len(said.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []  # nothing was started


def test_an_output_folder_that_cannot_be_written_is_refused_before_training(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    where = str(tmp_path / "file" / "run")
    code, said = answer(capsys, "train", "-d", "digits", "-t", "ZeroshotCLIP", "--output-dir", where)
    assert code == 2
    assert where in said
    assert "cannot be written" in said


def test_eval_only_needs_a_model_unless_there_is_nothing_to_load(data_root, capsys, tmp_path):
    common = ["-d", "digits", "--root", data_root, "--shots", "2", "--eval-only"]
    code, said = answer(capsys, "train", "-t", "CoOp", *common)
    assert code == 2
    assert "--model-dir" in said
    assert main(["train", "-t", "ZeroshotCLIP", *common]) == 0


def test_a_config_file_counts_as_flags_do(data_root, tmp_path, monkeypatch):
    from unskew.runs.run import Run

    extra = tmp_path / "x.yaml"
    extra.write_text(
        "SEED: 5\nDATASET: {NUM_SHOTS: 16}\nTRAINER: {GLA: {BASE: CoOp}}\nMODEL: {BACKBONE: {NAME: RN50}}\n"
    )
    cfg = Run("digits", "GLA", config_file=str(extra)).config
    assert (cfg.SEED, cfg.DATASET.NUM_SHOTS, cfg.MODEL.BACKBONE.NAME) == (5, 16, "RN50")
    assert cfg.OPTIM == Run("digits", "CoOp", shots=16).config.OPTIM
    assert cfg.OUTPUT_DIR == "output/digits/GLA-CoOp/RN50_16shots/seed5"
    assert Run("digits", "GLA", seed=0, shots=1, config_file=str(extra)).config.SEED == 0
    run = Run("digits", "CoOp", shots=4, config_file="configs/trainers/CoOp.yaml")
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    assert run.config.OPTIM.MAX_EPOCH == 100  # its SCHEDULES count too


def test_both_spellings_of_a_backbone_are_one_run():
    from unskew.engine import fingerprint
    from unskew.runs.run import Run

    hashes = {fingerprint.config_hash(Run("digits", "CoOp", backbone=name).config) for name in ("ViT-B/16", "ViT-B-16")}
    assert len(hashes) == 1


def test_check_shots():
    assert [check_shots(x) for x in (16, 1, -1)] == [16, 1, -1]
    for shots in (0, -2):
        with pytest.raises(ValueError, match=str(shots)):
            check_shots(shots)


@pytest.mark.parametrize("name", ["folder", "csv"])
def test_own_images_need_no_preparation(name, capsys):
    assert main(["data", "prepare", name]) == 2
    assert f"data verify {name}" in capsys.readouterr().err
