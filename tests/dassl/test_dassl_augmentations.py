"""Dassl's augmentations: their draws, replayed from the generators, and their images from torchvision's functions."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as T
from torchvision.transforms import functional as F

from unskew.dassl import autoaugment, image_operations, transforms
from unskew.dassl.config import get_cfg_default
from unskew.utils.seeds import set_random_seed

WIDTH, HEIGHT = 40, 30
SEEDS = range(40)


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))


@pytest.fixture
def tensor(image):
    return F.to_tensor(image)


def sheared(image, x=0.0, y=0.0):
    """Return the image with each pixel taken from (column + x * row, row + y * column), black outside."""
    pixels, result = np.asarray(image), np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for row in range(HEIGHT):
        for column in range(WIDTH):
            # centres of pixels, as Pillow
            across, down = column + 0.5 + x * (row + 0.5), row + 0.5 + y * (column + 0.5)
            if 0 <= across < WIDTH and 0 <= down < HEIGHT:
                result[row, column] = pixels[int(down), int(across)]
    return Image.fromarray(result)


def moved(image, right=0.0, down=0.0):
    """Return the image with each pixel taken from further right and down, black outside."""
    pixels, result = np.asarray(image), np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for row in range(HEIGHT):
        for column in range(WIDTH):
            across, below = column + 0.5 + right, row + 0.5 + down
            if 0 <= across < WIDTH and 0 <= below < HEIGHT:
                result[row, column] = pixels[int(below), int(across)]
    return Image.fromarray(result)


def sign():
    return -1 if random.random() > 0.5 else 1


# name -> image and strength -> image; the sign is drawn where Dassl draws it.
EXPECTED = {
    "AutoContrast": lambda i, v: F.autocontrast(i),
    "Brightness": F.adjust_brightness,
    "Color": F.adjust_saturation,
    "Contrast": F.adjust_contrast,
    "Equalize": lambda i, v: F.equalize(i),
    "Identity": lambda i, v: i,
    "Invert": lambda i, v: F.invert(i),
    "Posterize": lambda i, v: F.posterize(i, int(v)),
    "Rotate": lambda i, v: F.rotate(i, sign() * v),
    "Sharpness": F.adjust_sharpness,
    "ShearX": lambda i, v: sheared(i, x=sign() * v),
    "ShearY": lambda i, v: sheared(i, y=sign() * v),
    "Solarize": F.solarize,
    "TranslateX": lambda i, v: moved(i, right=sign() * v * WIDTH),
    "TranslateY": lambda i, v: moved(i, down=sign() * v * HEIGHT),
}


def ranges(colours, invert):
    table = dict.fromkeys(EXPECTED, (0, 1))
    table |= dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), colours)
    table |= dict.fromkeys(("ShearX", "ShearY", "TranslateX", "TranslateY"), (-0.3, 0.3))
    table |= {"Posterize": (4, 8), "Rotate": (-30, 30), "Solarize": (0, 256)}
    return [(name, *table[name]) for name in sorted(table) if invert or name != "Invert"]


def assert_close(found, expected):
    """Assert equal images; a pixel may be taken from its neighbour where a place is rounded."""
    different = (np.asarray(found) != np.asarray(expected)).any(-1).mean()
    assert different < 0.02, different


def test_fixmatchs_randaugment(image):
    table = ranges((0.05, 0.95), invert=False)
    assert [(f.__name__, low, high) for f, low, high in image_operations.fixmatch_list()] == table
    transform = image_operations.RandAugmentFixMatch(2)
    for seed in SEEDS:
        set_random_seed(seed)
        found, following = transform(image), random.random()
        set_random_seed(seed)
        expected = image
        for name, low, high in random.choices(table, k=2):
            expected = EXPECTED[name](expected, low + random.random() * (high - low))
        assert following == random.random()
        assert_close(found, expected)


def test_dassls_randaugment(image):
    table = ranges((0.1, 1.9), invert=True)
    assert [(f.__name__, low, high) for f, low, high in image_operations.randaugment_list2()] == table
    transform = image_operations.RandAugment2(3, p=0.6)
    for seed in SEEDS:
        set_random_seed(seed)
        found, following = transform(image), random.random()
        set_random_seed(seed)
        expected = image
        for name, low, high in random.choices(table, k=3):
            if random.random() <= 0.6:
                expected = EXPECTED[name](expected, low + random.random() * (high - low))
        assert following == random.random()
        assert_close(found, expected)


def test_randaugment_at_one_magnitude(image):
    table = image_operations.randaugment_list()
    assert [f.__name__ for f, _, _ in table] == (
        "AutoContrast Equalize Invert Rotate Posterize Solarize SolarizeAdd Color Contrast Brightness Sharpness ShearX "
        "ShearY CutoutAbs TranslateXabs TranslateYabs"
    ).split()
    transform = image_operations.RandAugment(2, 15)  # half of each range
    for seed in SEEDS:
        set_random_seed(seed)
        found = transform(image)
        set_random_seed(seed)
        expected = image
        for function, low, high in random.choices(table, k=2):
            half = (low + high) / 2
            expected = EXPECTED.get(function.__name__, function)(expected, half)
        assert_close(found, expected)
    with pytest.raises(ValueError, match="31"):
        image_operations.RandAugment(2, 31)


def test_other_operations(image):
    pixels = np.asarray(image).astype(int)
    added = np.clip(pixels + 30, 0, 255)
    solarized = np.where(added < 100, added, 255 - added)
    assert (np.asarray(image_operations.SolarizeAdd(image, 30, 100)) == solarized).all()
    assert (np.asarray(image_operations.Flip(image, 0)) == pixels[:, ::-1]).all()
    random.seed(0)
    assert_close(image_operations.TranslateXabs(image, 0), image)
    for v in (3, 7):
        random.seed(v)
        found = image_operations.TranslateXabs(image, v), image_operations.TranslateYabs(image, v)
        random.seed(v)
        assert_close(found[0], moved(image, right=sign() * v))
        assert_close(found[1], moved(image, down=sign() * v))
    blend = image_operations.SamplePairing([255 - np.asarray(image)])(image, 0.25)
    assert np.abs(np.asarray(blend) - (0.75 * pixels + 0.25 * (255 - pixels))).max() <= 1
    with pytest.raises(ValueError, match=r"ShearX.*0\.4"):
        image_operations.ShearX(image, 0.4)


def test_filled_square_of_cutout(image):
    for seed in SEEDS:
        np.random.seed(seed)  # noqa: NPY002
        found = np.asarray(image_operations.CutoutAbs(image, 9))
        np.random.seed(seed)  # noqa: NPY002
        u, v = np.random.random(), np.random.random()  # noqa: NPY002
        x, y = WIDTH - (WIDTH - 1) * u, HEIGHT - (HEIGHT - 1) * v
        left, top = int(max(0, x - 4.5)), int(max(0, y - 4.5))
        filled = np.zeros((HEIGHT, WIDTH), bool)
        filled[top : min(HEIGHT, top + 9) + 1, left : min(WIDTH, left + 9) + 1] = True  # the border belongs to it
        assert (found[filled] == (125, 123, 114)).all()
        assert (found[~filled] == np.asarray(image)[~filled]).all()
    np.random.seed(1)  # noqa: NPY002
    found = image_operations.Cutout(image, 0.2)
    np.random.seed(1)  # noqa: NPY002
    assert found == image_operations.CutoutAbs(image, 8)
    assert image_operations.Cutout(image, 0) is image


@pytest.mark.parametrize("kind", [lambda: transforms.Cutout(1, 8), lambda: image_operations.CutoutDefault(8)])
def test_holes_of_tensors(tensor, kind):
    for seed in SEEDS:
        np.random.seed(seed)  # noqa: NPY002
        found = kind()(tensor.clone())
        np.random.seed(seed)  # noqa: NPY002
        y, x = np.random.randint(HEIGHT), np.random.randint(WIDTH)  # noqa: NPY002
        expected = tensor.clone()
        for row in range(HEIGHT):
            for column in range(WIDTH):
                if y - 4 <= row < y + 4 and x - 4 <= column < x + 4:
                    expected[:, row, column] = 0
        assert torch.equal(found, expected)


def test_lighting(tensor):
    values, vectors = [0.2, 0.1, 0.3], [[1.0, 2, 3], [4, 5, 6], [7, 8, 9]]
    torch.manual_seed(0)
    found = image_operations.Lighting(0.1, values, vectors)(tensor)
    torch.manual_seed(0)
    alpha = torch.empty(3).normal_(0, 0.1).double().numpy()
    added = np.array(vectors) @ (alpha * np.array(values))
    assert np.allclose((found - tensor).mean((1, 2)).numpy(), added, atol=1e-5)
    assert image_operations.Lighting(0, values, vectors)(tensor) is tensor


def test_translation_of_a_larger_image(image):
    transform = transforms.Random2DTranslation(16, 24)
    for seed in SEEDS:
        random.seed(seed)
        found = transform(image)
        random.seed(seed)
        if random.uniform(0, 1) > 0.5:
            assert found == T.Resize((16, 24))(image)
            continue
        left, top = round(random.uniform(0, 3)), round(random.uniform(0, 2))
        assert found == T.Resize((18, 27))(image).crop((left, top, left + 24, top + 16))


def test_noise_with_probability(tensor):
    for seed in SEEDS:
        set_random_seed(seed)
        found = transforms.GaussianNoise(0.1, 0.2, p=0.3)(tensor)
        set_random_seed(seed)
        noisy = random.uniform(0, 1) <= 0.3
        expected = tensor + 0.1 + 0.2 * torch.randn(tensor.shape) if noisy else tensor
        assert torch.allclose(found, expected, atol=1e-6)


def test_instance_normalization(tensor):
    found = transforms.InstanceNormalization(eps=0.5)(tensor).double().numpy()
    values = tensor.double().numpy()
    mean, deviation = values.mean((1, 2), keepdims=True), values.std((1, 2), ddof=1, keepdims=True)
    assert np.allclose(found, (values - mean) / (deviation + 0.5), atol=1e-5)


# --- AutoAugment -----------------------------------------------------------------------------------------


def test_policies_are_torchvisions():
    for kind, policy in (
        (autoaugment.ImageNetPolicy, T.AutoAugmentPolicy.IMAGENET),
        (autoaugment.CIFAR10Policy, T.AutoAugmentPolicy.CIFAR10),
        (autoaugment.SVHNPolicy, T.AutoAugmentPolicy.SVHN),
    ):
        ours = kind().policies
        assert len(ours) == 25
        for mine, ((name1, p1, _), (name2, p2, _)) in zip(ours, T.AutoAugment(policy).policies, strict=True):
            assert (mine.operation1.lower(), mine.p1) == (name1.lower(), p1)
            assert (mine.operation2.lower(), mine.p2) == (name2.lower(), p2)
    first = autoaugment.ImageNetPolicy().policies[0]  # posterize at magnitude 8, rotate at 9
    assert (first.magnitude1, first.magnitude2) == (4, 30)
    assert autoaugment.CIFAR10Policy().policies[3].magnitude2 == pytest.approx(150 / 331)


@pytest.mark.parametrize(
    ("name", "magnitude", "expected"),
    [
        ("color", 5, lambda i, s: F.adjust_saturation(i, 1 + 0.5 * s)),
        ("contrast", 9, lambda i, s: F.adjust_contrast(i, 1 + 0.9 * s)),
        ("brightness", 1, lambda i, s: F.adjust_brightness(i, 1 + 0.1 * s)),
        ("sharpness", 9, lambda i, s: F.adjust_sharpness(i, 1 + 0.9 * s)),
    ],
)
def test_operations_with_a_drawn_sign(image, name, magnitude, expected):
    policy = autoaugment.SubPolicy(1, name, magnitude, 0, "invert", 0)
    for seed in range(6):
        random.seed(seed)
        found = policy(image)
        random.seed(seed)
        random.random()
        assert found == expected(image, random.choice([-1, 1]))


def test_operations_without_sign(image):
    for name, magnitude, expected in (
        ("posterize", 9, F.posterize(image, 4)),
        ("solarize", 9, F.solarize(image, 0)),
        ("autocontrast", 3, F.autocontrast(image)),
        ("equalize", 3, F.equalize(image)),
        ("invert", 3, F.invert(image)),
    ):
        assert autoaugment.SubPolicy(1, name, magnitude, 0, "invert", 0)(image) == expected
    assert autoaugment.SubPolicy(0, "invert", 3, 0, "invert", 0)(image) is image


def test_pixels_from_outside_have_the_fill_colour(image):
    for name in ("shearX", "shearY", "translateX", "translateY"):
        found = np.asarray(autoaugment.SubPolicy(1, name, 9, 0, "invert", 0, (1, 2, 3))(image))
        corners = [found[0, 0], found[0, -1], found[-1, 0], found[-1, -1]]
        assert any(tuple(corner) == (1, 2, 3) for corner in corners), name
    rotated = np.asarray(autoaugment.SubPolicy(1, "rotate", 9, 0, "invert", 0)(image))
    assert tuple(rotated[0, 0]) == (128, 128, 128)
    inside = np.asarray(image.convert("RGBA").rotate(30))
    assert (rotated[inside[..., 3] == 255] == inside[..., :3][inside[..., 3] == 255]).all()


def test_a_policy_draws_its_number_first(image):
    policy = autoaugment.SVHNPolicy()
    for seed in SEEDS:
        random.seed(seed)
        found = policy(image)
        random.seed(seed)
        number = int(random.randint(0, 24))
        assert found == policy.policies[number](image)


# --- the transform of a config -----------------------------------------------------------------------------


def test_every_choice_builds_the_transform_of_its_name():
    cfg = get_cfg_default()
    cfg.INPUT.SIZE = (16, 16)
    kinds = {
        "random_translation": "Random2DTranslation",
        "imagenet_policy": "ImageNetPolicy",
        "cifar10_policy": "CIFAR10Policy",
        "svhn_policy": "SVHNPolicy",
        "randaugment": "RandAugment",
        "randaugment_fixmatch": "RandAugmentFixMatch",
        "randaugment2": "RandAugment2",
        "cutout": "Cutout",
        "gaussian_noise": "GaussianNoise",
        "instance_norm": "InstanceNormalization",
    }
    assert kinds.keys() <= set(transforms.AVAI_CHOICES)
    for choice, kind in kinds.items():
        steps = transforms.build_transform(cfg, choices=[choice]).transforms
        assert kind in [type(step).__name__ for step in steps]
    with pytest.raises(ValueError, match=r"'random_flop'.*random_flip"):
        transforms.build_transform(cfg, choices=["random_flop"])


def test_the_repr_has_the_settings_and_no_address():
    cfg = get_cfg_default()
    cfg.INPUT.SIZE, cfg.INPUT.CUTOUT_LEN, cfg.INPUT.RANDAUGMENT_N = (16, 24), 7, 3
    choices = ["random_translation", "randaugment2", "randaugment", "svhn_policy", "cutout", "gaussian_noise"]
    text = repr(transforms.build_transform(cfg, choices=[*choices, "instance_norm"]))
    assert " at 0x" not in text
    for part in ("height=16, width=24", "RandAugment2(n=3, p=0.6)", "n_holes=1, length=7", "std=0.15", "eps=1e-08"):
        assert part in text
