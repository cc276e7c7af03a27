"""Dassl's transforms and schedules against torchvision's, PyTorch's and closed forms."""

import io
import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, StepLR
from torchvision import transforms as T
from torchvision.transforms import functional as F

from unskew.dassl.config import get_cfg_default
from unskew.dassl.optim import ConstantWarmupScheduler, LinearWarmupScheduler, build_lr_scheduler, build_optimizer
from unskew.dassl.randaugment import FIXMATCH, OPERATIONS, RANDAUGMENT2, RandomOperations
from unskew.dassl.transforms import build_transform
from unskew.utils.seeds import set_random_seed

SIZE = (16, 16)
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def make_cfg(*pairs):
    cfg = get_cfg_default()
    cfg.merge_from_list(["INPUT.SIZE", SIZE, *pairs])
    return cfg


def noise(width=40, height=30):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def draw(transform, image, count):
    """Return the transform's results [count, 3, H, W] for the seeds 0, 1, ..."""
    results = []
    for seed in range(count):
        set_random_seed(seed)
        results.append(transform(image))
    return torch.stack(results)


def changed(results, plain):
    return (results != plain).flatten(1).any(1)


def assert_share(found, expected):
    """Assert that the mean of zeros and ones is within five standard errors."""
    assert abs(found.float().mean() - expected) < 5 * math.sqrt(expected * (1 - expected) / len(found))


# --- transforms --------------------------------------------------------------------------------------

