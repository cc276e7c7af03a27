"""Tests of Backdoor: its members, their combination, and runs that were killed."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from building import SHORT, build, some_paths, without_costs
from safetensors.torch import load_file

from unskew import config
from unskew.cli.main import main
from unskew.clip import backbones
from unskew.debias import GLA, mixture
from unskew.debias.metrics import compute_accuracy
from unskew.debias.temperature import fit_temperature
from unskew.engine import fingerprint
from unskew.engine.run_dir import RunDir
from unskew.runs.run import Run, execute
from unskew.trainers.backdoor import member_config, parse_member

MEMBERS = ("micro-a", "micro-b", "micro-c")
PLAIN = ("TRAINER.BACKDOOR.DEBIAS", False)


def paths_and_labels_of_val(trainer):
    return [item.impath for item in trainer.dataset.val], torch.tensor([item.label for item in trainer.dataset.val])


def train_alone(member, data_root, folder, *opts):
    """Return a trained FineTune on one backbone."""
    trainer = build("FineTune", data_root, folder / f"alone-{member}", *opts, backbone=member)
    trainer.train()
    return trainer


# --- the combination --------------------------------------------------------------------------------


@pytest.mark.parametrize(("combine", "weights"), [("logits", "uniform"), ("probs", "uniform"), ("logits", "")])
def test_parts_equal_the_members_trained_alone(combine, weights, data_root, tmp_path):
    opts = (*PLAIN, "TRAINER.BACKDOOR.COMBINE", combine, "TRAINER.BACKDOOR.WEIGHTS", weights)
    trainer = build("Backdoor", data_root, tmp_path, *opts)
    trainer.train()
    paths, (val, labels) = some_paths(trainer), paths_and_labels_of_val(trainer)
    bases = [train_alone(member, data_root, tmp_path) for member in MEMBERS]
    temperatures = [fit_temperature(base.predict(val), labels, method="nll") for base in bases]
    calibrated = [base.predict(paths) / t for base, t in zip(bases, temperatures, strict=True)]
    parts = trainer.predict_parts(paths).parts
    assert list(parts) == [*MEMBERS, "backdoor"]
    for member, expected in zip(MEMBERS, calibrated, strict=True):
        torch.testing.assert_close(parts[member], expected)
    p_m, on_val = torch.full((3,), 1 / 3), torch.stack([base.predict(val) for base in bases])
    on_val = on_val / torch.tensor(temperatures)[:, None, None]
    if weights == "":
        p_m = mixture.fit_member_weights(on_val, labels)
        assert p_m.std() > 0.01
    torch.testing.assert_close(trainer.terms.weights, p_m)
    temperature = fit_temperature(mixture.combine_members(on_val, p_m, combine), labels, method="nll")
    assert trainer.terms.temperature.item() == pytest.approx(temperature, rel=1e-4)
    total = sum(w * (f if combine == "logits" else f.softmax(1)) for w, f in zip(p_m, calibrated, strict=True))
    expected = (total if combine == "logits" else total.log()) / temperature
    torch.testing.assert_close(parts["backdoor"], expected, rtol=1e-4, atol=1e-4)
    test = trainer.dataset.test
    logits = trainer.predict_parts([item.impath for item in test]).parts["micro-b"]
    accuracy = compute_accuracy(logits, torch.tensor([item.label for item in test]))[0].item()
    assert trainer.results["micro-b_accuracy"] == pytest.approx(accuracy)
    assert trainer.results["accuracy"] == trainer.results["backdoor_accuracy"]


def test_debias_is_gla_over_each_member_and_the_default(data_root, tmp_path):
    trainer = build("Backdoor", data_root, tmp_path)
    trainer.train()
    assert trainer.logit_adjusted
    paths, parts = some_paths(trainer), trainer.predict_parts(some_paths(trainer)).parts
    for number, member in enumerate(MEMBERS):
        base = train_alone(member, data_root, tmp_path)
        val, labels = base.labelled(base.dataset.val)
        train, train_labels = base.labelled(base.dataset.train_x)
        gla = GLA(prior="map", combine="fitted", temperature="confidence").fit(
            base.zeroshot_logits(val),
            base.predict(val),
            labels,
            zs_train=base.zeroshot_logits(train),
            y_train=train_labels,
        )
        on_val, expected = (gla.decision_function(base.zeroshot_logits(x), base.predict(x)) for x in (val, paths))
        temperature = fit_temperature(on_val, labels, method="nll")
        torch.testing.assert_close(parts[member], (expected / temperature).float(), rtol=1e-3, atol=2e-3)
        assert trainer.terms.temperatures[number] == pytest.approx(temperature, rel=1e-3)
    plain = build("Backdoor", data_root, tmp_path / "plain", *PLAIN, "TRAINER.BACKDOOR.MEMBERS_DIR", str(tmp_path))
    plain.train()  # copies the members
    assert not torch.equal(plain.predict(paths), parts["backdoor"])


@pytest.mark.parametrize(("weights", "fitted"), [("", True), ("val", True), ("uniform", False)])
def test_weights_are_fitted_on_val_by_default(weights, fitted, data_root, tmp_path):
    opts = (*PLAIN, "TRAINER.BACKDOOR.WEIGHTS", weights, "TRAINER.BACKDOOR.CALIBRATE", "none")
    trainer = build("Backdoor", data_root, tmp_path, *opts)
    trainer.train()
    val, labels = paths_and_labels_of_val(trainer)
    expected = mixture.fit_member_weights(trainer._all_logits(val), labels) if fitted else torch.full((3,), 1 / 3)
    torch.testing.assert_close(trainer.terms.weights, expected)
    assert trainer.terms.temperature == 1 and trainer.terms.temperatures.tolist() == [1, 1, 1]


def test_without_val_the_weights_are_uniform_with_one_log_line(data_root, tmp_path, caplog):
    trainer = build("Backdoor", data_root, tmp_path, "DATASET.NUM_VAL_SHOTS", 0)
    with caplog.at_level("INFO", "unskew"):
        trainer.train()
    assert trainer.terms.weights.tolist() == pytest.approx([1 / 3] * 3)
    assert [*trainer.terms.temperatures.tolist(), trainer.terms.temperature.item()] == [1, 1, 1, 1]
    assert sum("No val images" in record.getMessage() for record in caplog.records) == 1


def test_a_run_with_another_prior_strength_fits_the_prior_again(data_root, tmp_path):
    opts = ("TRAINER.BACKDOOR.PRIOR", "convex", "TRAINER.BACKDOOR.MEMBERS", ["micro-a"])
    first = build("Backdoor", data_root, tmp_path / "again", *opts)
    first.train()
    changed = (*opts, "TRAINER.BACKDOOR.STRENGTH", 100.0)
    again, fresh = (build("Backdoor", data_root, tmp_path / where, *changed) for where in ("again", "fresh"))
    again.train()
    fresh.train()
    paths = some_paths(first)
    assert torch.equal(again.predict(paths), fresh.predict(paths))
    assert not torch.equal(again.predict(paths), first.predict(paths))


def test_load_model_loads_the_members_epoch(data_root, tmp_path):
    trainer = build("Backdoor", data_root, tmp_path, *PLAIN, "TRAIN.CHECKPOINT_FREQ", 1, "TRAIN.KEEP", -1)
    RunDir(tmp_path).prepare(trainer.cfg)  # config.yaml tells that the images are those of the run
    trainer.train()
    trainer.load_model(str(tmp_path), epoch=1)
    base = build("FineTune", data_root, tmp_path / "alone", backbone="micro-b")
    base.load_model(str(tmp_path / "members" / "micro-b"), epoch=1)
    val, labels = base.labelled(base.dataset.val)
    expected = base.predict(some_paths(base)) / fit_temperature(base.predict(val), labels, method="nll")
    torch.testing.assert_close(trainer.predict_parts(some_paths(base)).parts["micro-b"], expected)


def test_without_val_temperatures_are_one(data_root, tmp_path):
    opts = (*PLAIN, "DATASET.NUM_VAL_SHOTS", 0, "TRAINER.BACKDOOR.BASE", "TaskRes")
    trainer = build("Backdoor", data_root, tmp_path, *opts)
    trainer.train()
    assert trainer.terms.temperatures.tolist() == [1, 1, 1]
    paths = some_paths(trainer)
    base = build("TaskRes", data_root, tmp_path / "alone", "DATASET.NUM_VAL_SHOTS", 0, backbone="micro-c")
    base.train()
    torch.testing.assert_close(trainer.predict_parts(paths).parts["micro-c"], base.predict(paths))


def test_gla_accepts_backdoor_as_its_base(data_root, tmp_path):
    trainer = build("GLA", data_root, tmp_path, "TRAINER.GLA.BASE", "Backdoor")
    trainer.train()
    assert trainer.base.logit_adjusted
    fresh = build("GLA", data_root, tmp_path / "fresh", "TRAINER.GLA.BASE", "Backdoor")
    fresh.load_model(str(tmp_path))
    assert torch.equal(fresh.predict(some_paths(fresh)), trainer.predict(some_paths(fresh)))


# --- members ----------------------------------------------------------------------------------------


def test_a_member_config_equals_the_config_of_its_base_alone():
    opts = ("OPTIM.LR", 0.5, "DATASET.NUM_SHOTS", 4)
    cfg = config.load("digits", trainer="Backdoor", opts=opts)
    for name in ("micro-b", "ViT-B-16", "ViT-B-16@random"):
        member = member_config(cfg, parse_member(name), "folder")
        alone = config.load("digits", name, "FineTune", opts)
        assert fingerprint.differing_keys(member, alone) == []
        assert fingerprint.config_hash(member) == fingerprint.config_hash(alone)


def test_replicas_have_the_same_images_and_other_seeds(data_root, tmp_path):
    from unskew.engine.trainer import build_trainer

    cfg = build("Backdoor", data_root, tmp_path).cfg
    members = [build_trainer(member_config(cfg, parse_member(f"micro-a#{k}"), tmp_path)) for k in range(3)]
    assert len({member.cfg.SEED for member in members}) == 3
    assert members[0].cfg.SEED == cfg.SEED
    assert members[1].dataset.train_x == members[0].dataset.train_x
    assert members[1].dataset.val == members[0].dataset.val
    again = member_config(cfg, parse_member("micro-a#1"), tmp_path)
    assert again.SEED == members[1].cfg.SEED


def test_at_most_one_member_is_in_memory(data_root, tmp_path, monkeypatch):
    from unskew.trainers.finetune import FineTune

    counts, original = [], FineTune.build_model

    def build_model(self):
        counts.append(len(backbones._in_memory))
        original(self)

    monkeypatch.setattr(FineTune, "build_model", build_model)
    trainer = build("Backdoor", data_root, tmp_path, "TRAINER.BACKDOOR.DEBIAS", True)
    backbones.release()
    before = len(backbones._in_memory)
    trainer.train()
    assert len(counts) == 3 + 3 + 3 + 3  # trained, debiased, on val, on test
    assert max(counts) <= before + 1


def test_a_finished_member_is_reused_unless_its_config_differs(data_root, tmp_path, caplog):
    first = build("Backdoor", data_root, tmp_path)
    first.train()
    checkpoints = sorted((tmp_path / "members").glob("*/finetune/model*"))
    assert len(checkpoints) == 3
    times = [path.stat().st_mtime_ns for path in checkpoints]
    (tmp_path / "members" / "micro-b" / "done").unlink()  # as if killed before this file was written
    again = build("Backdoor", data_root, tmp_path)
    again.train()
    assert [path.stat().st_mtime_ns for path in checkpoints] == times  # resumed at its last epoch
    assert torch.equal(again.predict(some_paths(again)), first.predict(some_paths(first)))
    other = build("Backdoor", data_root, tmp_path, "OPTIM.LR", 0.3)
    with caplog.at_level("WARNING", "unskew"):
        other.train()
    assert "OPTIM.LR" in caplog.text
    assert not torch.equal(other.predict(some_paths(other)), first.predict(some_paths(first)))


def test_a_finished_run_in_members_dir_is_copied(data_root, tmp_path, caplog):
    run = Run("digits", "FineTune", "micro-b", 2, 1, data_root, str(tmp_path / "out"), opts=SHORT)
    execute(run, console=False)
    opts = ("TRAINER.BACKDOOR.MEMBERS_DIR", str(tmp_path / "out"))
    with caplog.at_level("INFO", "unskew"):
        copied = build("Backdoor", data_root, tmp_path / "copied", *opts)
        copied.train()
    assert sum(str(tmp_path / "out") in record.getMessage() for record in caplog.records) == 1
    trained = build("Backdoor", data_root, tmp_path / "trained")
    trained.train()
    assert fingerprint.config_hash(copied.cfg) == fingerprint.config_hash(trained.cfg)
    assert torch.equal(copied.predict(some_paths(copied)), trained.predict(some_paths(copied)))
    folder = tmp_path / "copied/members/micro-b"
    assert RunDir(folder).is_finished_run_of(member_config(copied.cfg, parse_member("micro-b"), folder))


KILLED = """
import os, signal, sys
from unskew.engine.trainer import SimpleTrainer
from unskew.runs.run import Run
from unskew.runs.run import execute
original = SimpleTrainer.after_epoch
def after_epoch(self):
    original(self)
    if self.cfg.MODEL.BACKBONE.NAME == sys.argv[1] and self.epoch == 0:
        os.kill(os.getpid(), signal.SIGKILL)
