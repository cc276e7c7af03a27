"""CLIPLoRA: its steps against a slow reference in float64, its schedule, its checkpoints, and its uses."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from building import SHORT, build, some_paths
from PIL import Image

from unskew import config
from unskew.engine import checkpoint
from unskew.runs.export import export_run
from unskew.runs.run import Run, execute


def lora(data_root, folder, *opts, backbone="micro-vit", **options):
    return build("CLIPLoRA", data_root, folder, *opts, backbone=backbone, **options)


def reference(trainer, images, labels, steps, rate):
    """Return the LoRA weights after AdamW on full 77-token prompts, in float64, by the formulas."""
    model = copy.deepcopy(trainer.backbone).double()
    ids = trainer.backbone.tokenizer([f"a photo of a {name}." for name in trainer.classnames])
    weights = [weight.detach().double().requires_grad_() for weight in trainer.low_rank.parameters()]
    blocks = [*model.resblocks, *model.visual.transformer.resblocks]
    frozen = [block.attn.in_proj_weight.detach().clone() for block in blocks]
    first, second = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    for step in range(1, steps + 1):
        for number, (block, weight) in enumerate(zip(blocks, frozen, strict=True)):
            down, up = weights[6 * number : 6 * number + 3], weights[6 * number + 3 : 6 * number + 6]
            change = torch.cat([b @ a for a, b in zip(down, up, strict=True)]) / math.sqrt(2)
            del block.attn.in_proj_weight
            block.attn.in_proj_weight = weight + change  # a plain tensor, through which gradients flow
        image = F.normalize(model.model.encode_image(images.double()), dim=1)
        text = F.normalize(model.model.encode_text(ids), dim=1)
        loss = F.cross_entropy(model.logit_scale.exp() * image @ text.T, labels)
        lr = rate * (1 + math.cos(math.pi * (step - 1) / steps)) / 2
        for place, gradient in enumerate(torch.autograd.grad(loss, weights)):
            first[place] = 0.9 * first[place] + 0.1 * gradient
            second[place] = 0.999 * second[place] + 0.001 * gradient**2
            mean, square = first[place] / (1 - 0.9**step), second[place] / (1 - 0.999**step)
            with torch.no_grad():
                weights[place] *= 1 - lr * 0.01
                weights[place] -= lr * mean / (square.sqrt() + 1e-8)
    return weights


def test_training_steps_are_those_of_a_slow_reference(data_root, tmp_path):
    values = {"DROPOUT": 0.0, "ITERATIONS": 2, "TEMPLATE": "a photo of a {}."}
    opts = [part for key, value in values.items() for part in (f"TRAINER.CLIPLORA.{key}", value)]
    trainer = lora(data_root, tmp_path, *opts)
    assert trainer.steps == 4 and trainer.cfg.OPTIM.LR == 2e-4
    batch = next(iter(trainer.train_loader_x))
    before = [weight.detach().clone() for weight in trainer.low_rank.parameters()]
    expected = reference(trainer, batch["img"], batch["label"], 4, 2e-4)
    trainer.set_model_mode("train")
    for _ in range(4):
        trainer.forward_backward(batch)
    for ours, theirs, start in zip(trainer.low_rank.parameters(), expected, before, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=1e-5)
        assert (ours - start).abs().max() > 1e-4
    assert trainer.get_current_lr() == pytest.approx(0, abs=1e-12)


def test_the_numbers_are_the_published_ones(data_root, tmp_path):
    """500 steps per shot at batch 32: for 10 classes and 16 shots 1,600 epochs of 5 batches."""
    cfg = config.load("eurosat", "ViT-B/16", "CLIPLoRA", ("DATASET.NUM_SHOTS", 16))
    assert (cfg.TRAINER.CLIPLORA.TEMPLATE, cfg.TEST.FINAL_MODEL) == ("a photo of a {}.", "last_step")
    opts = (
        "OPTIM.MAX_EPOCH",
        cfg.OPTIM.MAX_EPOCH,
        "DATALOADER.TRAIN_X.BATCH_SIZE",
        cfg.DATALOADER.TRAIN_X.BATCH_SIZE,
    )
    opts += ("TRAINER.CLIPLORA.ITERATIONS", cfg.TRAINER.CLIPLORA.ITERATIONS)
    trainer = lora(data_root, tmp_path, *opts, shots=16)
    assert (trainer.steps, trainer.max_epoch) == (8000, 1600)
    group = trainer._optims["lora"].param_groups[0]
    assert isinstance(trainer._optims["lora"], torch.optim.AdamW)
    assert (group["lr"], group["weight_decay"], group["betas"]) == (2e-4, 0.01, (0.9, 0.999))
    assert all(module.dropout == 0.25 and module.parts == "qkv" for module in trainer.low_rank)
    assert all(module.scale == pytest.approx(1 / math.sqrt(2)) for module in trainer.low_rank)
    assert len(trainer.low_rank) == len(trainer.backbone.resblocks) + len(trainer.backbone.visual.transformer.resblocks)


def test_the_last_epoch_ends_with_the_last_step(data_root, tmp_path):
    """10 images in batches of 3: three batches each, the incomplete one is dropped."""
    opts = ("TRAINER.CLIPLORA.ITERATIONS", 4, "DATALOADER.TRAIN_X.BATCH_SIZE", 3, "TEST.NO_TEST", True)
    trainer = lora(data_root, tmp_path, *opts, shots=1)
    assert (trainer.steps, trainer.max_epoch) == (4, 2)
    rates, step = [], trainer.forward_backward
    trainer.forward_backward = lambda batch: (rates.append(trainer.get_current_lr()), step(batch))[1]
    trainer.train()
    assert rates == pytest.approx([2e-4 * (1 + math.cos(math.pi * i / 4)) / 2 for i in range(4)])
    limited = lora(data_root, tmp_path / "limited", *opts, "OPTIM.MAX_EPOCH", 1, shots=1)
    assert (limited.steps, limited.max_epoch) == (3, 1)


def test_dropout_is_on_in_training_alone(data_root, tmp_path):
    trainer = lora(data_root, tmp_path, "OPTIM.LR", 0.02, "TEST.NO_TEST", True)
    trainer.train()
    images = next(iter(trainer.train_loader_x))["img"]
    for mode, equal in (("train", False), ("eval", True)):
        trainer.set_model_mode(mode)
        with torch.no_grad():
            first, second = trainer.logits(images), trainer.logits(images)
        assert torch.equal(first, second) == equal


def test_a_resumed_run_is_an_uninterrupted_one(data_root, tmp_path):
    opts = ("OPTIM.LR", 0.02, "OPTIM.MAX_EPOCH", 3, "TEST.NO_TEST", True, "TRAIN.CHECKPOINT_FREQ", 1)
    whole = lora(data_root, tmp_path / "whole", *opts)
    whole.train()
    stopped = lora(data_root, tmp_path / "stopped", *opts)
    stopped.epoch_callbacks.append(lambda trainer: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    again = lora(data_root, tmp_path / "stopped", *opts)
    again.train()
    paths = some_paths(whole)
    assert torch.equal(again.predict(paths), whole.predict(paths))


def test_a_checkpoint_holds_lora_alone_and_serves_other_classes(data_root, tmp_path):
    opts = ("OPTIM.LR", 0.02, "TEST.NO_TEST", True)
    trainer = lora(data_root, tmp_path, *opts, "DATASET.SUBSAMPLE_CLASSES", "base")
    trainer.train()
    state = checkpoint.load_checkpoint(checkpoint.last_checkpoint(tmp_path / "lora"))["state_dict"]
    assert {key.split(".")[1] for key in state} == {"down", "up"}
    assert sum(value.numel() for value in state.values()) == trainer.trained_parameters()
    new = lora(data_root, tmp_path / "new", *opts, "DATASET.SUBSAMPLE_CLASSES", "new")
    before = new.predict(some_paths(new))
    new.load_model(tmp_path)
    assert new.classnames != trainer.classnames
    assert (new.predict(some_paths(new)) - before).abs().max() > 0.1


def test_glas_zero_shot_half_keeps_the_frozen_towers(data_root, tmp_path):
    opts = ("TRAINER.GLA.BASE", "CLIPLoRA", "OPTIM.LR", 0.02, "OPTIM.MAX_EPOCH", 1, "TEST.NO_TEST", True)
    trainer = build("GLA", data_root, tmp_path, *opts, backbone="micro-vit")
    trainer.train()
    paths = some_paths(trainer)
    zeroshot = build("ZeroshotCLIP", data_root, tmp_path / "zs", backbone="micro-vit").predict(paths)
    parts = trainer.predict_parts(paths).parts
    torch.testing.assert_close(parts["zs"], zeroshot / trainer.gla.zs_temperature_)
    assert (trainer.base.predict(paths) - zeroshot).abs().max() > 0.1
    crop = trainer.image_model().eval()
    images = torch.stack([crop.zeroshot.prepare[0](Image.open(path).convert("RGB")) for path in paths[:3]])
    torch.testing.assert_close(crop(images[:, None]), trainer.predict(paths[:3]), rtol=1e-4, atol=1e-4)
    assert trainer.linear_head() is None


@pytest.mark.slow
def test_the_whole_model_is_exported(data_root, tmp_path):
    pytest.importorskip("onnxruntime")
    opts = (*SHORT, "TRAINER.GLA.BASE", "CLIPLoRA", "OPTIM.LR", 0.02)
    run = Run("digits", "GLA", "micro-vit", shots=2, seed=1, root=data_root, folder=str(tmp_path / "run"), opts=opts)
    execute(run, console=False)
    export_run(run.path, tmp_path / "model.onnx", kind="model")  # compares its logits with the trainer's
    assert (tmp_path / "model.onnx").stat().st_size > 10_000


def test_a_resnet_trains_its_text_tower_on_cached_features(data_root, tmp_path, warned, monkeypatch):
    monkeypatch.setattr("unskew.utils.logging._warned", set())
    trainer = lora(data_root, tmp_path, "OPTIM.LR", 0.02, "TEST.NO_TEST", True, backbone="micro")
    assert "features" in next(iter(trainer.train_loader_x)) and len(trainer.low_rank) == len(trainer.backbone.resblocks)
    assert any("micro" in warning for warning in warned())
    before = trainer.predict(some_paths(trainer))
    trainer.train()
    assert (trainer.predict(some_paths(trainer)) - before).abs().max() > 0.1


def test_wrong_values_are_errors(data_root, tmp_path):
    for key, value in itertools.product(("RANK", "ITERATIONS"), (0, -1)):
        with pytest.raises(ValueError, match=key):
            lora(data_root, tmp_path, f"TRAINER.CLIPLORA.{key}", value)
    with pytest.raises(ValueError, match="DROPOUT"):
        lora(data_root, tmp_path, "TRAINER.CLIPLORA.DROPOUT", 1.0)