RESIZE, TENSOR = T.Resize(SIZE), T.ToTensor()
TORCHVISION = {
    "center_crop": [RESIZE, TENSOR],  # a part of testing only
    "random_crop": [T.RandomCrop(SIZE, padding=4), TENSOR],
    "random_resized_crop": [T.RandomResizedCrop(SIZE, (0.08, 1.0)), TENSOR],
    "random_flip": [RESIZE, T.RandomHorizontalFlip(), TENSOR],
    "autoaugment": [RESIZE, T.AutoAugment(T.AutoAugmentPolicy.IMAGENET), TENSOR],
    "colorjitter": [RESIZE, T.ColorJitter(0.4, 0.4, 0.4, 0.1), TENSOR],
    "randomgrayscale": [RESIZE, T.RandomGrayscale(0.2), TENSOR],
    "gaussian_blur": [RESIZE, T.RandomApply([T.GaussianBlur(21)], 0.5), TENSOR],
    "normalize": [RESIZE, TENSOR, T.Normalize(MEAN, STD)],
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_transforms_that_torchvision_has(name):
    cfg, image = make_cfg("INPUT.TRANSFORMS", [name]), noise()
    found = draw(build_transform(cfg), image, 12)
    assert torch.equal(found, draw(T.Compose(TORCHVISION[name]), image, 12))
    assert found.shape == (12, 3, *SIZE)
    assert name == "normalize" or (found.min() >= 0 and found.max() <= 1)


def test_the_order_of_application_is_dassls():
    names = ["normalize", "gaussian_noise", "cutout", "random_flip", "random_resized_crop"]
    steps = [type(step).__name__ for step in build_transform(make_cfg(), choices=names).transforms]
    assert steps == ["RandomResizedCrop", "RandomHorizontalFlip", "ToTensor", "Cutout", "Normalize", "GaussianNoise"]


def test_testing_has_no_augmentation():
    cfg = make_cfg("INPUT.TRANSFORMS", ["random_flip", "cutout", "gaussian_noise", "normalize"])
    plain = T.Compose([T.Resize(16), T.CenterCrop(16), T.ToTensor()])(noise())
    assert torch.equal(build_transform(cfg, is_train=False, choices=[])(noise()), plain)
    found = draw(build_transform(cfg, False), noise(), 5)
    assert torch.equal(found, T.Normalize(MEAN, STD)(plain).expand(5, -1, -1, -1))


def test_random_translation_crops_an_image_an_eighth_larger():
    found = draw(build_transform(make_cfg("INPUT.TRANSFORMS", ["random_translation"])), noise(), 200)
    plain = RESIZE(noise())
    larger = TENSOR(T.Resize((18, 18))(plain))
    crops = torch.stack([larger[:, y : y + 16, x : x + 16] for y in range(3) for x in range(3)])
    moved = changed(found, TENSOR(plain))
    assert_share(moved, 0.5)
    matches = (found[moved, None] == crops).flatten(2).all(2)  # [N, 9]
    assert matches.any(1).all()
    assert matches.any(0).all()


def test_cutout_hides_as_much_as_its_corner_leaves_in_the_image():
    white = Image.new("RGB", SIZE, (255, 255, 255))
    found = draw(build_transform(make_cfg("INPUT.TRANSFORMS", ["cutout"])), white, 400)
    sides = torch.tensor([min(y + 8, 16) - max(y - 8, 0) for y in range(16)], dtype=torch.float64)  # of 16 pixels
    areas = sides.outer(sides)
    hidden = (found == 0).all(1).sum((1, 2)).double()
    assert set(found.unique().tolist()) == {0.0, 1.0}
    assert abs(hidden.mean() - areas.mean()) < 5 * areas.std() / math.sqrt(400)
    assert {hidden.min().item(), hidden.max().item()} == {areas.min().item(), areas.max().item()}


def test_gaussian_noise_has_the_configs_mean_and_deviation():
    cfg = make_cfg("INPUT.TRANSFORMS", ["gaussian_noise"], "INPUT.GN_MEAN", 0.1)
    found = draw(build_transform(cfg), noise(), 200)
    added = found - TENSOR(RESIZE(noise()))
    noisy = changed(found, TENSOR(RESIZE(noise())))
    assert_share(noisy, 0.5)
    assert added[noisy].mean() == pytest.approx(0.1, abs=5 * 0.15 / math.sqrt(added[noisy].numel()))
    assert added[noisy].std() == pytest.approx(0.15, rel=0.02)


def test_instance_norm():
    for is_train in (True, False):
        result = build_transform(make_cfg("INPUT.TRANSFORMS", ["instance_norm"]), is_train)(noise())
        assert result.mean((1, 2)).tolist() == pytest.approx([0] * 3, abs=1e-5)
        assert result.std((1, 2)).tolist() == pytest.approx([1] * 3, abs=1e-5)


def test_operations_of_randaugment_are_torchvisions():
    image = noise()
    expected = {
        ("autocontrast", 0): F.autocontrast(image),
        ("brightness", 0.3): F.adjust_brightness(image, 0.3),
        ("color", 0.3): F.adjust_saturation(image, 0.3),
        ("contrast", 1.7): F.adjust_contrast(image, 1.7),
        ("equalize", 0): F.equalize(image),
        ("identity", 0): image,
        ("invert", 0): F.invert(image),
        ("posterize", 4.9): F.posterize(image, 4),
        ("rotate", 20): F.rotate(image, 20),
        ("sharpness", 0.3): F.adjust_sharpness(image, 0.3),
        ("solarize", 100): F.solarize(image, 100),
        ("translate_x", 0.25): F.affine(image, 0, [-10, 0], 1, [0]),
        ("translate_y", -0.1): F.affine(image, 0, [0, 3], 1, [0]),
    }
    for (name, strength), result in expected.items():
        assert OPERATIONS[name](image, strength) == result, name
    pixels = np.asarray(image)
    sheared = np.asarray(OPERATIONS["shear_x"](image, 0.5))  # row y moves left by y / 2
    assert (sheared[20, :30] == pixels[20, 10:]).all()
    sheared = np.asarray(OPERATIONS["shear_y"](image, 0.5))
    assert (sheared[:20, 20] == pixels[10:, 20]).all()


def test_fixmatchs_table():
    geometry = {"rotate": 30, "shear_x": 0.3, "shear_y": 0.3, "translate_x": 0.3, "translate_y": 0.3}
    expected = {name: (-most, most) for name, most in geometry.items()}
    expected |= dict.fromkeys(("brightness", "color", "contrast", "sharpness"), (0.05, 0.95))
    expected |= {"posterize": (4, 8), "solarize": (0, 256)}
    expected |= dict.fromkeys(("autocontrast", "equalize", "identity"), (0, 0))
    assert expected == FIXMATCH
    assert set(RANDAUGMENT2) - set(FIXMATCH) == {"invert"}
    assert RANDAUGMENT2["color"] == (0.1, 1.9)


def test_random_operations_draw_number_chance_and_strength():
    white = Image.new("RGB", (1, 1), (255, 255, 255))

    def values(*arguments):
        transform = RandomOperations({"brightness": (0.2, 0.6)}, *arguments)
        return draw(lambda image: TENSOR(transform(image)), white, 400)[:, 0, 0, 0]

    once = values(1)
    assert (once.min() >= 0.2 - 1 / 255, once.max() <= 0.6) == (True, True)
    assert once.mean() == pytest.approx(0.4, abs=5 * 0.4 / math.sqrt(12 * 400))
    assert once.std() == pytest.approx(0.4 / math.sqrt(12), rel=0.1)
    assert values(2).mean() == pytest.approx(0.16, abs=0.02)
    assert_share(values(1, 0.6) < 1, 0.6)


@pytest.mark.parametrize("name", ["randaugment_fixmatch", "randaugment2"])
def test_randaugments_variants_stay_in_range_and_use_every_operation(name, monkeypatch):
    used = []
    for operation, function in list(OPERATIONS.items()):
        monkeypatch.setitem(OPERATIONS, operation, lambda *a, n=operation, f=function: used.append(n) or f(*a))
    found = draw(build_transform(make_cfg("INPUT.TRANSFORMS", [name])), noise(), 200)
    assert found.shape == (200, 3, *SIZE)
    assert (found.min() >= 0, found.max() <= 1) == (True, True)
    table = FIXMATCH if name == "randaugment_fixmatch" else RANDAUGMENT2
    assert set(used) == set(table)
    expected = 400 if table is FIXMATCH else 240
    assert abs(len(used) - expected) <= (0 if table is FIXMATCH else 5 * math.sqrt(400 * 0.24))


# --- schedules ---------------------------------------------------------------------------------------


def optim_cfg(**keys):
    cfg = get_cfg_default().OPTIM
    for key, value in {"NAME": "sgd", "LR": 0.1, "GAMMA": 0.3, "MAX_EPOCH": 12, **keys}.items():
        cfg[key] = value
    return cfg


def two_groups(cfg):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(2)]
    groups[1]["lr"] = 0.04
    return build_optimizer(None, cfg, groups)


