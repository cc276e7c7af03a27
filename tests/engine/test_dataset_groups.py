"""Groups of classes: their definitions against sorting, and the groups of a run against the estimate made by hand."""

import itertools
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from unskew import config
from unskew.clip import backbones
from unskew.debias import metrics
from unskew.debias.prior import estimate_log_prior
from unskew.debias.temperature import fit_temperature
from unskew.engine import dataset_groups
from unskew.engine.trainer import build_trainer
from unskew.micro import true_log_prior
from unskew.runs.run import Run, execute

SHORT = ("OPTIM.MAX_EPOCH", 1, "INPUT.VIEWS", 1, "DATALOADER.NUM_WORKERS", 0)


@pytest.fixture
def cold(tmp_path, monkeypatch):
    """A process and a cache without groups."""
    monkeypatch.setenv("UNSKEW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(dataset_groups, "_groups", {})


def as_lists(found):
    return {name: classes.tolist() for name, classes in found.items()}


def load_cfg(data_root, trainer="ZeroshotCLIP", dataset="shapes", backbone="", **pairs):
    opts = {"DATASET.ROOT": data_root, "DATALOADER.NUM_WORKERS": 0, "VERBOSE": False} | pairs
    return config.load(dataset, backbone, trainer, [part for pair in opts.items() for part in pair])


def test_training_groups_split_at_100_and_20():
    counts = torch.tensor([101, 100, 20, 19, 0, 500])
    assert as_lists(metrics.training_groups(counts)) == {"d_many": [0, 5], "d_medium": [1, 2], "d_few": [3, 4]}
    assert as_lists(metrics.training_groups(torch.tensor([5, 50]))) == {"d_many": [], "d_medium": [1], "d_few": [0]}


@pytest.mark.parametrize("counts", [[16] * 4, [16, 16, 12], [200, 300], [7]])
def test_a_single_group_of_all_classes_is_left_out(counts):
    assert metrics.training_groups(torch.tensor(counts)) == {}


@pytest.mark.parametrize("classes", [*range(1, 12), 96, 1000])
def test_prior_groups_are_thirds_by_rank(classes):
    log_q = torch.randn(classes, generator=torch.Generator().manual_seed(classes)).log_softmax(0)
    found = as_lists(metrics.prior_groups(log_q))
    assert list(found) == ["p_many", "p_medium", "p_few"]
    assert list(itertools.chain(*found.values())) == np.argsort(-log_q.numpy()).tolist()
    sizes = [len(members) for members in found.values()]
    assert max(sizes) - min(sizes) <= 1
    assert sizes[0] == sizes[2]


def test_equal_priors_are_ranked_by_label():
    assert as_lists(metrics.prior_groups(torch.zeros(6))) == {"p_many": [0, 1], "p_medium": [2, 3], "p_few": [4, 5]}


def test_crossed_groups_are_the_intersections_that_exist():
    counts, log_q = torch.tensor([500, 50, 5, 5, 400, 7]), torch.tensor([0.3, 0.2, 0.25, 0.1, 0.1, 0.05]).log()
    both = metrics.training_groups(counts) | metrics.prior_groups(log_q)
    expected = {
        "d_many_p_many": [0],
        "d_many_p_few": [4],
        "d_medium_p_medium": [1],
        "d_few_p_many": [2],
        "d_few_p_medium": [3],
        "d_few_p_few": [5],
    }
    assert as_lists(metrics.crossed_groups(both)) == expected
    assert sorted(itertools.chain(*expected.values())) == [0, 1, 2, 3, 4, 5]
    assert metrics.crossed_groups(metrics.prior_groups(log_q)) == {}  # few-shot runs have no D groups


def test_a_long_tailed_set_has_crossed_groups_and_a_prior_from_val_and_up_to_16_shots(data_root, tmp_path):
    cfg = load_cfg(data_root, dataset="shapes_lt", OUTPUT_DIR=str(tmp_path))
    trainer = build_trainer(cfg)
    train, taken = trainer.dataset.train_x, [0] * 64
    items = list(trainer.dataset.val)
    shuffled = np.random.default_rng(0).permutation(len(train))  # another draw of up to 16 than the one in use
    for item in (train[i] for i in shuffled):
        taken[item.label] += 1
        items += [item] if taken[item.label] <= 16 else []
    paths, labels = trainer.labelled(items)
    zeroshot = trainer.zeroshot_logits(paths)
    log_q = estimate_log_prior(zeroshot / fit_temperature(zeroshot, labels), labels).log_q
    found, by_hand = trainer.class_groups(), metrics.prior_groups(log_q)
    for name in ("p_many", "p_medium", "p_few"):  # thirds of 21 or 22 classes; the draws differ at their edges alone
        assert len({*found[name].tolist()} & {*by_hand[name].tolist()}) >= 17
    assert [len(found[name]) for name in ("d_many", "d_medium", "d_few")] == [10, 22, 32]
    crossed = [classes.tolist() for name, classes in found.items() if "_p_" in name]
    assert len(crossed) == 9
    assert sorted(itertools.chain(*crossed)) == list(range(64))
    trainer.test()
    assert {"d_few", "p_few", "d_few_p_few", "d_many_p_many"} <= trainer.results.keys()
    few_shots = dataset_groups.dataset_groups(load_cfg(data_root, dataset="shapes_lt", **{"DATASET.NUM_SHOTS": 4}))
    assert as_lists(few_shots) == {name: found[name].tolist() for name in few_shots}


def test_the_groups_come_from_the_estimate_on_16_shots_of_seed_1(data_root):
    trainer = build_trainer(load_cfg(data_root, **{"DATASET.NUM_SHOTS": 16, "SEED": 1}))
    paths, labels = trainer.labelled([*trainer.dataset.train_x, *trainer.dataset.val])
    assert len(paths) == 96 * (16 + 4)
    zeroshot = trainer.zeroshot_logits(paths)
    log_q = estimate_log_prior(zeroshot / fit_temperature(zeroshot, labels), labels).log_q
    by_hand = np.split(np.argsort(-log_q.numpy(), kind="stable"), 3)
    found = trainer.class_groups()
    assert as_lists(found) == dict(zip(("p_many", "p_medium", "p_few"), map(np.ndarray.tolist, by_hand), strict=True))
    # The thirds of the known prior, which no estimate sees.
    known = metrics.prior_groups(true_log_prior("micro", "shapes"))
    for name in ("p_many", "p_few"):
        assert len({*found[name].tolist()} & {*known[name].tolist()}) >= 24


def test_all_runs_on_a_dataset_share_their_groups(data_root):
    own = dataset_groups.dataset_groups(load_cfg(data_root, dataset="digits"))
    other = load_cfg(data_root, "CoOp", "digits", "micro-vit", **{"DATASET.NUM_SHOTS": 1, "SEED": 7})
    assert as_lists(dataset_groups.dataset_groups(other)) == as_lists(own)
    half = dataset_groups.dataset_groups(load_cfg(data_root, dataset="digits", **{"DATASET.SUBSAMPLE_CLASSES": "new"}))
    assert sorted(itertools.chain(*as_lists(half).values())) == [0, 1, 2, 3, 4]


def test_the_estimate_sees_no_test_images(data_root, tmp_path, monkeypatch):
    cfg = load_cfg(data_root, dataset="digits")
    expected = as_lists(dataset_groups.dataset_groups(cfg))

    def build(cfg):
        dataset = original(cfg)
        dataset.test = None
        return dataset

    original = dataset_groups.build_dataset
    monkeypatch.setattr(dataset_groups, "build_dataset", build)
    monkeypatch.setenv("UNSKEW_CACHE", str(tmp_path))
    found = dataset_groups._estimate_groups(dataset_groups.groups_config(cfg), "cpu")
    assert as_lists(found) == expected


def test_without_the_default_backbone_the_run_continues_with_one_warning(data_root, cold, monkeypatch, caplog):
    def load(name, *arguments):
        raise FileNotFoundError(f"backbone '{name}': its weights are not in the cache")

    monkeypatch.setattr(dataset_groups.backbones, "load_backbone", load)
    cfg = load_cfg(data_root, dataset="digits", backbone="micro-vit")
    assert dataset_groups.dataset_groups(cfg) == dataset_groups.dataset_groups(cfg) == {}
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "p_many" in caplog.text
    assert "'micro'" in caplog.text and len(caplog.messages[0]) < 100


def test_a_runs_metrics_hold_classes_and_groups(data_root, tmp_path):
    run = Run("digits", "CoOp", "micro-a", shots=1, seed=2, root=data_root, output=str(tmp_path), opts=SHORT)
    metrics = execute(run, console=False)
    folder = Path(run.config.OUTPUT_DIR)
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    predictions = load_file(folder / "predictions.safetensors")
    labels = predictions["labels"].numpy()
    right = predictions["logits"].argmax(1).numpy() == labels
    per_class = [100 * right[labels == label].mean() for label in range(10)]
    assert metrics["per_class_accuracy"] == pytest.approx(per_class)
    assert metrics["balanced_accuracy"] == pytest.approx(np.mean(per_class))
    for name, classes in dataset_groups.dataset_groups(run.config).items():
        assert metrics[name] == pytest.approx(np.mean([per_class[label] for label in classes]))
        assert f"* {name}: {metrics[name]:.1f}%" in (folder / "log.txt").read_text()
    assert not any(key.startswith("d_") for key in metrics)  # one shot of each class
    lists = [key for key, value in metrics.items() if isinstance(value, list | dict)]
    assert lists == ["per_class_accuracy", "classnames"]


def test_unbalanced_training_images_give_groups_by_count_and_validation_gives_none(data_root, tmp_path):
    trainer = build_trainer(load_cfg(data_root, dataset="digits", OUTPUT_DIR=str(tmp_path)))
    train = trainer.dataset.train_x  # 20 of each class
    trainer.dataset.train_x = [item for item in train if item.label < 6] + train[-10:]
    found = trainer.class_groups()
    assert as_lists(found)["d_medium"] == [0, 1, 2, 3, 4, 5]
    assert as_lists(found)["d_few"] == [6, 7, 8, 9]
    trainer.test()
    assert {"d_medium", "d_few", "p_many", "p_medium", "p_few"} <= trainer.results.keys()
    assert "d_many" not in trainer.results
    trainer.test(split="val")
    assert not {"d_medium", "p_many"} & trainer.results.keys()


def test_loading_for_the_groups_shares_the_runs_own_tower(data_root, cold):
    trainer = build_trainer(load_cfg(data_root, dataset="digits"))
    before = backbones._load.cache_info().misses
    dataset_groups._estimate_groups(dataset_groups.groups_config(trainer.cfg), trainer.device)
    assert backbones._load.cache_info().misses == before


def test_the_groups_config_equals_a_zeroshot_run(data_root):
    """The run's own keys change neither the images nor the backbone of the groups."""
    for dataset, shots in (("digits", 16), ("digits_lt", -1)):
        opts = {"INPUT.SIZE": (64, 64), "DATASET.NUM_SHOTS": 2, "SEED": 5, "DATASET.SEED": 3, "DATASET.HOLDOUT": 0.3}
        derived = dataset_groups.groups_config(load_cfg(data_root, "CoOp", dataset, "micro-vit", **opts))
        expected = load_cfg(data_root, "ZeroshotCLIP", dataset, "", **{"DATASET.NUM_SHOTS": shots, "SEED": 1})
        assert [derived[node] for node in ("INPUT", "DATASET", "MODEL")] == [
            expected[node] for node in ("INPUT", "DATASET", "MODEL")
        ]
        assert derived.SEED == 1


def test_the_sample_for_the_groups_gives_no_warning(tmp_path, warned):
    """The folder has 12 images per class: enough for the 2 shots of the run, not for the 16 of the groups."""
    rng = np.random.default_rng(0)
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        for number in range(12):
            Image.fromarray(rng.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(tmp_path / name / f"{number}.png")
    opts = ("DATASET.ROOT", str(tmp_path), "DATASET.NUM_SHOTS", 2)
    groups = dataset_groups.dataset_groups(config.load("folder", trainer="ZeroshotCLIP", backbone="micro", opts=opts))
    assert set(groups) == {"p_many", "p_medium", "p_few"} and warned() == []


def test_the_groups_of_own_data_come_from_the_first_member(data_root, tmp_path):
    """Backdoor has no backbone of its own; the dataset's default is no part of the run."""
    (tmp_path / "images").mkdir()
    opts = ("DATASET.ROOT", str(tmp_path / "images"), "TRAINER.BACKDOOR.MEMBERS", ["micro-a#2", "micro-b"])
    cfg = dataset_groups.groups_config(config.load("folder", trainer="Backdoor", opts=opts))
    assert cfg.MODEL.BACKBONE.NAME == "micro-a"
    other = dataset_groups.groups_config(config.load("folder", "micro-vit", "CoOp", opts=opts[:2]))
    assert other.MODEL.BACKBONE.NAME == "micro-vit"
    published = config.load("digits", trainer="Backdoor", opts=opts[2:])
    assert dataset_groups.groups_config(published).MODEL.BACKBONE.NAME == "micro"
