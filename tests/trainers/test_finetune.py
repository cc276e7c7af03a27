"""Tests of FineTune: its start, its training in every precision, with accumulation and in several processes."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from building import SHORT, build, some_paths
from PIL import Image
from torchvision import transforms as T

from unskew.clip import adapters, backbones
from unskew.data.images import read_image
from unskew.data.loaders import build_transform
from unskew.runs import wiseft
from unskew.runs.run import Run, execute

PAIRS = [("micro", name) for name in ("bitfit", "full", "bottleneck", "none")]
PAIRS += [("micro-vit", name) for name in (*adapters.IN_TOWER, *adapters.BEHIND_TOWER)]


def finetune(data_root, output, adapter="", *opts, backbone="", **kwargs):
    return build("FineTune", data_root, output, "TRAINER.FINETUNE.ADAPTER", adapter, *opts, backbone=backbone, **kwargs)


def images_of(trainer, paths):
    return torch.stack([trainer.dm.tfm_test(read_image(path)) for path in paths])


# --- the start ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("backbone", "adapter"), [pair for pair in PAIRS if pair[1] != "vpt"])
@torch.no_grad()
def test_finetune_starts_as_a_cosine_head_on_the_frozen_feature(backbone, adapter, data_root, tmp_path):
    trainer = finetune(data_root, tmp_path, adapter, backbone=backbone)
    paths = some_paths(trainer, 8)
    visual, rows = trainer.backbone.visual, trainer.zeroshot_weights
    if trainer.needs_images and backbone == "micro-vit":  # the feature before the projection
        rows = rows @ visual.proj.T
        x = visual.transformer(visual._embeds(images_of(trainer, paths)))
        frozen = visual._pool(x)[0]
    else:
        frozen = visual(images_of(trainer, paths))
    cosines = F.normalize(frozen, dim=1) @ F.normalize(rows, dim=1).T
    torch.testing.assert_close(trainer.predict(paths), 25 * cosines, rtol=1e-5, atol=1e-4)
    assert trainer.needs_images == (adapter in adapters.IN_TOWER)


def test_head_init_decides_the_initial_head(data_root, tmp_path):
    accuracy = {}
    for start in ("text", "class_mean", "linear_probe", "random"):
        for backbone in ("micro", "micro-vit"):
            trainer = finetune(
                data_root, tmp_path, "", "TRAINER.FINETUNE.HEAD_INIT", start, shots=16, backbone=backbone
            )
            paths, labels = trainer.labelled(trainer.dataset.train_x)
            accuracy[start, backbone] = (trainer.predict(paths).argmax(1) == labels).float().mean().item()
            if start == "class_mean" and backbone == "micro":
                features = F.normalize(trainer.encode(paths), dim=1)
                first = F.normalize(features[labels == 3].mean(0), dim=0)
                torch.testing.assert_close(trainer.model.head.weight[3], first, rtol=1e-5, atol=1e-5)
    for backbone in ("micro", "micro-vit"):
        assert accuracy["linear_probe", backbone] >= accuracy["class_mean", backbone]
        assert accuracy["class_mean", backbone] > accuracy["text", backbone] - 0.1
        assert accuracy["random", backbone] < 0.4


def test_invalid_keys_raise(data_root, tmp_path):
    with pytest.raises(ValueError, match=r"HEAD_INIT.*class_mean"):
        finetune(data_root, tmp_path, "", "TRAINER.FINETUNE.HEAD_INIT", "class_means")
    with pytest.raises(ValueError, match=r"SCALE.*0\.0"):
        finetune(data_root, tmp_path, "", "TRAINER.FINETUNE.SCALE", 0.0)
    with pytest.raises(ValueError, match=r"ModifiedResNet.*bitfit.*lora"):
        finetune(data_root, tmp_path, "lora")


# --- training ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("backbone", "adapter"), PAIRS)
def test_training_changes_only_adapter_and_head(backbone, adapter, data_root, tmp_path):
    trainer = finetune(data_root, tmp_path, adapter, "OPTIM.MAX_EPOCH", 1, backbone=backbone)
    shared = {key: value.clone() for key, value in trainer.backbone.state_dict().items()}
    before = {key: value.clone() for key, value in torch.nn.Module.state_dict(trainer.model).items()}
    trainer.train()
    moved = {
        key for key, value in torch.nn.Module.state_dict(trainer.model).items() if not torch.equal(value, before[key])
    }
    trained = trainer.model.state_dict().keys() - {"backbone_id", "classes"}
    assert moved <= trained
    assert moved >= {key for key in trained if ".down." not in key}  # at the first step the gradient of down is zero
    assert {"head.weight"} < trained or adapter == "none"
    assert all(torch.equal(value, shared[key]) for key, value in trainer.backbone.state_dict().items())


def test_the_loss_adds_log_p_to_the_logits(data_root, tmp_path):
    trainer = finetune(data_root, tmp_path, "none", shots=16)
    keep = [item for number, item in enumerate(trainer.dataset.train_x) if item.label < 8 or number % 8 == 0]
    counts = torch.bincount(torch.tensor([item.label for item in keep]), minlength=10)
    assert len(counts.unique()) == 2
    trainer.dataset.train_x[:] = keep
    trainer._models.clear()
    trainer.build_model()
    batch = next(iter(trainer.train_loader_x))
    with torch.no_grad():
        probability = (trainer.logits(batch["features"]).double().exp() * counts).T
    probability = (probability / probability.sum(0)).T
    expected = -sum(row[label].log() for row, label in zip(probability, batch["label"], strict=True)) / 8
    assert trainer.forward_backward(batch)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_every_loss_trains(data_root, tmp_path):
    adjusted = {}
    for name in ("la", "ce", "balanced_softmax", "focal", "ldam", "class_balanced", "gla_train"):
        trainer = finetune(data_root, tmp_path / name, "", "TRAINER.FINETUNE.LOSS", name)
        trainer.train()
        assert torch.isfinite(trainer.predict(some_paths(trainer))).all()
        adjusted[name] = trainer.logit_adjusted
    assert {name for name, is_adjusted in adjusted.items() if is_adjusted} >= {"la", "balanced_softmax", "gla_train"}
    assert not adjusted["ce"]
    with pytest.raises(ValueError, match="softmax"):
        finetune(data_root, tmp_path, "", "TRAINER.FINETUNE.LOSS", "softmax")


@pytest.mark.parametrize("precision", ["amp", "bf16", "fp16"])
@pytest.mark.parametrize("backbone", ["micro", "micro-vit"])
def test_other_precisions_give_finite_logits(backbone, precision, data_root, tmp_path):
    trainer = finetune(data_root, tmp_path, "", "TRAINER.PREC", precision, backbone=backbone)
    trainer.train()
    logits = trainer.predict(some_paths(trainer))
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()
    assert {value.dtype for value in trainer.model.state_dict().values()} <= {torch.float32, torch.uint8, torch.int64}


@pytest.mark.slow
def test_a_vit_b_16_takes_a_step(data_root, tmp_path):
    opts = ("OPTIM.MAX_EPOCH", 1, "DATALOADER.TRAIN_X.BATCH_SIZE", 2, "TEST.NO_TEST", True)
    trainer = finetune(data_root, tmp_path, "", *opts, backbone="ViT-B-16@random")
    trainer.dm.dataset.train_x[:] = trainer.dataset.train_x[:2]
    before = trainer.state_dict()["finetune"]
    trainer.train()
    after = trainer.state_dict()["finetune"]
    assert trainer.num_batches == 1
    assert not torch.equal(after["head.weight"], before["head.weight"])
    assert sum(value.numel() for value in after.values()) < 10 * 768 + 12 * 4000 + 100


# --- checkpoints -------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", ["adaptformer", "lora", "vpt", "bottleneck"])
def test_a_checkpoint_holds_adapter_and_head_and_fits_only_its_backbone(adapter, data_root, tmp_path):
    trainer = finetune(data_root, tmp_path, adapter, backbone="micro-vit")
    trainer.train()
    saved = torch.load(tmp_path / "finetune" / "model.pth.tar-2", weights_only=True)["state_dict"]
    assert bytes(saved["backbone_id"].tolist()).decode() == trainer.backbone.id
    named = dict(trainer.model.named_parameters())
    assert saved.keys() - {"backbone_id", "classes"} == {key for key in named if named[key].requires_grad}
    assert sum(value.numel() for value in saved.values()) < 0.03 * sum(p.numel() for p in trainer.backbone.parameters())

    fresh = finetune(data_root, tmp_path / "fresh", adapter, backbone="micro-vit", seed=3)
    fresh.load_model(str(tmp_path))
    assert torch.equal(fresh.predict(some_paths(trainer)), trainer.predict(some_paths(trainer)))
    for missing in ("backbone_id", "head.weight"):
        with pytest.raises(RuntimeError, match=missing):
            fresh.model.load_state_dict({key: value for key, value in saved.items() if key != missing})
    other = finetune(data_root, tmp_path / "other", backbone="micro-a")
    with pytest.raises(ValueError, match=r"micro-vit@.*micro-a@"):
        other.load_model(str(tmp_path))


class Crash(Exception):
    pass


@pytest.mark.parametrize("backbone", ["micro", "micro-vit"])
def test_a_resumed_run_ends_with_equal_weights(backbone, data_root, tmp_path):
    settings = ("TRAIN.CHECKPOINT_FREQ", 1, "OPTIM.MAX_EPOCH", 3, "TEST.NO_TEST", True)

    def make(folder):
        return finetune(data_root, tmp_path / folder, "", *settings, backbone=backbone)

    def crash(trainer):
        raise Crash

    whole, cut = make("whole"), make("cut")
    whole.train()
    cut.epoch_callbacks.append(crash)
    with pytest.raises(Crash):
        cut.train()
    resumed = make("cut")
    resumed.train()
    assert resumed.start_epoch == 1
    states = [trainer.state_dict()["finetune"] for trainer in (whole, resumed)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


# --- accumulation, processes -------------------------------------------------------------------------


def losses_and_weights(trainer):
    losses, step = [], trainer.forward_backward

    def recorded(batch):
        losses.append(step(batch)["loss"].item())
        return {"loss": torch.tensor(losses[-1])}

    trainer.forward_backward = recorded
    trainer.train()
    return losses, trainer.state_dict()["finetune"]


def assert_same_training(first, second):
    for key, value in first.items():
        torch.testing.assert_close(value, second[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backbone", ["micro", "micro-vit"])
def test_accumulated_batches_equal_one_large_batch(backbone, data_root, tmp_path):
    common = ("INPUT.TRANSFORMS", ["normalize"], "OPTIM.MAX_EPOCH", 2, "TEST.NO_TEST", True)

    def make(batch, n):
        opts = (*common, "DATALOADER.TRAIN_X.BATCH_SIZE", batch, "TRAIN.ACCUMULATE", n)
        return finetune(data_root, tmp_path / f"{batch}", "", *opts, backbone=backbone)

    small, small_weights = losses_and_weights(make(5, 2))  # 20 images: two steps of two batches
    large, large_weights = losses_and_weights(make(10, 1))
    assert (len(small), len(large)) == (8, 4)
    pairs = torch.tensor(small).view(-1, 2).mean(1)
    torch.testing.assert_close(pairs, torch.tensor(large), rtol=1e-4, atol=1e-5)
    assert_same_training(small_weights, large_weights)


def test_the_last_step_of_an_epoch_uses_the_remaining_batches(data_root, tmp_path):
    opts = ("DATALOADER.TRAIN_X.BATCH_SIZE", 5, "TRAIN.ACCUMULATE", 3, "OPTIM.MAX_EPOCH", 1)
    trainer = finetune(data_root, tmp_path, "none", *opts, "OPTIM.MOMENTUM", 0.0, "OPTIM.WEIGHT_DECAY", 0.0)
    head = trainer.model.head.weight
    expected = head.detach().clone().requires_grad_()
    batches = list(trainer.train_loader_x)
    steps = []
    optimizer = trainer._optims["finetune"]
    optimizer.register_step_post_hook(lambda *_: steps.append(trainer.batch_idx))
    trainer.train()
    assert steps == [2, 3]
    for group in (batches[:3], batches[3:]):
        features, labels = (torch.cat([batch[key] for batch in group]) for key in ("features", "label"))
        logits = 25 * F.normalize(features, dim=1) @ F.normalize(expected, dim=1).T
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels), expected)
        expected = (expected - 0.01 * gradient).detach().requires_grad_()
    torch.testing.assert_close(head, expected, rtol=1e-5, atol=1e-6)


def test_accumulation_raises_if_unsupported(data_root, tmp_path):
    with pytest.raises(ValueError, match=r"TRAIN\.ACCUMULATE.*0"):
        finetune(data_root, tmp_path, "", "TRAIN.ACCUMULATE", 0)
    with pytest.raises(ValueError, match=r"ProGrad.*TRAIN\.ACCUMULATE"):
        build("ProGrad", data_root, tmp_path, "TRAIN.ACCUMULATE", 2).train()


SCRIPT = """
import sys, torch
sys.path[:0] = [{folder!r}, {tests!r}]
from test_finetune import finetune, losses_and_weights
for backbone in ("micro", "micro-vit"):
    trainer = finetune({data!r}, {output!r} + backbone, "", *{opts!r}, backbone=backbone)
    losses, weights = losses_and_weights(trainer)
    gathered = trainer.accelerator.gather(torch.tensor(losses)).view(2, -1).mean(0)
    logits = trainer.predict([item.impath for item in trainer.dataset.test[:15]])
    if trainer.accelerator.is_main_process:
        torch.save({{**weights, "losses": gathered, "logits": logits}}, {output!r} + backbone + ".pt")
