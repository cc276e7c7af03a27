"""The contract of every trainer in configs/trainers, and tests of single trainers."""

import pytest
import torch
import torch.nn.functional as F
from building import build, some_paths
from yacs.config import CfgNode

from unskew import config
from unskew.clip.text import encode_prompts
from unskew.debias import losses
from unskew.engine.trainer import TRAINER_REGISTRY, SimpleTrainer, TrainerX, build_trainer


@pytest.mark.parametrize("name", config.names("trainers"))
def test_contract(name, data_root, tmp_path):
    trainers = [build(name, data_root, tmp_path / str(i), seed=seed) for i, seed in enumerate((1, 1, 2))]
    logits = []
    for trainer in trainers:
        trainer.train()
        logits.append(trainer.predict(some_paths(trainer)))
    assert logits[0].shape == (40, 10)
    assert logits[0].dtype == torch.float32
    assert torch.isfinite(logits[0]).all()
    assert 0 <= trainers[0].results["accuracy"] <= 100
    assert torch.equal(logits[0], logits[1])  # the same seed, the same bits
    if trainers[0].get_model_names():
        assert not torch.equal(logits[0], logits[2])
        fresh = build(name, data_root, tmp_path / "fresh")
        fresh.load_model(str(tmp_path / "0"))
        assert torch.equal(fresh.predict(some_paths(fresh)), logits[0])


@pytest.mark.parametrize("name", ["CoOp", "ProGrad", "ResidualPrompt"])
def test_training_lowers_the_loss_on_the_training_images(name, data_root, tmp_path):
    trainer = build(name, data_root, tmp_path, "OPTIM.MAX_EPOCH", 20, shots=4)
    paths, labels = trainer.labelled(trainer.dataset.train_x)
    before = losses.cross_entropy(trainer.predict(paths), labels)
    trainer.train()
    assert losses.cross_entropy(trainer.predict(paths), labels) < before - 0.005


@pytest.mark.parametrize("precision", ["amp", "bf16", "fp16"])
@pytest.mark.parametrize("name", ["CoOp", "ProGrad", "GLA"])
def test_other_precisions_give_finite_logits(name, precision, data_root, tmp_path):
    trainer = build(name, data_root, tmp_path, "TRAINER.PREC", precision)
    trainer.train()
    logits = trainer.predict(some_paths(trainer))
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


def test_residual_prompt_starts_at_zero_shot(data_root, tmp_path):
    residual, zeroshot = build("ResidualPrompt", data_root, tmp_path), build("ZeroshotCLIP", data_root, tmp_path)
    paths = some_paths(zeroshot)
    assert residual.dataset.context_init == residual.dataset.templates[0]
    torch.testing.assert_close(residual.predict(paths), zeroshot.predict(paths), rtol=1e-4, atol=1e-4)


def test_kept_views_repeat_and_new_views_do_not(data_root, tmp_path):
    kept, fresh = build("CoOp", data_root, tmp_path), build("CoOp", data_root, tmp_path, "INPUT.VIEWS", 0)
    for trainer in (kept, fresh):
        epochs = []
        for epoch in range(3):
            trainer.train_loader_x.set_epoch(epoch)
            batches = list(trainer.train_loader_x)
            assert len(batches) == len(trainer.train_loader_x) == 20 // 8
            rows = torch.cat([b["features"] for b in batches])
            index = torch.cat([b["index"] for b in batches])
            epochs.append({int(i): row for i, row in zip(index, rows, strict=True)})
        shared = set(epochs[0]) & set(epochs[2])
        assert shared
        repeated = all(torch.equal(epochs[0][i], epochs[2][i]) for i in shared)
        assert repeated == (trainer is kept)  # view 2 modulo 2 is view 0


# --- ProGrad ----------------------------------------------------------------------------------------


def test_prograd_direction_equals_the_formula_in_float64():
    from unskew.trainers.prograd import prograd_direction

    generator = torch.Generator().manual_seed(0)
    agreed = opposed = 0
    for _ in range(20):
        ce, kl = (torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
        dot = sum(a * b for a, b in zip(ce.flatten().tolist(), kl.flatten().tolist(), strict=True))
        norm = sum(b * b for b in kl.flatten().tolist())
        expected = ce if dot >= 0 else ce - 0.8 * dot / norm * kl
        agreed, opposed = agreed + (dot >= 0), opposed + (dot < 0)
        torch.testing.assert_close(prograd_direction(ce.float(), kl.float(), 0.8), expected.float())
    assert agreed
    assert opposed
    noise = -1e-9 * ce
    torch.testing.assert_close(prograd_direction(ce.float(), noise.float(), 1.0), ce.float())
    assert torch.equal(prograd_direction(ce, torch.zeros_like(ce), 1.0), ce)


@pytest.mark.parametrize("precision", ["fp32", "amp"])
def test_prograd_steps_along_its_direction(precision, data_root, tmp_path):
    from unskew.trainers.prograd import prograd_direction

    trainer = build(
        "ProGrad", data_root, tmp_path, "TRAINER.PREC", precision, "OPTIM.LR", 0.5, "OPTIM.WEIGHT_DECAY", 0.0
    )
    trainer.set_model_mode("train")
    batch = next(iter(trainer.train_loader_x))
    for group in trainer._optims["prompt_learner"].param_groups:
        group["lr"] = 0.5  # past the warm-up
    for _ in range(3):  # at the start the gradient of the distillation is zero
        trainer.forward_backward(batch)
    ctx = trainer.prompt_learner.ctx
    before = ctx.detach().clone()
    with trainer.accelerator.autocast():
        logits = trainer.cosine_logits(batch["features"], encode_prompts(trainer.backbone, trainer.prompt_learner()))
        teacher = trainer.cosine_logits(batch["features"], trainer.initial_weights)
    ce = F.cross_entropy(logits.float(), batch["label"])
    teacher = teacher.detach().float().softmax(1)
    kl = (teacher * (teacher.log() - logits.float().log_softmax(1))).sum(1).mean()
    (g_ce,) = torch.autograd.grad(ce, ctx, retain_graph=True)
    (g_kl,) = torch.autograd.grad(kl, ctx)
    optimizer = trainer._optims["prompt_learner"]
    optimizer.state.clear()  # remove the momentum of the earlier steps
    trainer.forward_backward(batch)
    expected = before - 0.5 * prograd_direction(g_ce, g_kl, 1.0, logits.dtype)
    torch.testing.assert_close(ctx.detach(), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "amp"])
