import re
import subprocess
import sys

import pytest
import yaml

import unskew
from unskew import config
from unskew.config import _files
from unskew.config._files import folder_of
from unskew.engine import fingerprint


def load(*opts, trainer="CoOp", dataset="digits", **kwargs):
    return config.load(dataset, "", trainer, opts, **kwargs)


@pytest.mark.parametrize("axis", ["datasets", "backbones", "trainers"])
def test_every_yaml_holds_known_keys_only(axis):
    names = config.names(axis)
    assert names
    for name in names:
        if axis == "datasets":
            for trainer in config.names("trainers"):
                assert name == config.load(name, "", trainer).DATASET.NAME
        elif axis == "backbones":
            backbone = yaml.safe_load((folder_of(axis) / f"{name}.yaml").read_text())["MODEL"]["BACKBONE"]["NAME"]
            assert config.load("digits", backbone, "CoOp").MODEL.BACKBONE.NAME.replace("/", "-") == name
        else:
            for shots in (1, 2, 4, 8, 16, -1):
                assert name == load("DATASET.NUM_SHOTS", shots, trainer=name).TRAINER.NAME


def test_later_layers_win(tmp_path):
    assert config.get_cfg_default().OPTIM.NAME == "adam"  # Dassl's default
    assert load().OPTIM.NAME == "sgd"  # what CLIP's trainers share
    extra = tmp_path / "extra.yaml"
    extra.write_text("OPTIM:\n  LR: 1e-4\n  MAX_EPOCH: 7\n")
    cfg = load("OPTIM.MAX_EPOCH", "3", config_file=str(extra))
    assert cfg.OPTIM.LR == 1e-4
    assert cfg.OPTIM.MAX_EPOCH == 3


def test_published_schedules_by_shots_where_no_dataset_overrides_them(monkeypatch):
    rows = {k: config.read_yaml(folder_of("trainers") / "CoOp.yaml") for k in (1,)}
    assert rows[1]["OPTIM"]["MAX_EPOCH"] == 200
    original = _files.read_yaml
    drop = lambda path: {k: v for k, v in original(path).items() if k != "OVERRIDES"}  # noqa: E731
    monkeypatch.setattr(_files, "read_yaml", drop)
    epochs = {k: load("DATASET.NUM_SHOTS", k).OPTIM.MAX_EPOCH for k in (1, 2, 4, 8, 16)}
    assert epochs == {1: 50, 2: 100, 4: 100, 8: 200, 16: 200}
    gla = {k: load("DATASET.NUM_SHOTS", k, trainer="GLA") for k in (1, 2, 4, 8, 16)}
    batches = {k: cfg.DATALOADER.TRAIN_X.BATCH_SIZE for k, cfg in gla.items()}
    assert batches == {1: 32, 2: 64, 4: 128, 8: 256, 16: 512}
    assert [gla[k].OPTIM.LR for k in (1, 2, 4, 8, 16)] == [2e-5, 4e-5, 1e-4, 2e-4, 4e-4]


def test_a_base_is_configured_as_it_would_be_alone():
    alone, base = load("DATASET.NUM_SHOTS", 4), load("DATASET.NUM_SHOTS", 4, "TRAINER.GLA.BASE", "CoOp", trainer="GLA")
    assert base.OPTIM == alone.OPTIM
    assert base.TEST.FINAL_MODEL == "best_val"
    assert base.TRAINER.NAME == "GLA"


def test_a_trainer_is_not_its_own_base():
    with pytest.raises(ValueError, match="BASE cannot be GLA: GLA over GLA has no end"):
        load("TRAINER.GLA.BASE", "GLA", trainer="GLA")


