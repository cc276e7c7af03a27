"""Exported ONNX graphs give the probabilities of the run's predictions, from images and from features."""

import errno
import json

import numpy as np
import pytest
import torch
from building import SHORT
from PIL import Image
from safetensors.torch import load_file
from torchvision import transforms as T

import unskew
from unskew.runs.export import export_run
from unskew.runs.model import load_trainer

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

pytestmark = [pytest.mark.onnx, pytest.mark.slow]

# Small trainings at a rate that moves the weights away from their initial values.
OPTS = (*SHORT, "OPTIM.LR", 0.05)
MEMBERS = "TRAINER.BACKDOOR.MEMBERS"


def train(trainer, data_root, folder, *opts, backbone=""):
    flags = {"shots": 2, "root": data_root, "backbone": backbone, "folder": folder / "run"}
    return unskew.train("digits", trainer, opts=(*OPTS, *opts), **flags)


def pictures(folder, count=5):
    """Write random pictures of several shapes; return their paths."""
    rng = np.random.default_rng(1)
    paths = [str(folder / f"{number}.png") for number in range(count)]
    for number, path in enumerate(paths):
        small = Image.fromarray(rng.integers(256, size=(5, 5, 3), dtype=np.uint8))
        small.resize((40 + 9 * number, 60)).save(path)
    return paths


def by_hand(paths, facts):
    """Return images [N, 3, H, W] in [0, 1], prepared as the metadata describe."""
    described = json.loads(facts["preprocessing"])
    assert (described["resize_mode"], described["interpolation"], described["crops"]) == ("shortest", "bicubic", 1)
    mode, size = T.InterpolationMode.BICUBIC, described["size"]
    prepare = T.Compose([T.Resize(size, mode), T.CenterCrop(size), T.ToTensor()])
    return np.stack([prepare(Image.open(path)).numpy() for path in paths])


CASES = {
    "linear, ResNet": ("GLA", (), "micro"),
    "linear, ViT": ("GLA", ("TRAINER.GLA.BASE", "CoOp"), "micro-vit"),
    "not calibrated": ("TipAdapter", (), "micro"),
    "sum of two halves": ("GLA", ("TRAINER.GLA.BASE", "CLIPAdapter"), "micro"),
    "adapter in the tower": ("FineTune", (), "micro-vit"),
    "mixture": ("Backdoor", (MEMBERS, ["micro-a", "micro-vit"], "TRAINER.BACKDOOR.COMBINE", "probs"), ""),
}


@pytest.mark.parametrize("case", CASES)
def test_a_graph_gives_the_probabilities_of_the_run(case, data_root, tmp_path):
    name, opts, backbone = CASES[case]
    run = train(name, data_root, tmp_path, *opts, backbone=backbone)
    exported = export_run(run.path, tmp_path / "model.onnx", "model")
    assert exported.kind == "model" and exported.card.is_file()
    session = onnxruntime.InferenceSession(str(exported.file), providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    temperature = json.loads((run.path / "model.json").read_text())["temperature"]
    assert float(facts["temperature"]) == temperature
    assert json.loads(facts["classes"]) == run.metrics["classnames"]
    paths = pictures(tmp_path)
    expected = unskew.load_run(run.path).predict_proba(paths).probabilities
    images = by_hand(paths, facts)
    for batch in (slice(0, 5), slice(0, 1)):
        logits, probabilities = session.run(None, {"images": images[batch]})
        np.testing.assert_allclose(probabilities, expected[batch], atol=1e-4)
        np.testing.assert_allclose((torch.from_numpy(logits) / temperature).softmax(1), probabilities, atol=1e-6)
    assert expected.std() > 0.01 and len(set(expected.argmax(1))) > 1
    assert b"unskew/" not in exported.file.read_bytes()  # paths of this machine
    graph = onnx.load(exported.file)
    assert graph.opset_import[0].version >= 17
    if case == "sum of two halves":  # which share one image tower
        kinds = [node.op_type for node in graph.graph.node]
        tower = load_trainer(run.path).backbone.visual
        assert kinds.count("Conv") == sum(isinstance(module, torch.nn.Conv2d) for module in tower.modules())
        assert exported.file.stat().st_size < 4.4 * sum(p.numel() for p in tower.parameters())


def test_several_crops_are_an_axis_of_the_input(data_root, tmp_path):
    run = train("GLA", data_root, tmp_path, "TEST.CROPS", 5, backbone="micro-vit")
    trainer, paths = load_trainer(run.path), pictures(tmp_path)
    expected = unskew.load_run(run.path).predict_proba(paths).probabilities
    crops = [np.stack([transform(Image.open(path)).numpy() for path in paths]) for transform in trainer.dm.tfm_crops]
    mean, std = (np.array(getattr(trainer.backbone, name), np.float32)[:, None, None] for name in ("mean", "std"))
    images = np.stack(crops, 1) * std + mean  # [N, 5, 3, H, W]
    features = np.stack([trainer._extract(paths, transform).numpy() for transform in trainer.dm.tfm_crops], 1)
    for kind, inputs in (("model", {"images": images}), ("head", {"features": features})):
        out = export_run(run.path, tmp_path / f"{kind}.onnx", kind).file
        session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
        _, probabilities = session.run(None, inputs)
        np.testing.assert_allclose(probabilities, expected, atol=1e-4)


def test_a_run_that_is_tested_among_some_classes_predicts_these(data_root, tmp_path):
    run = train("ZeroshotCLIP", data_root, tmp_path)
    file = run.path / "model.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"test_classes": [1, 4, 7]}))
    paths = pictures(tmp_path)
    found = unskew.load_run(run.path).predict_proba(paths)
    session = onnxruntime.InferenceSession(
        str(export_run(run.path, tmp_path / "model.onnx", "model").file), providers=["CPUExecutionProvider"]
    )
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["classes"]) == list(found.classes) == ["one", "four", "seven"]
    _, probabilities = session.run(None, {"images": by_hand(paths, facts)})
    np.testing.assert_allclose(probabilities, found.probabilities, atol=1e-4)
    weight = load_file(export_run(run.path, tmp_path / "head.safetensors").file)["weight"]
    assert weight.shape == (3, 64)


