"""Tests of Tip-Adapter, Tip-Adapter-F, CLIP-Adapter and TaskRes against their formulas."""

import math

import building
import pytest
import torch
import torch.nn.functional as F
from building import some_paths

from unskew import config
from unskew.clip.prompts import fill
from unskew.clip.text import encode_prompts
from unskew.data.dataset import Datum
from unskew.debias import losses
from unskew.engine import checkpoint

SHORT = ("OPTIM.MAX_EPOCH", 3, "DATALOADER.TRAIN_X.BATCH_SIZE", 16)
TIP_GRID = (0.1, 1.825, 3.55, 5.275), (0.1, 1.55)  # betas and alphas of SEARCH_SCALE [7, 3] and SEARCH_STEP [4, 2]
METHODS = ("TipAdapter", "TipAdapterF", "CLIPAdapter", "TaskRes")


def build(name, data_root, output, *opts, seed=1, shots=4):
    return building.build(name, data_root, output, *SHORT, *opts, seed=seed, shots=shots)


def small_grid(name):
    return f"TRAINER.{name.upper()}.SEARCH_STEP", [4, 2]


def slow_tip_logits(trainer, paths, alpha, beta):
    """Return Tip-Adapter's logits in float64 by the paper's formula, one image and one key at a time."""
    keys, labels = trainer.cache.keys.detach().double(), trainer.cache.labels
    scale = math.exp(trainer.backbone.logit_scale.item())
    rows = []
    for feature in trainer.encode(paths).double():
        feature = feature / feature.norm()
        row = [scale * (feature @ weight).item() for weight in trainer.zeroshot_weights.double()]
        for key, label in zip(keys, labels, strict=True):
            row[label] += alpha * math.exp(-beta * (1 - (feature @ key).item()))
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


# --- Tip-Adapter ------------------------------------------------------------------------------------


def test_tip_adapter_equals_its_formula(data_root, tmp_path):
    trainer = build("TipAdapter", data_root, tmp_path, *small_grid("TipAdapter"))
    trainer.train()
    items = trainer.dataset.train_x
    views = trainer._encode_views([item.impath for item in items], range(2)).double()
    mean = (views[:, 0] + views[:, 1]) / 2
    keys = torch.stack([row / row.norm() for row in mean])
    torch.testing.assert_close(trainer.cache.keys.double(), keys, rtol=1e-5, atol=1e-6)
    assert trainer.cache.labels.tolist() == [item.label for item in items]
    paths = some_paths(trainer)
    expected = slow_tip_logits(trainer, paths, trainer.cache.alpha.item(), trainer.cache.beta.item())
    torch.testing.assert_close(trainer.predict(paths).double(), expected, rtol=1e-4, atol=1e-4)


def test_tip_adapter_without_views_stores_the_features_of_the_images(data_root, tmp_path):
    trainer = build("TipAdapter", data_root, tmp_path, "INPUT.VIEWS", 0, *small_grid("TipAdapter"))
    trainer.train()
    plain = trainer.encode([item.impath for item in trainer.dataset.train_x])
    torch.testing.assert_close(trainer.cache.keys.data, F.normalize(plain, dim=-1))


@pytest.mark.parametrize("name", ["TipAdapter", "TipAdapterF"])
def test_search_returns_the_best_pair_on_val(name, data_root, tmp_path):
    trainer = build(name, data_root, tmp_path, *small_grid(name), seed=2)
    trainer.train()
    paths, labels = trainer.labelled(trainer.dataset.val)
    scores = {}
    for beta in TIP_GRID[0]:
        for alpha in TIP_GRID[1]:
            logits = slow_tip_logits(trainer, paths, alpha, beta)
            loss = F.cross_entropy(logits, labels).item()
            scores[alpha, beta] = ((logits.argmax(1) == labels).sum().item(), -loss)
    assert len(set(scores.values())) > 4
    expected = max(scores, key=scores.get)
    assert (trainer.cache.alpha.item(), trainer.cache.beta.item()) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["TipAdapter", "TipAdapterF"])
def test_search_never_opens_the_test_split(name, data_root, tmp_path):
    opts = (*small_grid(name), "TEST.NO_TEST", True)
    plain, blind = (build(name, data_root, tmp_path / folder, *opts) for folder in ("plain", "blind"))
    blind.dataset.test[:] = [Datum("/missing.png", 0, 0, item.classname) for item in blind.dataset.test]
    plain.train()
    blind.train()
    assert torch.equal(plain.predict(some_paths(plain)), blind.predict(some_paths(plain)))


def test_without_val_alpha_and_beta_keep_the_values_of_the_config(data_root, tmp_path):
    trainer = build("TipAdapter", data_root, tmp_path, "TRAINER.TIPADAPTER.ALPHA", 2.5)
    trainer.dataset.val[:] = []
    trainer.train()
    assert (trainer.cache.alpha.item(), trainer.cache.beta.item()) == (2.5, 5.5)