SimpleTrainer.after_epoch = after_epoch
opts = [int(word) if word.isdecimal() else word for word in sys.argv[4:]]
execute(Run("digits", "Backdoor", shots=2, seed=1, root=sys.argv[2], output=sys.argv[3], opts=tuple(opts)))
"""


@pytest.mark.parametrize(("member", "frequency"), [("micro-a", 1), ("micro-c", 0)])
def test_a_killed_run_resumes_to_equal_logits(member, frequency, data_root, tmp_path):
    opts = (*SHORT, "TRAINER.BACKDOOR.DEBIAS", "False", "TRAIN.CHECKPOINT_FREQ", frequency)
    run = Run("digits", "Backdoor", shots=2, seed=1, root=data_root, opts=opts)
    whole, killed = (replace(run, output=str(tmp_path / name)) for name in ("whole", "killed"))
    expected = execute(whole, console=False)
    words = [member, data_root, killed.output, *map(str, opts)]
    child = subprocess.run([sys.executable, "-c", KILLED, *words], capture_output=True)
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    (folder,) = (tmp_path / "killed/digits/Backdoor").glob("*/seed1")
    done = {path.parent.name for path in folder.glob("members/*/done")}
    assert done == set(MEMBERS[: MEMBERS.index(member)])
    metrics = execute(killed, console=False)
    assert ("Found checkpoint" in (folder / "log.txt").read_text()) == bool(frequency)
    assert without_costs(metrics) == without_costs(expected)
    logits = [load_file(Path(run.config.OUTPUT_DIR) / "predictions.safetensors") for run in (whole, killed)]
    assert all(torch.equal(logits[0][name], logits[1][name]) for name in logits[0])


# --- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opts", "pattern"),
    [
        (("TRAINER.BACKDOOR.MEMBERS", []), "MEMBERS"),
        (("TRAINER.BACKDOOR.MEMBERS", ["micro-a", "micro-a#0"]), "micro-a#0"),
        (("TRAINER.BACKDOOR.MEMBERS", ["micro-a#x"]), "micro-a#x"),
        (("TRAINER.BACKDOOR.MEMBERS", ["micro-d"]), "micro-d"),
        (("TRAINER.BACKDOOR.COMBINE", "sum"), "COMBINE.*logits.*probs.*sum"),
        (("TRAINER.BACKDOOR.WEIGHTS", "test"), "WEIGHTS.*uniform.*val.*test"),
        (("TRAINER.BACKDOOR.CALIBRATE", "True"), "CALIBRATE.*nll.*confidence.*none.*True"),
        (("TRAINER.BACKDOOR.WEIGHTS", "val", "DATASET.NUM_VAL_SHOTS", 0), "WEIGHTS.*digits"),
        (("SEED", -1), "SEED"),
        (("TRAINER.BACKDOOR.BASE", "SeedEnsemble"), "Backdoor over SeedEnsemble"),
        (("TRAINER.BACKDOOR.STRENGTH", 2.0), "BACKDOOR.*STRENGTH"),
        (("TRAINER.BACKDOOR.PRIOR", "flat"), "BACKDOOR.PRIOR.*flat"),
    ],
)
def test_invalid_configs_raise(opts, pattern, data_root, tmp_path):
    with pytest.raises(ValueError, match=pattern):
        build("Backdoor", data_root, tmp_path, *opts)


def test_missing_folders_raise(data_root, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        build("Backdoor", data_root, tmp_path, "TRAINER.BACKDOOR.MEMBERS_DIR", "nowhere")
    untrained = build("Backdoor", data_root, tmp_path)
    with pytest.raises(FileNotFoundError, match="micro-a"):
        untrained.predict(some_paths(untrained))


# --- the sweep --------------------------------------------------------------------------------------


def test_a_sweep_over_members_prints_one_table(data_root, tmp_path, capsys):
    argv = ["sweep", "-d", "digits", "-t", "FineTune", "Backdoor", "SeedEnsemble", "--shots", "2", "--seeds", "1"]
    argv += ["--backbone", "members", "--columns", "accuracy", "p_few", "d_few", "--root", data_root]
    opts = [*SHORT, "TRAINER.BACKDOOR.MEMBERS_DIR", tmp_path]
    assert main([*argv, "--output", str(tmp_path), "--opts", *map(str, opts)]) == 0
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    rows = [line[:2] for line in lines if line]
    members, replicas = "+".join(MEMBERS), "micro-b#0+micro-b#1+micro-b#2"
    assert [row for row in rows if not row[0].startswith("-")] == [
        ["", "backbone"],
        *(["FineTune", member] for member in MEMBERS),
        ["Backdoor", members],
        ["SeedEnsemble", replicas],
    ]
    assert (tmp_path / "digits" / "Backdoor" / f"{members}_2shots" / "seed1" / "done").is_file()
    folders = (f"Backdoor/{members}_2shots", f"SeedEnsemble/{replicas}_2shots")
    logs = [(tmp_path / "digits" / folder / "seed1" / "log.txt").read_text() for folder in folders]
    assert [log.count(f"from {tmp_path}/digits/") for log in logs] == [3, 1]  # copied members


def test_a_backbone_flag_with_members_is_an_error(data_root, tmp_path, capsys):
    assert main(["train", "-d", "digits", "-t", "SeedEnsemble", "-b", "micro-a", "--output-dir", str(tmp_path)]) == 2
    assert "TRAINER.BACKDOOR.MEMBERS" in capsys.readouterr().err


# --- accuracy, terms --------------------------------------------------------------------------------


@pytest.mark.world
def test_different_backbones_are_more_accurate_than_different_seeds(data_root, tmp_path):
    opts = ("DATASET.NUM_SHOTS", -1, "OPTIM.MAX_EPOCH", 10, "DATALOADER.TRAIN_X.BATCH_SIZE", 128, "INPUT.VIEWS", 1)
    results = {}
    for name in ("Backdoor", "SeedEnsemble"):
        trainer = build(name, data_root, tmp_path / name, *opts, dataset="shapes_lt")
        trainer.train()
        results[name] = trainer.results
    accuracy = results["Backdoor"]["accuracy"]
    assert accuracy > max(results["Backdoor"][f"{member}_accuracy"] for member in MEMBERS) + 3
    assert accuracy > results["SeedEnsemble"]["accuracy"] + 3


def test_terms_are_fitted_again_for_other_members_or_settings(data_root, tmp_path):
    weighted = ("TRAINER.BACKDOOR.BASE", "TaskRes")

    def two(folder, *opts, members=("micro-a", "micro-b")):
        return build("Backdoor", data_root, folder, *weighted, "TRAINER.BACKDOOR.MEMBERS", list(members), *opts)

    trained = two(tmp_path / "run")
    RunDir(tmp_path / "run").prepare(trained.cfg)  # config.yaml tells that the images are those of the run
    trained.train()
    paths = some_paths(trained)
    swapped = two(tmp_path / "x", members=("micro-b", "micro-a"))
    swapped.load_model(str(tmp_path / "run"))
    torch.testing.assert_close(swapped.terms.temperatures, trained.terms.temperatures.flip(0))
    torch.testing.assert_close(swapped.predict(paths), trained.predict(paths), atol=1e-4, rtol=1e-4)
    plain = two(tmp_path / "y", "TRAINER.BACKDOOR.CALIBRATE", "none", "TRAINER.BACKDOOR.WEIGHTS", "uniform")
    plain.load_model(str(tmp_path / "run"))
    assert plain.terms.temperatures.tolist() == [1, 1]
    assert plain.terms.weights.tolist() == [0.5, 0.5]


def test_debias_over_a_debiased_base_is_an_error(data_root, tmp_path):
    opts = ("TRAINER.BACKDOOR.BASE", "GLA", "TRAINER.GLA.BASE", "TaskRes", "TRAINER.BACKDOOR.DEBIAS", True)
    with pytest.raises(ValueError, match=r"BACKDOOR\.DEBIAS.*GLA"):
        build("Backdoor", data_root, tmp_path, *opts, "TRAINER.BACKDOOR.MEMBERS", ["micro-a"])