"""


@pytest.mark.slow
def test_two_processes_equal_one_with_the_same_global_batch(data_root, tmp_path):
    common = ("INPUT.TRANSFORMS", ["normalize"], "OPTIM.MAX_EPOCH", 2, "TEST.NO_TEST", True, "USE_CUDA", False)
    names = {
        "folder": os.path.dirname(__file__),
        "tests": os.path.dirname(os.path.dirname(__file__)),
        "data": data_root,
        "output": f"{tmp_path}/two-",
    }
    opts = (*common, "DATALOADER.TRAIN_X.BATCH_SIZE", 10)
    (tmp_path / "script.py").write_text(SCRIPT.format(**names, opts=opts))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "script.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for backbone in ("micro", "micro-vit"):
        two = torch.load(tmp_path / f"two-{backbone}.pt", weights_only=True)
        one = finetune(data_root, tmp_path / f"one-{backbone}", "", *opts, backbone=backbone)
        losses, weights = losses_and_weights(one)
        torch.testing.assert_close(two["losses"], torch.tensor(losses), rtol=1e-4, atol=1e-5)
        assert_same_training(weights, two)
        torch.testing.assert_close(two["logits"], one.predict(some_paths(one, 15)), rtol=1e-4, atol=1e-3)


# --- crops -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crops", [5, 10])
@pytest.mark.parametrize("trainer", ["FineTune on images", "FineTune on features", "ZeroshotCLIP", "GLA"])
@torch.no_grad()
def test_predictions_equal_the_mean_over_torchvisions_crops(trainer, crops, data_root, tmp_path):
    if trainer.startswith("FineTune"):
        adapter = "adaptformer" if trainer.endswith("images") else "bottleneck"
        trainer = finetune(data_root, tmp_path, adapter, "TEST.CROPS", crops, backbone="micro-vit")
        of_images = trainer.model if trainer.needs_images else lambda x: trainer.model(trainer.backbone.encode_image(x))
    else:
        trainer = build(trainer, data_root, tmp_path, "TEST.CROPS", crops, backbone="micro-vit")

        def of_images(x):
            return trainer.cosine_logits(trainer.backbone.encode_image(x), trainer.zeroshot_weights)

    paths, backbone = some_paths(trainer, 6), trainer.backbone
    larger = T.Resize(37, T.InterpolationMode.BICUBIC)  # 32 * 8 / 7
    several = (T.FiveCrop if crops == 5 else T.TenCrop)(32)
    to_tensor = T.Compose([T.ToTensor(), T.Normalize(backbone.mean, backbone.std)])
    expected = []
    for path in paths:
        views = torch.stack([to_tensor(view) for view in several(larger(read_image(path)))])
        expected.append(of_images(views).mean(0))
    ours = trainer.zeroshot_logits(paths) if hasattr(trainer, "base") else trainer.predict(paths)
    torch.testing.assert_close(ours, torch.stack(expected), rtol=1e-4, atol=1e-4)


def test_an_invalid_number_of_crops_raises(data_root, tmp_path):
    with pytest.raises(ValueError, match=r"TEST\.CROPS.*3"):
        finetune(data_root, tmp_path, "", "TEST.CROPS", 3)


def test_each_crop_equals_torchvisions(data_root, tmp_path):
    cfg = finetune(data_root, tmp_path).cfg
    one = build_transform(cfg, backbones.load_backbone("micro"), False, crop=6)
    assert "number=6" in repr(one)  # the key of cached features
    image = Image.effect_noise((50, 40), 60).convert("RGB")
    larger = T.Resize(37, T.InterpolationMode.BICUBIC)(image)
    assert torch.equal(T.functional.pil_to_tensor(one.transforms[1](larger)), T.PILToTensor()(T.TenCrop(32)(larger)[6]))


# --- inside other methods ----------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["micro", "micro-vit"])
def test_gla_over_finetune_does_not_subtract_log_p_twice(backbone, data_root, tmp_path):
    opts = ("TRAINER.GLA.BASE", "FineTune", "DATASET.NUM_VAL_SHOTS", 2)
    gla = build("GLA", data_root, tmp_path, *opts, backbone=backbone)
    gla.dataset.train_x[:] = gla.dataset.train_x[:-1]  # one class has one image less
    assert gla.base.logit_adjusted
    gla.train()
    assert not gla.gla.log_p_.any()
    paths = some_paths(gla)
    assert (tmp_path / "finetune" / "model-best.pth.tar").is_file()
    calibrated = gla.base.predict(paths) / gla.gla.ft_temperature_
    torch.testing.assert_close(gla.predict_parts(paths).parts["ft"], calibrated, rtol=1e-5, atol=1e-5)


def test_gla_subtracts_log_p_unless_the_loss_is_logit_adjusted(data_root, tmp_path):
    gla = build("GLA", data_root, tmp_path, "TRAINER.GLA.BASE", "FineTune", "TRAINER.FINETUNE.LOSS", "ce")
    gla.dataset.train_x[:] = gla.dataset.train_x[:-1]
    assert not gla.base.logit_adjusted
    gla.fit_zeroshot()
    assert gla.gla.log_p_.unique().numel() == 2


@pytest.mark.parametrize("backbone", ["micro", pytest.param("micro-vit", marks=pytest.mark.slow)])
def test_wiseft_interpolates_between_the_start_and_a_run(backbone, data_root, tmp_path):
    run = Run("digits", "FineTune", backbone=backbone, shots=1, root=data_root, folder=str(tmp_path), opts=SHORT)
    execute(run, False)
    logits = [wiseft.predict_test("init", str(tmp_path), alpha)[0] for alpha in (0, 0.5, 1)]
    start = build("FineTune", data_root, tmp_path / "x", shots=1, backbone=backbone)
    paths = [item.impath for item in start.dataset.test]
    torch.testing.assert_close(logits[0], start.predict(paths))
    assert not torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[1], logits[2])
