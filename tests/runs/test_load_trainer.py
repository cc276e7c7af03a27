"""A finished run's trainer is built from the run's folder alone, and predicts as the run did."""

import json
import shutil

import numpy as np
import pytest
import torch
from building import SHORT
from PIL import Image

from unskew import config
from unskew.data.dataset import build_dataset
from unskew.engine import checkpoint
from unskew.engine.run_dir import RunDir
from unskew.runs.model import load_trainer
from unskew.runs.run import Run, execute

TINY = (*SHORT, "OPTIM.MAX_EPOCH", 1)


def train(name, data_root, folder, *opts, dataset="digits", shots=2):
    run = Run(dataset, name, shots=shots, seed=1, root=data_root, folder=str(folder), opts=(*TINY, *opts))
    execute(run, console=False)
    return run


def moved(run, target):
    """The run's folder at another place, and its config with a root that does not exist."""
    shutil.copytree(run.path, target)
    file = target / "config.yaml"
    file.write_text(file.read_text().replace(run.root, "/nowhere").replace(str(run.path), "/nothing"))
    return target


def check(run, folder):
    """The trainer of the folder gives the run's own test logits."""
    paths = [item.impath for item in build_dataset(run.config).test]
    before = torch.random.get_rng_state()
    trainer = load_trainer(folder)
    assert torch.equal(torch.random.get_rng_state(), before)
    logits = trainer.predict_parts(paths).logits
    torch.testing.assert_close(logits.cpu(), run.predictions["logits"], rtol=0, atol=1e-6)
    return trainer


@pytest.mark.parametrize("name", config.names("trainers"))
def test_every_trainer_predicts_as_its_run_did(name, data_root, tmp_path):
    run = train(name, data_root, tmp_path / "run")
    folder = moved(run, tmp_path / "elsewhere" / "run")
    trainer = check(run, folder)
    assert trainer.classnames == run.metrics["classnames"]
    assert not trainer.dm.dataset.train_x and not trainer.dm.dataset.test
    model = json.loads((folder / "model.json").read_text())
    assert model["classes"] == trainer.classnames and model["license"] == "MIT"
    assert len(model.get("models", [0])) == len(getattr(trainer, "members", [0]))


@pytest.mark.parametrize(
    ("name", "opts"),
    [
        ("CoOp", ("TEST.CROPS", 5)),
        ("FineTune", ("TRAINER.FINETUNE.HEAD_INIT", "class_mean")),
        ("FineTune", ("TRAINER.FINETUNE.HEAD_INIT", "linear_probe", "TRAINER.FINETUNE.LOSS", "gla_train")),
        ("ResidualPrompt", ("DATASET.TEMPLATE", "the number {} in print.")),
        ("GLA", ("TRAINER.GLA.PRIOR", "unlabelled")),
        ("DebiasedZeroshot", ("TRAINER.DEBIASEDZEROSHOT.COMBINE", "otter")),
        ("Backdoor", ("TRAINER.BACKDOOR.DEBIAS", True, "TRAINER.BACKDOOR.BASE", "CoOp")),
    ],
)
def test_settings_act_as_in_the_test(name, opts, data_root, tmp_path):
    if "otter" in opts:
        pytest.importorskip("ot")
    run = train(name, data_root, tmp_path / "run", *opts)
    check(run, moved(run, tmp_path / "moved"))
    model = json.loads(RunDir(run.path).model.read_text())
    assert model["transductive"] == bool({"unlabelled", "otter"} & set(opts))
    assert model["preprocessing"]["crops"] == (5 if "TEST.CROPS" in opts else 1)


def test_a_long_tailed_run_without_val_images(data_root, tmp_path):
    run = train("GLA", data_root, tmp_path / "run", dataset="digits_lt", shots=-1)
    check(run, moved(run, tmp_path / "moved"))


@pytest.mark.parametrize("prompts", [("a small {} here.", ""), ("", "a small {} here.")])
def test_the_prompts_of_a_base_in_another_folder_are_its_own(prompts, data_root, tmp_path):
    base = train("ResidualPrompt", data_root, tmp_path / "base", "DATASET.TEMPLATE", prompts[0])
    pairs = ("TRAINER.GLA.BASE", "ResidualPrompt", "TRAINER.GLA.BASE_DIR", str(base.path))
    pairs += ("DATASET.TEMPLATE", prompts[1])
    run = train("GLA", data_root, tmp_path / "run", *pairs)
    check(run, run.path)
    shutil.move(base.path, tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"TRAINER.GLA.BASE_DIR .*base"):
        load_trainer(run.path)


