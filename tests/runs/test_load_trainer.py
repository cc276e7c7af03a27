"""A finished run's trainer is built from the run's folder alone, and predicts as the run did."""

import json
import shutil

import pytest
import torch
from building import SHORT

from unskew import config
from unskew.data.dataset import build_dataset
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