def test_large_weights_have_a_file_of_their_own(data_root, tmp_path, monkeypatch):
    """A protocol buffer ends at 2 GiB."""
    monkeypatch.setattr("unskew.runs.export.graph.MOST_BYTES", 1000)
    run = train("ZeroshotCLIP", data_root, tmp_path)
    (tmp_path / "out").mkdir()
    out = export_run(run.path, tmp_path / "out" / "head.onnx").file
    assert sorted(file.name for file in out.parent.iterdir()) == ["head.md", "head.onnx", "head.onnx.data"]
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    trainer, paths = load_trainer(run.path), pictures(tmp_path)
    logits, _ = session.run(None, {"features": trainer.encode(paths).numpy()})
    np.testing.assert_allclose(logits, trainer.predict(paths), atol=1e-4)


def test_a_full_disk_is_an_error_that_names_the_file(data_root, tmp_path, monkeypatch):
    def full(self, *args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    run = train("ZeroshotCLIP", data_root, tmp_path)
    monkeypatch.setattr("torch.onnx.ONNXProgram.save", full)
    with pytest.raises(OSError, match=r"head\.onnx"):
        export_run(run.path, tmp_path / "head.onnx")
    assert not list(tmp_path.glob("*head*"))


def test_members_that_read_other_images_are_an_error(data_root, tmp_path, monkeypatch):
    from unskew.engine import image_models

    run = train("Backdoor", data_root, tmp_path, "TRAINER.BACKDOOR.DEBIAS", False, MEMBERS, ["micro-a", "micro-b"])
    build, sizes = image_models.ImageModel.__init__, iter([32, 48])

    def other_size(self, *args):
        build(self, *args)
        self.crops = (f"Resize(size={next(sizes)})",)

    monkeypatch.setattr(image_models.ImageModel, "__init__", other_size)
    with pytest.raises(ValueError, match=r"32.*48"):
        export_run(run.path, tmp_path / "model.onnx")
    assert not list(tmp_path.glob("*.onnx")) and not list(tmp_path.glob("*.md"))


def test_a_trainer_may_ask_for_the_number_of_images(data_root, tmp_path, monkeypatch):
    from unskew.trainers.clipadapter import CLIPAdapter

    run, logits = train("CLIPAdapter", data_root, tmp_path), CLIPAdapter.logits
    monkeypatch.setattr(CLIPAdapter, "logits", lambda self, x: logits(self, x) + torch.zeros(len(x), 1))
    session = onnxruntime.InferenceSession(
        str(export_run(run.path, tmp_path / "model.onnx").file), providers=["CPUExecutionProvider"]
    )
    for count in (1, 5):
        assert session.run(["logits"], {"images": np.zeros((count, 3, 32, 32), np.float32)})[0].shape == (count, 10)


def test_a_model_that_pytorch_cannot_export_is_an_error(data_root, tmp_path, monkeypatch, capfd):
    """The reason is one line, and nothing else is printed."""
    from unskew.trainers.clipadapter import CLIPAdapter

    run = train("CLIPAdapter", data_root, tmp_path)
    capfd.readouterr()
    logits = CLIPAdapter.logits
    monkeypatch.setattr(CLIPAdapter, "logits", lambda self, x: logits(self, x) * (1 if x.sum() > 0 else 2))
    with pytest.raises(ValueError, match="CLIPAdapter") as error:
        export_run(run.path, tmp_path / "model.onnx")
    assert "\n" not in str(error.value) and "".join(capfd.readouterr()).count("\n") < 3
    assert not list(tmp_path.glob("*.onnx*"))