def test_the_file_of_a_prior_is_not_needed(data_root, tmp_path):
    file = tmp_path / "prior.json"
    file.write_text(json.dumps([0.1] * 10))
    run = train("GLA", data_root, tmp_path / "run", "TRAINER.GLA.PRIOR", str(file))
    file.rename(tmp_path / "gone.json")
    trainer = load_trainer(run.path)
    paths = [item.impath for item in build_dataset(train("ZeroshotCLIP", data_root, tmp_path / "zs").config).test]
    torch.testing.assert_close(trainer.predict(paths), run.predictions["logits"], rtol=0, atol=1e-6)


def test_a_users_own_images_are_not_needed(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("wren", "crow"):
        for number in range(12):
            path = tmp_path / "birds" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (40, 32, 3), dtype=np.uint8)).save(path)
    root = str(tmp_path / "birds")
    run = Run("folder", "GLA", "micro", shots=2, seed=1, root=root, folder=str(tmp_path / "run"), opts=TINY)
    execute(run, console=False)
    paths = [item.impath.replace(root, str(tmp_path / "else")) for item in build_dataset(run.config).test]
    shutil.move(root, tmp_path / "else")
    trainer = load_trainer(run.path)
    assert trainer.classnames == ["crow", "wren"]
    assert json.loads(RunDir(run.path).model.read_text())["preprocessing"]["upright"] is True
    torch.testing.assert_close(trainer.predict(paths), run.predictions["logits"], rtol=0, atol=1e-6)


# --- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["GLA", "DebiasedZeroshot", "Backdoor"])
def test_numbers_of_other_classes_are_not_fitted_again(name, data_root, tmp_path):
    run = train(name, data_root, tmp_path / "run")
    model = {"GLA": "gla", "DebiasedZeroshot": "prior", "Backdoor": "backdoor"}[name]
    path = checkpoint.last_checkpoint(run.path / model)
    state = checkpoint.load_checkpoint(path)
    state["state_dict"]["classes"] += 1
    checkpoint.save(state, path)
    with pytest.raises(ValueError, match="run again") as error:
        load_trainer(run.path)
    assert str(run.path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["CoOp", "Backdoor"])
def test_changed_weights_are_an_error_with_both_hashes(name, data_root, tmp_path):
    run = train(name, data_root, tmp_path / "run")
    file = RunDir(run.path).model
    saved = json.loads(file.read_text())["backbone"]["id"]
    file.write_text(file.read_text().replace(saved, "micro@0123456789abcdef"))
    with pytest.raises(ValueError, match=f"micro@0123456789abcdef.*{saved}"):
        load_trainer(run.path).predict(["never read.png"])


def test_folders_without_a_finished_run_or_model_json(data_root, tmp_path):
    run = train("ZeroshotCLIP", data_root, tmp_path / "run")
    file = RunDir(run.path).model
    content = file.read_text()
    damaged = {**json.loads(content), "temperature": 0}, {**json.loads(content), "test_classes": [10]}
    texts = ["", "{}", "[]", *map(json.dumps, damaged), content.replace("1,", "2,", 1)]
    for text, match in zip(texts, [r"model\.json"] * 5 + ["version 2"], strict=True):
        file.write_text(text)
        with pytest.raises((ValueError, FileNotFoundError), match=match):
            load_trainer(run.path)
    file.unlink()
    done = RunDir(run.path).done
    done.write_text("\n".join(line for line in done.read_text().splitlines() if line != file.name))  # an older run
    assert run.is_finished and run.metrics["accuracy"] > 0
    with pytest.raises(FileNotFoundError, match=r"model\.json"):
        load_trainer(run.path)
    done.unlink()
    with pytest.raises(FileNotFoundError, match="done"):
        load_trainer(run.path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_trainer(tmp_path / "nothing")


def test_the_trainer_of_a_plugin_that_is_not_imported(data_root, tmp_path):
    run = train("ZeroshotCLIP", data_root, tmp_path / "run")
    file = run.path / "config.yaml"
    file.write_text(file.read_text().replace("ZeroshotCLIP", "MyTrainer"))
    with pytest.raises(ValueError, match=r"MyTrainer.*--plugin"):
        load_trainer(run.path)