def test_an_invalid_search_grid_raises(data_root, tmp_path):
    with pytest.raises(ValueError, match="SEARCH_STEP"):
        build("TipAdapterF", data_root, tmp_path, "TRAINER.TIPADAPTERF.SEARCH_STEP", [0, 20])
    with pytest.raises(ValueError, match="SEARCH_SCALE"):
        build("TipAdapter", data_root, tmp_path, "TRAINER.TIPADAPTER.SEARCH_SCALE", [7.0])


# --- Tip-Adapter-F ----------------------------------------------------------------------------------


def test_tip_adapter_f_starts_from_tip_adapter(data_root, tmp_path):
    plain = build("TipAdapter", data_root, tmp_path / "a", *small_grid("TipAdapter"))
    start = build("TipAdapterF", data_root, tmp_path / "b", *small_grid("TipAdapterF"), "OPTIM.MAX_EPOCH", 0)
    trained = build("TipAdapterF", data_root, tmp_path / "c", *small_grid("TipAdapterF"))
    for trainer in (plain, start, trained):
        trainer.train()
    assert torch.equal(plain.cache.keys, start.cache.keys)
    assert torch.equal(plain.predict(some_paths(plain)), start.predict(some_paths(plain)))
    assert not torch.equal(plain.cache.keys, trained.cache.keys)
    assert [name for name, parameter in trained.cache.named_parameters() if parameter.requires_grad] == ["keys"]


def test_tip_adapter_f_searches_alpha_and_beta_for_the_best_epoch(data_root, tmp_path):
    trainer = build("TipAdapterF", data_root, tmp_path, *small_grid("TipAdapterF"), "OPTIM.LR", 0.01)
    results, keys = [], []
    trainer.validate = lambda: results.append([50.0, 70.0, 60.0][trainer.epoch]) or results[-1]
    trainer.epoch_callbacks.append(lambda trainer: keys.append(trainer.cache.keys.detach().clone()))
    trainer.train()
    assert torch.equal(trainer.cache.keys, keys[1])
    saved = checkpoint.load_checkpoint(tmp_path / "cache" / checkpoint.BEST)
    assert (saved["epoch"], saved["val_result"]) == (2, 70.0)
    assert saved["state_dict"]["alpha"] == trainer.cache.alpha != torch.tensor(1.17)
    assert torch.equal(saved["state_dict"]["keys"], keys[1])


def test_tip_adapter_f_uses_the_published_optimizer(data_root, tmp_path):
    trainer = build("TipAdapterF", data_root, tmp_path)
    optimizer = trainer._optims["cache"]
    assert type(optimizer).__name__ == "AdamW"
    assert {(g["lr"], g["eps"], g["weight_decay"]) for g in optimizer.param_groups} == {(0.001, 1e-4, 0.01)}


# --- CLIP-Adapter -----------------------------------------------------------------------------------


def test_clip_adapter_equals_its_formula(data_root, tmp_path):
    trainer = build("CLIPAdapter", data_root, tmp_path, "TRAINER.CLIPADAPTER.RATIO", 0.3)
    down, up = (trainer.adapter[i].weight.detach().double() for i in (0, 2))
    assert (down.shape, up.shape) == ((16, 64), (64, 16))
    features = trainer.encode(some_paths(trainer)).double()
    adapted = ((features @ down.T).clamp(min=0) @ up.T).clamp(min=0)
    blended = 0.3 * adapted + 0.7 * features
    blended = blended / blended.norm(dim=1, keepdim=True)
    expected = math.exp(trainer.backbone.logit_scale.item()) * blended @ trainer.zeroshot_weights.double().T
    torch.testing.assert_close(trainer.predict(some_paths(trainer)).double(), expected, rtol=1e-4, atol=1e-4)


def test_clip_adapter_with_ratio_zero_is_zero_shot(data_root, tmp_path):
    trainer = build("CLIPAdapter", data_root, tmp_path, "TRAINER.CLIPADAPTER.RATIO", 0.0)
    paths = some_paths(trainer)
    assert torch.equal(trainer.predict(paths), trainer.zeroshot_logits(paths))