def test_a_loaded_config_is_frozen():
    cfg = load()
    with pytest.raises(AttributeError):
        cfg.SEED = 3


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (("OPTIM.LRR", "1"), ["OPTIM.LRR", "did you mean", "OPTIM.LR"]),
        (("MAX_EPOCH", "1"), ["did you mean OPTIM.MAX_EPOCH"]),
        (("OPTIM.MAX_EPOCH", "many"), ["OPTIM.MAX_EPOCH", "int", "many"]),
        (("OPTIM.LR", "fast"), ["OPTIM.LR", "number", "fast"]),
        (("OPTIM.LR",), ["pairs", "OPTIM.LR"]),
    ],
)
def test_a_wrong_key_or_value_is_one_clear_line(opts, words):
    with pytest.raises(ValueError) as error:
        load(*opts)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "near"),
    [(("digit", "", "CoOp"), "digits"), (("digits", "", "COOPS"), "CoOp"), (("digits", "micr", "CoOp"), "micro")],
)
def test_an_unknown_name_lists_the_near_ones(arguments, near):
    with pytest.raises(ValueError, match=f"did you mean .*{near}"):
        config.load(*arguments)


def test_broken_yaml_names_its_file(tmp_path):
    for text in (b"OPTIM: [1", b"just words", b"\xff\xfe\x00", b"[" * 5000):
        path = tmp_path / "x.yaml"
        path.write_bytes(text)
        with pytest.raises(ValueError, match=r"x\.yaml"):
            load(config_file=str(path))
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        load(config_file=str(tmp_path / "none.yaml"))


def test_identity_ignores_places_and_other_trainers_nodes():
    base = load()
    assert fingerprint.config_hash(base) == fingerprint.config_hash(
        load("OUTPUT_DIR", "elsewhere", "DATASET.ROOT", "there")
    )
    assert fingerprint.config_hash(base) == fingerprint.config_hash(load("TRAINER.PROGRAD.LAMBDA", 0.5))
    changed = load("TRAINER.COOP.N_CTX", 8)
    assert fingerprint.config_hash(base) != fingerprint.config_hash(changed)
    assert fingerprint.differing_keys(changed, yaml.safe_load(config.dump(base))) == ["TRAINER.COOP.N_CTX"]
    assert fingerprint.differing_keys(base, yaml.safe_load(config.dump(base))) == []


def test_a_derived_config_is_a_frozen_copy():
    cfg = load("DATASET.NUM_SHOTS", 4)
    other = config.derive(cfg, {"OPTIM.LR": 1, "SEED": 3, **config.backbone_layer("ViT-B-16")})
    assert (other.OPTIM.LR, other.SEED, other.MODEL.BACKBONE.NAME, other.DATASET.NUM_SHOTS) == (1.0, 3, "ViT-B/16", 4)
    assert cfg == load("DATASET.NUM_SHOTS", 4)
    with pytest.raises(AttributeError):
        other.SEED = 4
    with pytest.raises(ValueError, match=r"did you mean OPTIM\.LR"):
        config.derive(cfg, {"OPTIM.LRR": 1})


def test_trainers_that_name_their_backbones_themselves():
    names = {name for name in config.names("trainers") if config.has_members(name)}
    assert names == {"Backdoor", "BackdoorPaper", "SeedEnsemble"}
    assert config.backbone_layer("ViT-B-16@random") == {"MODEL.BACKBONE.NAME": "ViT-B-16@random"}


def test_seed_zero_is_a_seed():
    assert load("SEED", 0).SEED == 0


