"""Predictions of a run in Python: paths, PIL images and tensors."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from building import SHORT
from PIL import Image
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

import unskew
from unskew.data.dataset import build_dataset
from unskew.engine import checkpoint
from unskew.runs import model, predict
from unskew.runs.run import Run, execute

TINY = (*SHORT, "OPTIM.MAX_EPOCH", 1)


@pytest.fixture(scope="module")
def trained(data_root, tmp_path_factory):
    """A function that trains a run once."""
    known = {}

    def run(name, *opts):
        if (name, opts) not in known:
            folder = str(tmp_path_factory.mktemp(name))
            known[name, opts] = Run("digits", name, shots=2, seed=1, root=data_root, folder=folder, opts=TINY + opts)
            execute(known[name, opts], console=False)
        return known[name, opts]

    return run


def paths_of(run, n=None):
    return [item.impath for item in build_dataset(run.config).test][:n]


@pytest.mark.parametrize("name", ["GLA", "CoOp", "FineTune", "Backdoor"])
def test_labels_and_names_are_those_of_the_test(name, trained):
    run = trained(name)
    found = unskew.load_run(run.path).predict(paths_of(run))
    assert found.labels.dtype == np.int64
    np.testing.assert_array_equal(found.labels, run.predictions["logits"].argmax(1))
    assert list(found.classes) == run.metrics["classnames"]
    assert found.names[0] == found.classes[found.labels[0]]


def test_probabilities_divide_the_logits_by_the_temperature_of_val(trained):
    run = trained("LinearProbe")
    dataset = build_dataset(run.config)
    paths, labels = [item.impath for item in dataset.val], [item.label for item in dataset.val]
    log = np.log(predict.Predictor(run.path).predict_proba(paths).probabilities)

    def objective(factor):  # of log T around the temperature of the file
        scaled = torch.tensor(log).double() / factor
        return float(torch.nn.functional.cross_entropy(scaled, torch.tensor(labels), reduction="sum"))

    temperature = model.read_model(run.path)["temperature"]
    losses = [objective(f) + np.log(temperature * f) ** 2 / 2 for f in (0.97, 1.0, 1.03)]
    assert losses[1] == min(losses) and temperature != 1
    proba = run.predict_proba(paths_of(run))
    expected = (run.predictions["logits"] / temperature).softmax(1).numpy()
    np.testing.assert_allclose(proba.probabilities, expected, atol=1e-6)
    assert proba.probabilities.dtype == np.float32 and len(proba.classes) == 10


def test_on_a_long_tail_the_temperature_is_that_of_val_with_its_class_frequencies(data_root, tmp_path):
    run = Run("digits_lt", "ZeroshotCLIP", seed=1, root=data_root, folder=str(tmp_path), opts=TINY)
    execute(run, console=False)
    dataset = build_dataset(run.config)
    labels, counts = [item.label for item in dataset.val], np.bincount([item.label for item in dataset.train_x])
    assert 20 < len(labels) <= model.MOST_VAL and counts.max() > 10 * counts.min()
    logits = model.load_trainer(run.path).predict([item.impath for item in dataset.val]).double().numpy()
    logits += np.log((counts + 1) / (counts + 1).sum())

    def objective(log_t):
        log_p = log_softmax(logits / np.exp(log_t), axis=1)
        return -log_p[np.arange(len(labels)), labels].sum() + log_t**2 / 2

    expected = np.exp(minimize_scalar(objective, bounds=(-3, 3), method="bounded").x)
    assert model.read_model(run.path)["temperature"] == pytest.approx(expected, rel=1e-3)


def test_a_calibrated_trainer_keeps_its_logits(trained):
    run = trained("GLA")
    expected = run.predictions["logits"].softmax(1).numpy()
    np.testing.assert_allclose(run.predict_proba(paths_of(run)).probabilities, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["GLA", "FineTune", "Backdoor"])
def test_pil_images_and_tensors_are_predicted_like_files(name, trained, tmp_path, monkeypatch):
    run = trained(name)
    paths = paths_of(run, 4)
    opened = [Image.open(path) for path in paths]
    pixels = torch.stack([torch.from_numpy(np.array(image.convert("RGB"))).movedim(-1, 0) for image in opened])
    expected = run.predict_proba(paths).probabilities
    monkeypatch.setenv("UNSKEW_CACHE", str(tmp_path / "cache"))
    mixed = [paths[0], opened[1], pixels[2], pixels[3].double() / 255]
    for images in (opened, pixels, pixels / 255, mixed):
        np.testing.assert_allclose(run.predict_proba(images).probabilities, expected, atol=1e-6)
    np.testing.assert_allclose(run.predict_proba(opened[0]).probabilities, expected[:1], atol=1e-6)
    np.testing.assert_allclose(run.predict_proba(pixels[0]).probabilities, expected[:1], atol=1e-6)
    assert not list((tmp_path / "cache" / "features").rglob("*.safetensors"))  # images in memory are not kept


def test_a_dataset_that_is_tested_among_some_classes(trained, tmp_path):
    shutil.copytree(trained("GLA").path, tmp_path / "run")
    file = tmp_path / "run" / "model.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "test_classes": [1, 4, 7]}))
    found = unskew.load_run(tmp_path / "run").predict_proba(paths_of(trained("GLA"), 5))
    assert found.classes == ("one", "four", "seven")
    expected = trained("GLA").predictions["logits"][:5, [1, 4, 7]].softmax(1).numpy()
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)


def test_a_class_with_a_score_of_minus_infinity_has_probability_zero(trained, monkeypatch):
    run = trained("CoOp")
    predictor = predict.Predictor(run.path)
    whole = predictor.trainer.predict_parts(paths_of(run, 2))
    whole.logits[:, 3] = -torch.inf
    monkeypatch.setattr(predictor.trainer, "predict_parts", lambda paths: whole)
    assert (predictor.predict_proba(paths_of(run, 2)).probabilities[:, 3] == 0).all()


def test_repeated_paths_have_a_row_each(trained):
    run = trained("CoOp")
    first, second = paths_of(run, 2)
    labels = run.predict([first, second, first, first]).labels
    assert len(labels) == 4 and labels[0] == labels[2] == labels[3]


def test_numpy_arrays_are_predicted_like_pil_images(trained):
    image = Image.fromarray(np.random.default_rng(0).integers(256, size=(30, 40, 3), dtype=np.uint8))
    pixels, expected = np.asarray(image), trained("CoOp").predict_proba(image).probabilities
    for given in (pixels, pixels / 255, [pixels, pixels[::-1][::-1]], np.stack([pixels, pixels])):
        found = trained("CoOp").predict_proba(given).probabilities
        np.testing.assert_allclose(found, np.tile(expected, (len(found), 1)), atol=1e-6)


def test_an_array_of_paths_is_several_paths(trained):
    run = trained("CoOp")
    paths = paths_of(run, 2)
    assert (run.predict(np.array(paths)).labels == run.predict(paths).labels).all()


@pytest.mark.parametrize("upright", [True, False])
def test_images_are_turned_as_in_the_test(upright, trained, tmp_path):
    run = trained("CoOp", "DATASET.UPRIGHT", upright)
    image, exif = Image.open(paths_of(run)[0]).convert("RGB"), Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees
    image.save(tmp_path / "turned.png", exif=exif)
    image.rotate(270).save(tmp_path / "upright.png")
    image.save(tmp_path / "as it is.png")
    found = run.predict_proba([tmp_path / f"{name}.png" for name in ("turned", "upright", "as it is")]).probabilities
    np.testing.assert_allclose(found[0], found[1 if upright else 2], atol=1e-6)
    assert abs(found[1] - found[2]).max() > 1e-3


def test_q_of_unlabelled_images_is_that_of_all_images_given(trained, monkeypatch):
    run = trained("GLA", "TRAINER.GLA.PRIOR", "unlabelled")
    monkeypatch.setattr(predict, "BATCH", 7)
    paths = paths_of(run)
    found = run.predict_proba(paths).probabilities
    np.testing.assert_allclose(found, run.predictions["logits"].softmax(1).numpy(), atol=1e-6)
    assert abs(run.predict_proba(paths[:20]).probabilities - found[:20]).max() > 1e-3


def test_batches_do_not_change_the_result(trained, monkeypatch):
    run = trained("CoOp")
    whole = run.predict_proba(paths_of(run, 20)).probabilities
    monkeypatch.setattr(predict, "BATCH", 7)
    np.testing.assert_allclose(run.predict_proba(paths_of(run, 20)).probabilities, whole, atol=1e-6)


def test_the_random_numbers_of_the_caller_stay(trained):
    run = trained("Backdoor")
    before = torch.random.get_rng_state()
    run.predict(paths_of(run, 2))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_copied_run_loads_its_own_model(trained):
    run = trained("CoOp")
    expected = run.predict(paths_of(run, 3)).labels
    again = pickle.loads(pickle.dumps(run))
    assert "_predictor" in vars(run) and "_predictor" not in vars(again)
    np.testing.assert_array_equal(again.predict(paths_of(run, 3)).labels, expected)


# --- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "match"),
    [
        ([], "no images"),
        (["nothing.png"], "nothing.png"),
        (np.zeros((3, 32, 32), np.uint8), "H, W, 3"),
        (np.zeros((32, 32), np.uint8), "32, 32"),
        (np.zeros((32, 32, 3), np.int64), "int64"),
        (np.full((32, 32, 3), 255.0), "0, 1"),
        (Image.new("RGB", (0, 4)), "no pixels"),
        (torch.zeros(3, 0, 4), "no pixels"),
        (torch.rand(3, 32, 32).to_sparse(), "dense"),
        (torch.zeros(3, 32, 32, device="meta"), "dense"),
        (torch.tensor(1.0), "3, H, W"),
        (None, "NoneType"),
        (b"a.png", "bytes"),
        (torch.zeros(1, 32, 32, 3), "3, H, W"),
        (torch.full((1, 3, 32, 32), -1.0), "0, 1"),
        (torch.full((1, 3, 32, 32), torch.nan), "0, 1"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.long), "int64"),
    ],
)
def test_images_that_cannot_be_predicted(images, match, trained):
    with pytest.raises(ValueError, match=match) as error:
        trained("CoOp").predict(images)
    assert "saved_run" not in str(error.value)


def test_values_that_are_not_finite(data_root, trained, tmp_path):
    run = Run("digits", "LinearProbe", shots=1, seed=1, root=data_root, folder=str(tmp_path / "run"), opts=TINY)
    execute(run, console=False)
    path = checkpoint.last_checkpoint(run.path / "head")
    state = checkpoint.load_checkpoint(path)
    state["state_dict"]["bias"][0] = torch.nan
    checkpoint.save(state, path)
    with pytest.raises(ValueError, match="not finite"):
        run.predict(paths_of(run, 2))
