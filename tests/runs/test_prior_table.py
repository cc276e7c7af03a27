"""``prior.csv`` of runs that estimate the label prior of the pre-training data."""

import csv

import numpy as np
import pytest
import torch
from building import SHORT

import unskew
from unskew.engine.trainer import build_trainer
from unskew.runs.run import Run, execute


@pytest.fixture
def trained(data_root, tmp_path):
    def train(name, *opts, shots=2, dataset="digits", backbone=""):
        run = Run(dataset, name, backbone, shots, 1, data_root, folder=str(tmp_path), opts=(*SHORT, *opts))
        execute(run, console=False)
        return run

    return train


def table(run):
    with (run.path / "prior.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["class", "log_q", "log_q_deviation", "count"]
    return {name: [row[name] for row in rows] for name in rows[0]}


@pytest.mark.parametrize(("name", "has_deviation"), [("GLA", True), ("GLAPaper", False), ("DebiasedZeroshot", True)])
def test_the_table_is_that_of_the_trainer(name, has_deviation, trained):
    run = trained(name, shots=4)
    columns = table(run)
    trainer = build_trainer(run.config)
    trainer.load_model(run.path)
    assert columns["class"] == trainer.classnames == run.metrics["classnames"]
    assert [float(value) for value in columns["log_q"]] == pytest.approx(trainer.gla.log_q_.tolist(), abs=1e-6)
    paths, labels = trainer.labelled([*trainer.dataset.train_x, *trainer.dataset.val])
    if has_deviation:
        estimate = unskew.estimate_log_prior(trainer.zeroshot_logits(paths), labels, method="map")
        assert [float(x) for x in columns["log_q_deviation"]] == pytest.approx(estimate.deviation.tolist(), rel=1e-4)
    else:
        assert columns["log_q_deviation"] == [""] * 10
    assert columns["count"] == ["4"] * 10


def test_the_counts_are_those_of_the_training_images(trained):
    run = trained("DebiasedZeroshot", shots=-1, dataset="digits_lt")
    labels = [item.label for item in build_trainer(run.config).dataset.train_x]
    assert [int(count) for count in table(run)["count"]] == np.bincount(labels, minlength=10).tolist()
    assert len(set(labels)) == 10 and len(set(np.bincount(labels).tolist())) > 2


@pytest.mark.parametrize("name", ["GLA", "DebiasedZeroshot"])
def test_an_unlabelled_prior_is_that_of_the_test_images(name, trained):
    run = trained(name, f"TRAINER.{name.upper()}.PRIOR", "unlabelled")
    columns, zs = table(run), run.predictions["zs"]
    estimate = unskew.estimate_log_prior(zs, method="unlabelled")
    assert [float(x) for x in columns["log_q"]] == pytest.approx(estimate.log_q.tolist(), abs=1e-4)
    assert [float(x) for x in columns["log_q_deviation"]] == pytest.approx(estimate.deviation.tolist(), rel=1e-3)


def test_the_prior_of_a_loss_has_a_table(trained):
    run = trained("FineTune", "TRAINER.FINETUNE.LOSS", "gla_train")
    prior = build_trainer(run.config).prior
    assert [float(x) for x in table(run)["log_q"]] == pytest.approx(prior.log_q.tolist(), abs=1e-6)
    (run.path / "done").unlink()
    run = trained("Ensemble", "TRAINER.ENSEMBLE.BASE", "FineTune", "TRAINER.FINETUNE.LOSS", "gla_train")
    assert [float(x) for x in table(run)["log_q"]] == pytest.approx(prior.log_q.tolist(), abs=1e-6)


def test_the_members_of_a_run_have_tables_of_their_own(trained):
    run = trained("Backdoor", "TRAINER.BACKDOOR.MEMBERS", ["micro-a"])
    assert not (run.path / "prior.csv").exists()
    lines = (run.path / "members" / "micro-a" / "debiased" / "prior.csv").read_text().splitlines()
    assert lines[0] == "class,log_q,log_q_deviation,count" and len(lines) == 11


def test_a_run_without_a_prior_leaves_none_of_an_earlier_run(trained):
    run = trained("DebiasedZeroshot")
    assert (run.path / "prior.csv").exists()
    (run.path / "done").unlink()
    trained("ZeroshotCLIP")
    assert not (run.path / "prior.csv").exists()


def test_a_prediction_does_not_change_the_fitted_prior():
    generator = torch.Generator().manual_seed(0)
    zs, labels = torch.randn(60, 3, generator=generator), torch.arange(60) % 3
    gla = unskew.GLA(prior="unlabelled").fit(zs, None, labels)
    fitted = gla.log_q_.clone()
    assert gla.prediction_prior_ is None
    gla.predict(zs + torch.tensor([2.0, 0, 0]))
    assert torch.equal(gla.log_q_, fitted)
    assert gla.prediction_prior_.log_q[0] > fitted[0] + 0.5
    assert gla.fit(zs, None, labels).prediction_prior_ is None
