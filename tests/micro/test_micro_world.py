"""Tests of the embedded world: renderer, captions, frequencies, tokenizer, true priors and dataset files."""

import hashlib
import itertools
import time

import numpy as np
import pytest

from unskew.config import load
from unskew.data.dataset import DATASET_REGISTRY
from unskew.micro import downstream, drawn_datasets, true_log_prior, weights, world
from unskew.utils.files import make_folder


def _factors(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {f: rng.integers(len(world.FACTORS[f]), size=n) for f in world.VISUAL}


def test_rendering_is_deterministic_in_the_generator():
    factors = _factors(64)
    first, again, other = (world.render(factors, rng=np.random.default_rng(s)) for s in (1, 1, 2))
    assert first.shape == (64, 32, 32, 3) and first.dtype == np.uint8
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    images, _ = world.digits(pretraining=True)
    first, again, other = (world.render_digits(images[:64], np.random.default_rng(s)) for s in (1, 1, 2))
    assert first.shape == (64, 32, 32, 3) and np.array_equal(first, again) and not np.array_equal(first, other)


def test_rendering_is_fast():
    factors, rng = _factors(256), np.random.default_rng(0)
    start = time.process_time()
    for _ in range(8):
        world.render(factors, rng=rng)
    assert 2048 / (time.process_time() - start) > 1000  # several thousand a second on an idle core


def test_an_image_shows_its_factors():
    quiet = world.Style(place=0, rotation=0, hue=0, contrast=(1, 1), noise=(0, 0), occlusion=0)
    n = 40
    for colour, (r, g, b) in {"red": (1, -1, -1), "green": (-1, 1, -1), "blue": (-1, -1, 1)}.items():
        values = {"shape": "circle", "colour": colour, "pattern": "solid", "background": "night"}
        factors = {f: np.full(n, world.FACTORS[f].index(v)) for f, v in values.items()}
        images = world.render(factors, rng=np.random.default_rng(0), style=quiet).astype(float)
        centre = images[:, 14:18, 14:18].mean((0, 1, 2))
        assert np.dot(centre - centre.mean(), (r, g, b)) > 50, colour
        assert images[:, 0].mean() < 60  # the top row is night
    for shape, inside in {"ring": False, "circle": True, "cross": True}.items():
        factors["shape"] = np.full(n, world.FACTORS["shape"].index(shape))
        images = world.render(factors, rng=np.random.default_rng(0), style=quiet).astype(float)
        assert (images[:, 15:17, 15:17].max(-1).mean() > 100) == inside, shape


def test_frequencies_have_the_stated_imbalances():
    frequency = world.frequencies(weights.SEEDS["micro"])
    ratio = {"shape": 12, "colour": 8, "pattern": 8, "background": 3, "digit": 50}
    for factor, p in frequency.items():
        assert p.sum() == pytest.approx(1) and p.max() / p.min() == pytest.approx(ratio[factor])
        ordered = np.sort(p)
        assert np.allclose(ordered[1:] / ordered[:-1], ordered[1] / ordered[0])  # an exponential profile
    joint = np.outer(frequency["shape"], frequency["colour"])
    assert joint.max() / joint.min() == pytest.approx(96)
    orders = {tuple(world.frequencies(seed)["shape"].argsort()) for seed in weights.DRAWN.values()}
    assert len(orders) == len(weights.DRAWN)  # each model has its own permutation


def test_frequencies_of_the_shipped_models():
    """If NumPy's random stream changed, the true priors of the shipped models would be wrong silently."""
    found = {f: world.FACTORS[f][p.argmax()] for f, p in world.frequencies(weights.SEEDS["micro"]).items()}
    assert found == {
        "shape": "ring",
        "colour": "green",
        "pattern": "checkered",
        "background": "sand",
        "digit": "four",
    }


def test_digits_halves_are_disjoint_and_even():
    (first, y1), (second, y2) = world.digits(pretraining=True), world.digits(pretraining=False)
    assert len(first) + len(second) == 1797 and np.abs(np.bincount(y1) - np.bincount(y2)).max() <= 1
    assert not {a.tobytes() for a in first} & {a.tobytes() for a in second}


def test_tokenizer_keeps_words_whole_as_clip_does():
    from open_clip.tokenizer import SimpleTokenizer

    ours, clip = weights.tokenizer(), SimpleTokenizer()
    config = weights.model_config("micro")["text_cfg"]
    assert ours.context_length == config["context_length"] == 32
    assert ours.eot_token_id == ours.vocab_size - 1 == config["vocab_size"] - 1  # the pooling takes the largest id
    captions = [t.format(p) for t in world.TEMPLATES for p in ("yellow checkered hexagon", "triangle on water")]
    captions += [t.format("seven") for t in world.DIGIT_TEMPLATES]
    for caption in captions:
        ids = ours.encode(caption)
        assert [ours.decoder[i] for i in ids] == [clip.decoder[i] for i in clip.encode(caption)]
        assert "".join(ours.decode(ids).split()) == "".join(caption.lower().split())
        row = ours([caption])[0]
        assert row.shape == (32,) and row[len(ids) + 1] == ours.eot_token_id == row.max()
    assert ours.encode("zyzzyva")  # an unknown word is spelt by letters


@pytest.mark.parametrize("dataset", drawn_datasets.DATASETS)
@pytest.mark.parametrize("backbone", weights.DRAWN)
def test_true_log_prior_is_normalised_and_in_class_order(backbone, dataset):
    log_prior = true_log_prior(backbone, dataset)
    names = downstream.classnames(dataset)
    assert log_prior.exp().sum().item() == pytest.approx(1, abs=1e-5)
    frequency = world.frequencies(weights.SEEDS[backbone])
    products = []
    for name in names:
        p = [
            frequency[f][world.FACTORS[f].index(word)]
            for word in name.split()
            for f in frequency
            if word in world.FACTORS[f]
        ]
        assert len(p) == len(name.split())
        products.append(np.prod(p))
    np.testing.assert_allclose(log_prior.exp(), products / np.sum(products), rtol=1e-5)


def test_shapes_lt_has_the_values_with_the_largest_imbalance():
    for factor in ("shape", "pattern"):

        def spread(values, factor=factor):
            ratios = {}
            for model in weights.DRAWN:
                p = world.frequencies(weights.SEEDS[model])[factor][list(values)]
                ratios[model] = round(p.max() / p.min(), 6)
            return min(ratios[f"micro-{x}"] for x in "abc"), min(ratios.values())

        best = max(itertools.combinations(range(len(world.FACTORS[factor])), 4), key=spread)
        assert drawn_datasets.VALUES["shapes_lt"][factor] == tuple(world.FACTORS[factor][v] for v in best)


def test_unknown_prior_lists_what_exists():
    for backbone, dataset in (("RN50", "shapes"), ("micro", "eurosat"), ("micro", "emoji"), ("micro-emoji", "digits")):
        with pytest.raises(ValueError, match=r"micro-vit.*digits.*micro-emoji.*emoji_lt"):
            true_log_prior(backbone, dataset)
    with pytest.raises(ValueError, match="micro-a"):
        weights.model_path("micro-q")


@pytest.mark.parametrize("dataset, classes", [("shapes", 96), ("patterns", 72), ("digits", 10)])
def test_datasets_render_at_first_use(tmp_path, dataset, classes):
    opts = ["DATASET.ROOT", str(tmp_path), "DATASET.NUM_SHOTS", 16]
    cfg = load(dataset, trainer="ZeroshotCLIP", opts=opts)
    start = time.perf_counter()
    data = DATASET_REGISTRY.get(dataset)(cfg)
    assert time.perf_counter() - start < 20
    assert cfg.MODEL.BACKBONE.NAME == "micro" and data.num_classes == classes
    assert data.classnames == downstream.classnames(dataset)
    per_class = {
        s: np.bincount([d.label for d in getattr(data, s)], minlength=classes) for s in ("train_x", "val", "test")
    }
    assert (per_class["train_x"] == 16).all() and (per_class["val"] == 4).all()
    assert per_class["test"].min() >= 20 and np.ptp(per_class["test"]) <= 5  # as balanced as the real digits allow
    assert DATASET_REGISTRY.get(dataset)(cfg).test == data.test  # the second use finds the files
    paths = [{d.impath for d in split} for split in (data.train_x, data.val, data.test)]
    assert not paths[0] & paths[1] and not (paths[0] | paths[1]) & paths[2]


@pytest.mark.parametrize(
    ("dataset", "classes", "most", "fewest", "total"), [("shapes_lt", 64, 200, 2, 2778), ("digits_lt", 10, 50, 1, 135)]
)
def test_long_tailed_datasets(tmp_path, dataset, classes, most, fewest, total):
    data = DATASET_REGISTRY.get(dataset)(load(dataset, trainer="ZeroshotCLIP", opts=["DATASET.ROOT", str(tmp_path)]))
    assert data.classnames == downstream.classnames(dataset) and data.num_classes == classes
    train, val, test = (
        np.bincount([d.label for d in s], minlength=classes) for s in (data.train_x, data.val, data.test)
    )
    assert (train.max(), train.min(), train.sum()) == (most, fewest, total)
    assert (val == 10).all() and (test == 25).all()
    for model in weights.DRAWN:  # the two orders are independent
        log_q = true_log_prior(model, dataset).numpy()
        assert abs(np.corrcoef(np.log(train), log_q)[0, 1]) < (0.2 if dataset == "shapes_lt" else 0.5)


def test_shapes_shifted_has_test_images_of_some_classes_of_shapes(tmp_path):
    opts = ["DATASET.ROOT", str(tmp_path)]
    data = DATASET_REGISTRY.get("shapes_shifted")(load("shapes_shifted", trainer="ZeroshotCLIP", opts=opts))
    assert data.classnames == downstream.classnames("shapes") and not data.train_x and not data.val
    counts = np.bincount([item.label for item in data.test], minlength=96)
    assert (
        data.test_classes == np.flatnonzero(counts).tolist() and sorted(set(counts)) == [0, 25] and sum(counts) == 1200
    )
    assert all(item.classname == data.classnames[item.label] for item in data.test)
    with pytest.raises(ValueError, match="SUBSAMPLE_CLASSES"):
        opts += ["DATASET.SUBSAMPLE_CLASSES", "new"]
        DATASET_REGISTRY.get("shapes_shifted")(load("shapes_shifted", trainer="ZeroshotCLIP", opts=opts))


def test_the_images_of_the_datasets_do_not_change():
    """Other images need another VERSION. The place of a dataset in DATASETS seeds its images."""
    tests = {name: downstream.splits(name)["test"][0] for name in ("digits_lt", "shapes_shifted")}
    found = {name: hashlib.sha256(images.tobytes()).hexdigest()[:8] for name, images in tests.items()}
    assert found == {"digits_lt": "e2400cf3", "shapes_shifted": "4cc0084c"}


def test_a_class_of_three_factors_shows_them():
    """The order of the factors in the labels equals the order in the class names."""
    images, labels = downstream.splits("shapes_lt")["val"]
    names = downstream.classnames("shapes_lt")
    assert (names[0], names[1], names[4], names[63]) == (
        "red solid circle",
        "red striped circle",
        "orange solid circle",
        "pink faded drop",
    )
    middle = images[:, 14:18, 14:18].astype(float)
    hue = {c: middle[[f" {c} " in f" {names[y]} " for y in labels]].mean((0, 1, 2)) for c in ("yellow", "pink")}
    assert hue["yellow"][1] > hue["yellow"][2] + 20  # green over blue
    assert hue["pink"][2] > hue["pink"][1] + 20
    edges = np.abs(np.diff(middle.mean(-1), axis=2)).mean((1, 2))
    solid = np.array([" solid " in names[y] for y in labels])
    checkered = np.array([" checkered " in names[y] for y in labels])
    assert edges[checkered].mean() > 1.2 * edges[solid].mean()


def test_two_processes_may_render_at_once(tmp_path):
    first = downstream.files(tmp_path, "digits")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.png")}
    pictures = downstream.splits("digits")
    make_folder(
        tmp_path / f"images-{drawn_datasets.VERSION}",
        lambda folder: downstream.write_pictures(folder, "digits", pictures),
    )
    assert downstream.files(tmp_path, "digits") == first
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.png")} == before
    assert [p.name for p in tmp_path.iterdir()] == [f"images-{drawn_datasets.VERSION}"]