def rates(optimizer, scheduler, epochs):
    """Return the learning rates [epochs, groups]."""
    found = []
    for _ in range(epochs):
        found.append([group["lr"] for group in optimizer.param_groups])
        assert scheduler.get_last_lr() == found[-1]
        optimizer.step()
        scheduler.step()
    return found


def stepped(cfg):
    """Return Dassl's construction: PyTorch's scheduler after a warm-up that advances it without ``WARMUP_RECOUNT``."""
    optimizer = two_groups(cfg)
    stepsize = cfg.STEPSIZE[-1] if cfg.STEPSIZE[-1] > 0 else cfg.MAX_EPOCH
    scheduler = {
        "single_step": lambda: StepLR(optimizer, stepsize, cfg.GAMMA),
        "multi_step": lambda: MultiStepLR(optimizer, cfg.STEPSIZE, cfg.GAMMA),
        "cosine": lambda: CosineAnnealingLR(optimizer, cfg.MAX_EPOCH),
    }[cfg.LR_SCHEDULER]()
    if cfg.WARMUP_EPOCH > 0:
        if not cfg.WARMUP_RECOUNT:
            scheduler.last_epoch = cfg.WARMUP_EPOCH
        if cfg.WARMUP_TYPE == "constant":
            scheduler = ConstantWarmupScheduler(optimizer, scheduler, cfg.WARMUP_EPOCH, cfg.WARMUP_CONS_LR)
        else:
            scheduler = LinearWarmupScheduler(optimizer, scheduler, cfg.WARMUP_EPOCH, cfg.WARMUP_MIN_LR)
    return rates(optimizer, scheduler, cfg.MAX_EPOCH)


