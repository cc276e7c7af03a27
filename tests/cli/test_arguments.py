"""KEY VALUE pairs, lists and ranges are accepted wherever a user writes them."""

import pytest

from unskew.cli.arguments import names, numbers
from unskew.cli.main import main, parse


@pytest.mark.parametrize(
    "words",
    [
        "OPTIM.LR 0.1 --seed 2 DATASET.NUM_SHOTS -1",
        "--opts OPTIM.LR 0.1 --seed 2 --opts DATASET.NUM_SHOTS -1",
        "OPTIM.LR 0.1 DATASET.NUM_SHOTS -1 --seed 2",
        "--seed 2 --opts OPTIM.LR 0.1 DATASET.NUM_SHOTS -1",
        "--seed=2 OPTIM.LR 0.1 DATASET.NUM_SHOTS -1",
    ],
)
def test_flags_and_pairs_have_no_order(words):
    arguments = parse(["train", "-d", "digits", *words.split(), "-t", "GLA"])
    assert (arguments.dataset, arguments.trainer, arguments.seed) == ("digits", "GLA", 2)
    assert arguments.opts == ["OPTIM.LR", "0.1", "DATASET.NUM_SHOTS", "-1"]


def test_values_may_be_negative_numbers_of_any_form():
    assert parse(["train", "A.B", "-1e-3", "--seed", "3", "C.D", "-.5"]).opts == ["A.B", "-1e-3", "C.D", "-.5"]


def test_pairs_of_a_sweep_and_of_verify():
    arguments = parse("sweep -d digits -t GLA CoOp --opts A.B 1 --seeds 1-3 --output o C.D x".split())
    assert arguments.opts == ["A.B", "1", "C.D", "x"] and arguments.seeds == ["1-3"]
    assert parse("data verify folder A.B 1 --root x".split()).opts == ["A.B", "1"]


@pytest.mark.parametrize("flag", ["-t GLA", "-b micro", "--shots 1 -1", "--seeds 1-3", "--columns accuracy"])
def test_pairs_may_follow_a_flag_with_several_values(flag):
    words = "sweep -d digits -t GLA".split()
    expected = parse([*words, *flag.split()])
    arguments = parse([*words, *flag.split(), "OPTIM.LR", "-1", "TRAINER.GLA.BASE", "CoOp"])
    assert arguments.opts == ["OPTIM.LR", "-1", "TRAINER.GLA.BASE", "CoOp"]
    assert {**vars(arguments), "opts": [], "parser": None} == {**vars(expected), "opts": [], "parser": None}


def test_a_value_that_is_spelled_as_a_key_is_kept():
    arguments = parse("sweep -d A.B -t GLA --output C.D DATASET.NAME E.F".split())
    assert (arguments.dataset, arguments.output, arguments.opts) == ("A.B", "C.D", ["DATASET.NAME", "E.F"])


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("train -d digits -t GLA OPTIM.LR --seed 2 1", "'OPTIM.LR'"),
        ("train -d digits -t GLA OPTIM.LR 1 --sed 2", "--sed 2"),
        ("train -d digits -t GLA --sede 2", "--sede 2"),
        ("train -d digits -t GLA --output runs", "--output runs"),
        ("train -d shapes_lt -t Backdoor TRAINER.BACKDOOR.MEMBERS micro-a,micro-b", "['a', 'b']"),
        ("sweep -d digits -t GLA A.B 1", "'A.B'"),
        ("sweep -d digits -t GLA --shots 1 OPTIM.LR", "'OPTIM.LR'"),
        ("sweep -d digits -t , --shots 1", "','"),
        ("sweep -d digits -t GLA --shots ,", "','"),
        ("sweep -d digits -t GLA --seeds ,,", "',,'"),
        ("train --eval-only --model-dir .", "config.yaml"),
        ("sweep -d digits -t GLA --seeds 3-1", "'3-1'"),
        ("sweep -d digits -t GLA --seeds 1-", "'1-'"),
        ("sweep -d digits -t GLA --seeds a-b", "'a-b'"),
        ("sweep -d digits -t GLA --seeds 1-99999999999", "'1-99999999999'"),
        ("sweep -d digits -t GLA --seeds -3-4", "--seeds"),
        ("sweep -d digits -t GLA --seeds 1.5", "'1.5'"),
        ("sweep -d digits -t GLA,Coop,Nope --seeds 1", "'Nope'"),
        ("table output x y", "x y"),
        ("data list --wrong", "--wrong"),
    ],
)
def test_wrong_words_are_one_line(words, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(words.split())
    except SystemExit as error:
        code = error.code
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2 and named in line
    assert not list(tmp_path.iterdir())


def test_lists_and_ranges():
    assert numbers("seeds", ["1-3"]) == numbers("seeds", ["1,2,3"]) == numbers("seeds", ["1", "2 3"]) == [1, 2, 3]
    assert numbers("seeds", ["0-1,7", "9"]) == [0, 1, 7, 9]
    assert numbers("shots", ["-1"]) == [-1] and numbers("shots", ["4,-1"]) == [4, -1]
    assert names(["CoOp,GLA", "ProGrad", ""]) == ["CoOp", "GLA", "ProGrad"]


def test_a_sweep_takes_lists_in_every_form(capsys, tmp_path):
    common = ["sweep", "-d", "digits", "--output", str(tmp_path), "--dry-run"]
    assert main([*common, *"-t CoOp GLA --shots 1 4 --seeds 1 2 3 -b micro micro-a".split()]) == 0
    expected = capsys.readouterr().out
    assert expected.count("| new") == 24
    assert main([*common, *"-t CoOp,GLA --shots 1,4 --seeds 1-3 -b micro,micro-a".split()]) == 0
    assert capsys.readouterr().out == expected