def test_clip_adapter_is_initialised_like_pytorchs_linear_layers(data_root, tmp_path):
    from unskew.trainers.clipadapter import build_adapter

    trainer = build("CLIPAdapter", data_root, tmp_path)
    torch.manual_seed(99)  # the draws come from the generator alone
    first, second = (build_adapter(64, 4, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first[0].weight, second[0].weight)
    for layer in (trainer.adapter[0], trainer.adapter[2]):
        expected = torch.nn.Linear(layer.in_features, layer.out_features, bias=False).weight
        assert layer.weight.std().item() == pytest.approx(expected.std().item(), rel=0.15)
        assert layer.weight.abs().max() <= 1 / math.sqrt(layer.in_features)


@pytest.mark.parametrize(("key", "value"), [("RATIO", 1.5), ("RATIO", -0.1), ("REDUCTION", 0)])
def test_clip_adapter_rejects_invalid_values(key, value, data_root, tmp_path):
    with pytest.raises(ValueError, match=rf"{key}.*{value}"):
        build("CLIPAdapter", data_root, tmp_path, f"TRAINER.CLIPADAPTER.{key}", value)


# --- TaskRes ----------------------------------------------------------------------------------------


def test_taskres_starts_at_zero_shot(data_root, tmp_path):
    trainer = build("TaskRes", data_root, tmp_path)
    paths = some_paths(trainer)
    assert torch.equal(trainer.predict(paths), trainer.zeroshot_logits(paths))


def test_taskres_equals_its_formula(data_root, tmp_path):
    trainer = build("TaskRes", data_root, tmp_path, "TRAINER.TASKRES.RESIDUAL_SCALE", 0.7)
    residual = torch.randn(10, 64, generator=torch.Generator().manual_seed(0))
    trainer.classifier.residual.data.copy_(residual)
    texts = encode_prompts(trainer.backbone, fill(trainer.dataset.templates[0], trainer.classnames))
    weights = texts.double() + 0.7 * residual.double()  # t' = t + alpha x, before normalisation
    weights = weights / weights.norm(dim=1, keepdim=True)
    features = F.normalize(trainer.encode(some_paths(trainer)).double(), dim=1)
    expected = math.exp(trainer.backbone.logit_scale.item()) * features @ weights.T
    torch.testing.assert_close(trainer.predict(some_paths(trainer)).double(), expected, rtol=1e-4, atol=1e-4)


# --- all methods ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS[1:])
def test_training_lowers_the_loss_on_the_training_images(name, data_root, tmp_path):
    opts = small_grid(name) if name == "TipAdapterF" else ("OPTIM.LR", 0.01)
    trainer = build(name, data_root, tmp_path, "OPTIM.MAX_EPOCH", 20, "TEST.FINAL_MODEL", "last_step", *opts)
    paths, labels = trainer.labelled(trainer.dataset.train_x)
    if name == "TipAdapterF":
        trainer.fill_cache()
        trainer.search = lambda: None  # keep the alpha and beta of the training
    before = losses.cross_entropy(trainer.predict(paths), labels)
    trainer.train()
    assert losses.cross_entropy(trainer.predict(paths), labels) < before - 0.005


@pytest.mark.parametrize("name", METHODS)
def test_mixed_precision_gives_finite_logits(name, data_root, tmp_path):
    opts = small_grid(name) if "Tip" in name else ()
    trainer = build(name, data_root, tmp_path, "TRAINER.PREC", "amp", *opts)
    trainer.train()
    logits = trainer.predict(some_paths(trainer))
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("base", METHODS)
def test_gla_accepts_each_method_as_its_base(base, data_root, tmp_path):
    opts = ("TRAINER.GLA.BASE", base, *(small_grid(base) if "Tip" in base else ()))
    trainer = build("GLA", data_root, tmp_path, *opts)
    trainer.train()
    assert type(trainer.base).__name__ == base
    paths = some_paths(trainer)
    ft, zs = trainer.base.predict(paths), trainer.zeroshot_logits(paths)
    assert not torch.allclose(ft, zs)
    fresh = build("GLA", data_root, tmp_path / "fresh", *opts)
    fresh.load_model(str(tmp_path))
    assert torch.equal(fresh.predict(paths), trainer.predict(paths))


def test_published_schedules_depend_on_the_dataset_and_the_shots():
    tip = config.load("digits", "", "TipAdapterF")
    assert (tip.OPTIM.NAME, tip.OPTIM.MAX_EPOCH, tip.INPUT.VIEWS) == ("adamw", 20, 10)
    assert (tip.TRAINER.TIPADAPTERF.ALPHA, tip.TRAINER.TIPADAPTERF.BETA) == (1.17, 1.0)
    epochs = {k: config.load("digits", "", "TaskRes", ("DATASET.NUM_SHOTS", k)).OPTIM.MAX_EPOCH for k in (1, 4, 8, 16)}
    assert epochs == {1: 100, 4: 100, 8: 200, 16: 200}
    epochs = {k: config.load("digits", "", "CLIPAdapter", ("DATASET.NUM_SHOTS", k)).OPTIM.MAX_EPOCH for k in (1, 4, 8)}
    assert epochs == {1: 50, 4: 100, 8: 200}


def test_a_second_tip_adapter_f_run_in_the_same_folder_gives_equal_logits(data_root, tmp_path):
    """Training resumes from the last epoch, whose checkpoint must not contain the result of the search."""
    opts = ("OPTIM.MAX_EPOCH", 5, "OPTIM.LR", 0.01, "TRAINER.TIPADAPTERF.SEARCH_STEP", [5, 5])
    trained = build("TipAdapterF", data_root, tmp_path, *opts, shots=4)
    trained.train()
    resumed = build("TipAdapterF", data_root, tmp_path, *opts, shots=4)
    resumed.train()
    assert resumed.start_epoch == 5
    paths = some_paths(trained)
    assert torch.equal(resumed.predict(paths), trained.predict(paths))
