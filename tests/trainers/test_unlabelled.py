"""Tests of trainers that use the unlabelled images to predict: PRIOR unlabelled and COMBINE otter."""

import pytest
import torch
from building import build, some_paths

from unskew.debias import estimate_log_prior, transport_offset
from unskew.runs import tables
from unskew.runs.run import Run, execute
from unskew.runs.tables import text_tables

UNLABELLED = ("TRAINER.GLA.PRIOR", "unlabelled", "TRAINER.DEBIASEDZEROSHOT.PRIOR", "unlabelled")
OTTER = ("TRAINER.GLA.COMBINE", "otter", "TRAINER.DEBIASEDZEROSHOT.COMBINE", "otter")


@pytest.mark.parametrize("name", ["GLA", "DebiasedZeroshot"])
def test_unlabelled_subtracts_the_prior_of_the_images_to_predict(name, data_root, tmp_path):
    trainer = build(name, data_root, tmp_path, *UNLABELLED, shots=4)
    trainer.train()
    paths, _ = trainer.labelled([*trainer.dataset.train_x, *trainer.dataset.val])
    fitted = estimate_log_prior(trainer.zeroshot_logits(paths), method="map").log_q
    torch.testing.assert_close(trainer.gla.log_q_, fitted)
    assert trainer.gla.zs_temperature_ == 1
    for paths in (some_paths(trainer), [item.impath for item in trainer.dataset.test]):
        zs = trainer.zeroshot_logits(paths)
        log_q = estimate_log_prior(zs, method="map").log_q
        prediction = trainer.predict_parts(paths)
        torch.testing.assert_close(prediction.parts["debiased"], zs - log_q)
    labels = torch.tensor([item.label for item in trainer.dataset.test])
    accuracy = 100 * (prediction.logits.argmax(1) == labels).float().mean()
    assert trainer.results["accuracy"] == pytest.approx(accuracy.item())  # tested on all images at once


@pytest.mark.parametrize("name", ["GLA", "DebiasedZeroshot"])
def test_otter_gives_each_class_its_share_of_the_test_images(name, data_root, tmp_path):
    trainer = build(name, data_root, tmp_path, *OTTER, shots=4)
    trainer.train()
    paths = [item.impath for item in trainer.dataset.test]
    prediction = trainer.predict_parts(paths)
    for part in [prediction.logits, prediction.parts["debiased"]]:
        counts = part.argmax(1).bincount(minlength=10)
        assert (counts - len(paths) / 10).abs().max() < 10  # up to the images that the plan splits
    zs = prediction.parts["zs"]
    torch.testing.assert_close(prediction.parts["debiased"], zs - transport_offset(zs))
    assert trainer.results["debiased_accuracy"] > trainer.results["zs_accuracy"] + 5


@pytest.mark.parametrize("opts", [UNLABELLED, OTTER])
@pytest.mark.parametrize("name", ["GLA", "DebiasedZeroshot"])
def test_a_loaded_checkpoint_predicts_the_same(name, opts, data_root, tmp_path):
    trainer = build(name, data_root, tmp_path, *opts)
    trainer.train()
    fresh = build(name, data_root, tmp_path / "fresh", *opts)
    fresh.load_model(str(tmp_path))
    assert torch.equal(fresh.predict(some_paths(fresh)), trainer.predict(some_paths(trainer)))
    one = some_paths(fresh, 1)
    assert fresh.predict(one).argmax() == fresh.predict_parts(one).parts["gla" if name == "GLA" else "zs"].argmax()


def test_the_epoch_is_selected_without_the_transport_of_val(data_root, tmp_path):
    trainer = build("GLA", data_root, tmp_path, *OTTER, "TRAINER.GLA.PRIOR", "map")
    trainer.train()
    zs, ft = (trainer.zeroshot_logits(some_paths(trainer)), trainer.base.predict(some_paths(trainer)))
    single = torch.cat([trainer.selection_logits(zs[i : i + 1], ft[i : i + 1]) for i in range(len(zs))])
    torch.testing.assert_close(single, trainer.selection_logits(zs, ft))


def test_the_target_of_otter_is_a_key(data_root, tmp_path):
    (tmp_path / "target.json").write_text("[11, 1, 1, 1, 1, 1, 1, 1, 1, 1]")
    opts = (*OTTER, "TRAINER.GLA.TARGET", str(tmp_path / "target.json"))
    trainer = build("GLA", data_root, tmp_path, *opts)
    trainer.fit_zeroshot()
    counts = trainer.predict(some_paths(trainer)).argmax(1).bincount(minlength=10)
    assert counts.tolist() == [22, *[2] * 9]


def test_a_test_set_with_a_part_of_the_classes_is_refused(data_root, tmp_path, monkeypatch):
    from unskew.data.dataset import DatasetBase

    monkeypatch.setattr(DatasetBase, "test_classes", [1, 2])
    for opts in (UNLABELLED, OTTER):
        with pytest.raises(ValueError, match="PRIOR unlabelled"):
            build("DebiasedZeroshot", data_root, tmp_path, *opts)


@pytest.mark.parametrize(
    ("name", "opts", "expected"),
    [
        ("DebiasedZeroshot", UNLABELLED, True),
        ("DebiasedZeroshot", OTTER, True),
        ("DebiasedZeroshot", (), False),
        ("GLA", (*UNLABELLED, "TRAINER.GLA.BASE", "LinearProbe"), True),
        ("Ensemble", (*OTTER, "TRAINER.ENSEMBLE.BASE", "DebiasedZeroshot"), True),
        ("Ensemble", ("TRAINER.ENSEMBLE.BASE", "DebiasedZeroshot"), False),
        ("Backdoor", ("TRAINER.BACKDOOR.BASE", "LinearProbe", "TRAINER.BACKDOOR.DEBIAS", True,
                      "TRAINER.BACKDOOR.PRIOR", "unlabelled"), True),
    ],
)  # fmt: skip
def test_metrics_and_table_tell_that_test_images_were_used(name, opts, expected, data_root, tmp_path):
    run = Run("digits", name, shots=2, seed=1, root=data_root, output=str(tmp_path), opts=("OPTIM.MAX_EPOCH", 1, *opts))
    metrics = execute(run, console=False)
    assert metrics.get("transductive", False) is expected
    assert ("*" in text_tables.table(tables.collect(tmp_path))) is expected