def test_a_method_without_its_yaml_is_told_so(tmp_path, monkeypatch):
    for file in ("configs/trainers/CoOp.yaml", "trainers/coop.py", "trainers/mymethod.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    monkeypatch.setattr(unskew, "__path__", [str(tmp_path)])
    with pytest.raises(ValueError, match=r"configs/trainers/MyMethod.yaml"):
        config.check_name("trainers", "MyMethod")
    assert config.check_name("trainers", "coop") == config.check_name("trainers", "CoOp") == "CoOp"


@pytest.mark.parametrize("rows", ["{shot: [1], set: {}}", "{sets: {}, set: {}}"])
def test_a_typo_in_schedules_is_an_error(tmp_path, rows):
    (tmp_path / "mine.yaml").write_text(f"SCHEDULES: [{rows}]")
    with pytest.raises(ValueError, match="SCHEDULES"):
        config.load("digits", trainer="CoOp", config_file=str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("SCHEDULES: {shots: [1]}", "SCHEDULES"),
        ("SCHEDULES: 3", "SCHEDULES"),
        ("SCHEDULES: [{set: {}}, words]", "row 2"),
        ("SCHEDULES: [{shots: 1, set: {}}]", "'shots'"),
        ("SCHEDULES: [{shots: [1]}]", "'set'"),
        ("SCHEDULES: [{datasets: digits, set: {}}]", "'datasets'"),
        ("SCHEDULES: [{set: [OPTIM.LR, 1]}]", "'set'"),
        ("TRAINER: [NAME, CoOp]", "TRAINER"),
        ("TRAINER: {COOP: 3}", "TRAINER.COOP"),
        ("OVERRIDES: [CoOp]", "OVERRIDES"),
        ("OVERRIDES: {CoOp: 3}", "OVERRIDES.CoOp"),
        ("DATASET: 3", "DATASET"),
    ],
)
def test_a_yaml_of_another_shape_is_one_line_with_its_name(text, place, tmp_path, monkeypatch):
    path = tmp_path / "trainers" / "CoOp.yaml"
    path.parent.mkdir()
    path.write_text(text)
    original = _files.folder_of("trainers").parent
    monkeypatch.setattr(_files, "folder_of", lambda axis: path.parent if axis == "trainers" else original / axis)
    for kwargs in ({}, {"config_file": str(path)}):
        with pytest.raises(ValueError, match=rf"CoOp\.yaml.*{re.escape(place)}") as error:
            load(**kwargs)
        assert "\n" not in str(error.value)


def test_a_trainers_keys_and_defaults_are_in_the_yaml_of_its_class(tmp_path, monkeypatch):
    folder = tmp_path / "configs" / "trainers"
    folder.mkdir(parents=True)
    (folder / "Mine.yaml").write_text("TRAINER: {MINE: {RATE: 0.5, WORD: '1.0'}, PREC: fp16}")
    (folder / "Variant.yaml").write_text("TRAINER: {CLASS: Mine, MINE: {RATE: 2}}")
    (tmp_path / "configs" / "datasets").mkdir()
    (tmp_path / "configs" / "datasets" / "toy.yaml").write_text("TRAINER: {MINE: {WORD: toy}}")
    (tmp_path / "configs" / "backbones").mkdir()
    monkeypatch.setattr(unskew, "__path__", [str(tmp_path)])
    assert set(config.all_defaults().TRAINER) == {"NAME", "CLASS", "PREC", "MINE"}
    mine, variant = (config.load("toy", "ViT-B-16@random", name) for name in ("Mine", "Variant"))
    assert (mine.TRAINER.MINE, mine.TRAINER.PREC) == (
        {"RATE": 0.5, "WORD": "toy"},
        "fp16",
    )
    assert (variant.TRAINER.MINE.RATE, variant.TRAINER.CLASS, variant.TRAINER.PREC) == (2.0, "Mine", "fp32")
    with pytest.raises(ValueError, match=r"TRAINER\.MINE\.ZZ.*configs/trainers"):
        config.load("toy", "ViT-B-16@random", "Mine", ("TRAINER.MINE.ZZ", 1))


def test_a_variant_has_the_base_of_its_class(tmp_path, monkeypatch):
    original = _files.folder_of("trainers")
    for path in original.glob("*.yaml"):
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "Mine.yaml").write_text("TRAINER: {CLASS: GLA, GLA: {COMBINE: sum}}")
    monkeypatch.setattr(_files, "folder_of", lambda axis: tmp_path if axis == "trainers" else original.parent / axis)
    assert config.read_base("Mine") == "ResidualPrompt"
    assert load(trainer="Mine").OPTIM == load(trainer="GLA").OPTIM


def test_a_config_is_loaded_without_torch():
    code = (
        "import sys; from unskew import config; config.load('digits', trainer='GLA'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