@pytest.mark.parametrize("name", ["single_step", "multi_step", "cosine"])
@pytest.mark.parametrize("warmup", ["constant", "linear"])
def test_every_schedule_equals_pytorchs_epoch_by_epoch(name, warmup):
    for recount, epochs, stepsize in itertools.product([True, False], [-1, 1, 3, 12], [(-1,), (3,), (2, 5, 5, 9)]):
        cfg = optim_cfg(LR_SCHEDULER=name, WARMUP_TYPE=warmup, WARMUP_RECOUNT=recount, WARMUP_EPOCH=epochs)
        cfg.STEPSIZE = stepsize
        optimizer = two_groups(cfg)
        found = rates(optimizer, build_lr_scheduler(optimizer, cfg), cfg.MAX_EPOCH)
        assert np.allclose(found, stepped(cfg), rtol=1e-9, atol=1e-12), (recount, epochs, stepsize)


@pytest.mark.parametrize("recount", [True, False])
@pytest.mark.parametrize("warmup", ["constant", "linear"])
def test_cosine_after_a_warmup_in_closed_form(warmup, recount):
    cfg = optim_cfg(LR_SCHEDULER="cosine", WARMUP_TYPE=warmup, WARMUP_RECOUNT=recount, WARMUP_EPOCH=4)

    def cosine(epoch):
        return (1 + math.cos(math.pi * epoch / 12)) / 2

    first = [1e-5] * 4 if warmup == "constant" else [1e-5, 0.025, 0.05, 0.075]
    then = [cosine(e) for e in range(8)] if recount else [cosine(4 + e) / cosine(4) for e in range(8)]
    optimizer = two_groups(cfg)
    found = rates(optimizer, build_lr_scheduler(optimizer, cfg), 12)
    assert [rate for rate, _ in found] == pytest.approx(first + [0.1 * part for part in then])
    assert found[11][0] == pytest.approx(0.1 * then[7])
    assert found[5][1] == pytest.approx(0.04 * then[1])


@pytest.mark.parametrize(
    ("scheduler", "lowest", "first"),
    [(ConstantWarmupScheduler, 0.001, [0.001] * 3), (LinearWarmupScheduler, 0.001, [0.001, 0.1 / 3, 0.2 / 3])],
)
def test_warmup_schedulers_by_hand_and_resumed(scheduler, lowest, first):
    expected = [*first, 0.1, 0.1, 0.03, 0.03, 0.009]

    def build():
        optimizer = two_groups(optim_cfg())
        return optimizer, scheduler(optimizer, StepLR(optimizer, 2, 0.3), 3, lowest)

    optimizer, whole = build()
    assert [rate for rate, _ in rates(optimizer, whole, 8)] == pytest.approx(expected)
    for stop in (2, 5):
        optimizer, begun = build()
        rates(optimizer, begun, stop)
        file = io.BytesIO()
        torch.save([optimizer.state_dict(), begun.state_dict()], file)
        file.seek(0)
        optimizer, resumed = build()
        states = torch.load(file, weights_only=True)
        optimizer.load_state_dict(states[0])
        resumed.load_state_dict(states[1])
        assert [rate for rate, _ in rates(optimizer, resumed, 8 - stop)] == pytest.approx(expected[stop:])


def test_weight_decay_of_radam_is_decoupled():
    module = torch.nn.Linear(1, 1, bias=False)
    before = module.weight.item()
    optimizer = build_optimizer(module, optim_cfg(NAME="radam", WEIGHT_DECAY=0.5))
    for _ in range(3):
        module.weight.grad = torch.zeros(1, 1)
        optimizer.step()
    assert module.weight.item() == pytest.approx(before * (1 - 0.1 * 0.5) ** 3)
