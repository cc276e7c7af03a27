"""Tests of ImageNetV2, -Sketch, -A and -R, and of ImageNet models on these test sets."""

import re
from pathlib import Path

import pytest
import torch
import trees
from building import build
from trees import VARIANTS, WORDNET, held, image_root, load, of, put, remove, write

from unskew.cli.main import main

LABELS = {"imagenetv2": [0, 1, 2, 3], "imagenet_sketch": [0, 1, 2, 3], "imagenet_a": [0, 2], "imagenet_r": [1, 2, 3]}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_has_imagenets_labels_and_only_test_images(name, tmp_path, warned):
    entries = VARIANTS[name](tmp_path)["all"]
    dataset = load(name, tmp_path)
    assert held(dataset, image_root(name, tmp_path)) == {"train": [], "val": [], "test": entries}
    assert dataset.classnames == list(WORDNET.values())
    assert dataset.test_classes == LABELS[name]
    assert all(Path(item.impath).is_file() for item in dataset.test)
    assert not warned()


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_without_names_uses_imagenets(name, tmp_path):
    entries = VARIANTS[name](tmp_path)["all"]
    (tmp_path / of(name).dataset_dir / "classnames.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"imagenet/classnames\.txt"):
        load(name, tmp_path)
    trees.imagenet(tmp_path)
    assert held(load(name, tmp_path), image_root(name, tmp_path))["test"] == entries


@pytest.mark.parametrize("half", ["base", "new"])
@pytest.mark.parametrize("name", VARIANTS)
def test_halves_of_a_variant_are_refused(half, name, tmp_path):
    VARIANTS[name](tmp_path)
    with pytest.raises(ValueError, match=f"SUBSAMPLE_CLASSES .*'{name}'"):
        load(name, tmp_path, "DATASET.SUBSAMPLE_CLASSES", half)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_missing_variant(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"data prepare {name}"):
        load(name, tmp_path)
    VARIANTS[name](tmp_path)
    remove(image_root(name, tmp_path))
    with pytest.raises(FileNotFoundError) as error:
        load(name, tmp_path)
    assert str(image_root(name, tmp_path)) in str(error.value) and "\n" not in str(error.value)


def test_folders_that_are_not_classes(tmp_path):
    trees.imagenetv2(tmp_path)
    remove(image_root("imagenetv2", tmp_path) / "2")
    with pytest.raises(FileNotFoundError, match=r"/2' .*'great white shark'"):
        load("imagenetv2", tmp_path)
    trees.imagenet_r(tmp_path)
    write(tmp_path / "imagenet-rendition" / "classnames.txt", "n00000001 unicorn")
    with pytest.raises(ValueError, match="imagenet-rendition/imagenet-r'"):
        load("imagenet_r", tmp_path)


# --- a model of ImageNet, tested on ImageNet-A ------------------------------------------------------

SHORT = ["OPTIM.MAX_EPOCH", "2", "INPUT.VIEWS", "1", "DATALOADER.NUM_WORKERS", "0"]
PRESENT = [0, 2]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """ImageNet, and ImageNet-A with two classes whose images look like all four classes."""
    data = tmp_path_factory.mktemp("data")
    trees.imagenet(data)
    trees.classnames_txt(data / "imagenet-adversarial")
    for label in PRESENT:
        for n, other in enumerate((0, 1, 2, 2, 3, 3)):
            path = data / "imagenet-adversarial" / "imagenet-a" / list(WORDNET)[label] / f"{n}.jpg"
            put(path, shade=100 + 2 * other + n % 2)
    return data


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A function that returns the folder of a trainer's run on ImageNet; each trainer runs once."""
    output, done = tmp_path_factory.mktemp("runs"), {}

    def run(trainer):
        if trainer not in done:
            done[trainer] = output / trainer
            flags = ["--root", str(data), "--shots", "3", "--output-dir", str(done[trainer])]
            assert main(["train", "-d", "imagenet", "-b", "micro", "-t", trainer, *flags, *SHORT]) == 0
        return done[trainer]

    return run


def evaluate(trainer, data, output, *flags):
    """Return the accuracy that ``unskew train --eval-only`` logs on ImageNet-A."""
    flags = ["--root", str(data), "--eval-only", "--output-dir", str(output), *flags]
    assert main(["train", "-d", "imagenet_a", "-b", "micro", "-t", trainer, *flags, *SHORT]) == 0
    return logged(output)


def logged(output):
    return float(re.findall(r"\* accuracy: ([\d.]+)%", (output / "log.txt").read_text())[-1])


def accuracies(trainer, data):
    """Return the accuracy on ImageNet-A by hand: among its two classes, and among all classes."""
    paths = sorted((data / "imagenet-adversarial" / "imagenet-a").rglob("*.jpg"))
    labels = torch.tensor([list(WORDNET).index(path.parent.name) for path in paths])
    logits = trainer.predict([str(path) for path in paths])
    assert logits.shape == (12, 4)
    among = torch.tensor(PRESENT)[logits[:, PRESENT].argmax(1)]
    return [100 * (predicted == labels).float().mean().item() for predicted in (among, logits.argmax(1))]


@pytest.mark.parametrize("name", ["LinearProbe", "ResidualPrompt", "GLA", "FineTune", "TipAdapter", "TipAdapterF"])
def test_a_model_is_tested_among_the_classes_of_the_variant(name, data, trained, tmp_path):
    accuracy = evaluate(name, data, tmp_path / "eval", "--model-dir", str(trained(name)))
    trainer = build(name, str(data), tmp_path, "MODEL.BACKBONE.NAME", "micro", dataset="imagenet", shots=3)
    trainer.load_model(str(trained(name)))
    among, of_all = accuracies(trainer, data)
    assert accuracy == pytest.approx(among, abs=0.06)
    if name == "LinearProbe":
        assert of_all < among  # images that look like the other two classes


def test_zero_shot_needs_no_model(data, tmp_path):
    accuracy = evaluate("ZeroshotCLIP", data, tmp_path / "eval")
    trainer = build("ZeroshotCLIP", str(data), tmp_path, "MODEL.BACKBONE.NAME", "micro", dataset="imagenet")
    assert accuracy == pytest.approx(accuracies(trainer, data)[0], abs=0.06)


@pytest.mark.parametrize("debias", ["True", "False"])
def test_backdoor_is_tested_on_a_variant(debias, data, tmp_path):
    opts = ["TRAINER.BACKDOOR.MEMBERS", "['micro-a', 'micro-b']", "TRAINER.BACKDOOR.DEBIAS", debias, *SHORT]
    flags = ["train", "-t", "Backdoor", "--root", str(data), "--output-dir"]
    assert main([*flags, str(tmp_path / "run"), "-d", "imagenet", "--shots", "1", *opts]) == 0
    evaluation = ["-d", "imagenet_a", "--eval-only", "--model-dir", str(tmp_path / "run")]
    assert main([*flags, str(tmp_path / "eval"), *evaluation, *opts]) == 0
    trainer = build("Backdoor", str(data), tmp_path, *opts, dataset="imagenet", shots=1)
    trainer.load_model(str(tmp_path / "run"))
    assert logged(tmp_path / "eval") == pytest.approx(accuracies(trainer, data)[0], abs=0.06)


@pytest.mark.parametrize("name", ["LinearProbe", "ResidualPrompt", "GLA", "FineTune", "TipAdapter", "TipAdapterF"])
def test_training_on_a_variant_is_refused_in_one_line(name, data, tmp_path, capsys):
    flags = ["--root", str(data), "--output-dir", str(tmp_path / "run")]
    assert main(["train", "-d", "imagenet_a", "-b", "micro", "-t", name, *flags, *SHORT]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "'imagenet_a'" in line and "--eval-only --model-dir" in line
    assert not (tmp_path / "run" / "done").exists()