def test_prograds_first_step_follows_the_cross_entropy(precision, data_root, tmp_path):
    trainer = build("ProGrad", data_root, tmp_path, "TRAINER.PREC", precision)
    batch = next(iter(trainer.train_loader_x))
    with trainer.accelerator.autocast():
        logits = trainer.logits(batch["features"])
    (g_ce,) = torch.autograd.grad(F.cross_entropy(logits.float(), batch["label"]), trainer.prompt_learner.ctx)
    trainer.forward_backward(batch)
    torch.testing.assert_close(trainer.prompt_learner.ctx.grad, g_ce, rtol=1e-4, atol=1e-6)


def test_prograd_rejects_a_temperature_of_zero(data_root, tmp_path):
    with pytest.raises(ValueError, match=r"PROGRAD\.T"):
        build("ProGrad", data_root, tmp_path, "TRAINER.PROGRAD.T", 0.0)


def test_a_loss_that_is_not_finite_stops_the_training(data_root, tmp_path):
    for name in ("ProGrad", "CoOp"):
        trainer = build(name, data_root, tmp_path / name, "OPTIM.MAX_EPOCH", 3)
        with torch.no_grad():
            trainer.prompt_learner.ctx.fill_(float("nan"))
        with pytest.raises(FloatingPointError):
            trainer.train()


# --- nodes, bases and class trees -------------------------------------------------------------------


def register(monkeypatch, name, cls):
    monkeypatch.setitem(TRAINER_REGISTRY._table, name, cls)


def test_a_subclass_reads_the_node_of_its_registration_or_of_its_base(data_root, tmp_path, monkeypatch):
    base = TRAINER_REGISTRY.get("CLIPAdapter")

    class Sharper(base):
        pass

    cfg = build("CLIPAdapter", data_root, tmp_path).cfg
    register(monkeypatch, "Sharper", Sharper)
    assert Sharper(cfg).node_name == "CLIPADAPTER"
    with_node = cfg.clone()
    with_node.defrost()
    with_node.TRAINER.SHARPER = CfgNode({"RATIO": 0.7, "REDUCTION": 2})
    trainer = Sharper(with_node)
    assert (trainer.node_name, trainer.node.RATIO) == ("SHARPER", 0.7)
    with_node.TRAINER.SHARPER.RATIO = 7.0
    with pytest.raises(ValueError, match=r"TRAINER\.SHARPER\.RATIO"):
        Sharper(with_node)


@pytest.mark.parametrize("takes_argument", [True, False])
def test_the_argument_validate_selects_the_epoch(takes_argument, data_root, tmp_path, monkeypatch):
    """Trainers written for Dassl take the config alone."""
    base = TRAINER_REGISTRY.get("TaskRes")

    class Plain(base):
        def __init__(self, cfg):
            super().__init__(cfg)

    class Passing(base):
        pass

    register(monkeypatch, "Trial", Passing if takes_argument else Plain)
    opts = ("TEST.FINAL_MODEL", "best_val", "OPTIM.MAX_EPOCH", 4)
    cfg = build("TaskRes", data_root, tmp_path, *opts, shots=2).cfg
    scores = iter([10.0, 30.0, 20.0, 5.0])
    trainer = build_trainer(cfg, "Trial", validate=lambda: next(scores))
    trainer.train()
    saved = torch.load(tmp_path / "classifier" / "model-best.pth.tar", weights_only=True)
    assert (saved["epoch"], saved["val_result"]) == (2, 30.0)


@pytest.mark.parametrize("name", config.names("trainers"))
def test_class_trees_are_at_most_three_deep_below_the_engines(name):
    tree = TRAINER_REGISTRY.get(config.class_name(name)).__mro__
    top = next(place for place, cls in enumerate(tree) if cls in (TrainerX, SimpleTrainer))
    assert top <= 3
