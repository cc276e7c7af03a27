"""`unskew export` of linear heads, its model card and its errors."""

import importlib.util
import json
import os
import shutil

import pytest
import torch
import torch.nn.functional as F
from building import SHORT
from plugin_traces import as_a_process
from safetensors import safe_open

import unskew
from unskew.cli.main import main
from unskew.data.dataset import build_dataset
from unskew.runs.export import export_run


def train(trainer, data_root, folder, *opts):
    options = {"shots": 2, "root": data_root, "folder": folder / "run", "opts": (*SHORT, *opts)}
    return unskew.train("digits", trainer, **options)


@pytest.fixture(scope="module")
def run(data_root, tmp_path_factory):
    return train("GLA", data_root, tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def not_linear(data_root, tmp_path_factory):
    return train("CLIPAdapter", data_root, tmp_path_factory.mktemp("export"))


def read(file):
    with safe_open(file, "pt") as content:
        return content.get_tensor("weight"), content.get_tensor("bias"), content.metadata()


def fails(capsys, *argv):
    """Run a command that must fail; return its one line."""
    capsys.readouterr()
    assert main([str(word) for word in argv]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


# --- the head -----------------------------------------------------------------------------------------


def test_the_head_gives_the_predictions_of_the_run(run, tmp_path, capsys):
    assert main(["export", str(run.path), "--out", str(tmp_path / "head.safetensors")]) == 0
    assert str(tmp_path / "head.md") in capsys.readouterr().out
    assert sorted(file.name for file in tmp_path.iterdir()) == ["head.md", "head.safetensors"]
    weight, bias, facts = read(tmp_path / "head.safetensors")
    assert (weight.shape, bias.shape) == ((10, 64), (10,))
    paths = [item.impath for item in build_dataset(run.config).test]
    x = F.normalize(unskew.encode_images(unskew.load_backbone("micro"), paths), dim=1)
    torch.testing.assert_close(x @ weight.T + bias, run.predictions["logits"], rtol=1e-5, atol=1e-5)
    described = json.loads((run.path / "model.json").read_text())
    assert {key: json.loads(facts[key]) for key in ("classes", "backbone", "preprocessing")} == {
        key: described[key] for key in ("classes", "backbone", "preprocessing")
    }
    assert [facts[key] for key in ("dataset", "trainer", "license", "kind")] == ["digits", "GLA", "MIT", "head"]


def test_the_temperature_is_that_of_the_run(data_root, tmp_path):
    plain = train("LinearProbe", data_root, tmp_path)
    file = plain.path / "model.json"
    content = json.loads(file.read_text()) | {"temperature": 0.625}
    file.write_text(json.dumps(content))
    facts = read(export_run(plain.path, tmp_path / "head.safetensors").file)[2]
    assert float(facts["temperature"]) == 0.625


def test_a_subclass_that_forgets_its_head_is_noticed(run, tmp_path, monkeypatch):
    """The file is compared with the run's predictions before it is written."""
    from unskew.trainers.gla import GLA

    combine = GLA.combine

    def changed(self, zeroshot, finetuned):
        return combine(self, zeroshot + torch.arange(10), finetuned)

    monkeypatch.setattr(GLA, "combine", changed)
    with pytest.raises(ValueError, match="linear_head"):
        export_run(run.path, tmp_path / "head.safetensors")
    assert not list(tmp_path.iterdir())


def test_the_run_is_not_changed(run, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    export_run(run.path, tmp_path / "head.safetensors")
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before


PLUGIN = """
import torch
from unskew import TRAINER_REGISTRY, CLIPTrainer

@TRAINER_REGISTRY.register()
class ShiftedZeroshot(CLIPTrainer):
    def build_model(self):
        self.bias = torch.nn.ParameterList([torch.zeros(self.num_classes)])
        self.register_for_training("bias", self.bias, class_bound=True)

    def logits(self, image_features):
        return self.cosine_logits(image_features, self.zeroshot_weights) + self.bias[0]

    def linear_head(self):
        return self.cosine_head(self.zeroshot_weights)[0], self.bias[0].detach()
"""


def test_the_trainer_of_a_plugin_is_exported(data_root, tmp_path, capsys):
    with as_a_process(tmp_path):
        file = tmp_path / "shifted.py"
        file.write_text(PLUGIN)
        options = {"shots": 2, "root": data_root, "folder": tmp_path / "run", "plugins": [file]}
        run = unskew.train("digits", "ShiftedZeroshot", opts=("OPTIM.MAX_EPOCH", 2, "OPTIM.LR", 1.0), **options)
        out = tmp_path / "head.safetensors"
        assert main(["export", str(run.path), "--out", str(out), "--plugin", str(file)]) == 0
        weight, bias, _ = read(out)
        assert bias.std() > 0.01
        paths = [item.impath for item in build_dataset(run.config).test]
        x = F.normalize(unskew.encode_images(unskew.load_backbone("micro"), paths), dim=1)
        torch.testing.assert_close(x @ weight.T + bias, run.predictions["logits"], rtol=1e-5, atol=1e-5)


# --- the model card -----------------------------------------------------------------------------------


def test_the_card_describes_the_run(run, tmp_path):
    card = export_run(run.path, tmp_path / "head.safetensors").card.read_text()
    model = json.loads((run.path / "model.json").read_text())
    for fact in ("digits", "2 shots", "seed 1", "MIT", model["backbone"]["id"], "head.safetensors"):
        assert fact in card
    for key in ("accuracy", "zs_accuracy", "gla_accuracy"):
        assert any(key.replace("_", " ") in line and f"{run.metrics[key]:.1f}" in line for line in card.splitlines()), (
            key
        )
    assert "| seven" in card  # the prior


def test_the_card_shows_the_largest_and_smallest_prior(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run.path, copy)
    rows = ["class,log_q,log_q_deviation,count", *(f"class{n},{-n / 10},0.1,2" for n in range(30))]
    (copy / "prior.csv").write_text("\n".join(rows))
    card = export_run(copy, tmp_path / "head.safetensors").card.read_text()
    assert [n for n in range(30) if f"class{n} " in card] == [*range(5), *range(25, 30)]


def test_names_cannot_break_the_card(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run.path, copy)
    (copy / "prior.csv").write_text('class,log_q\n"a|b\n<script>",-1\n')
    card = export_run(copy, tmp_path / "head.safetensors").card.read_text()
    assert "a\\|b &lt;script>" in card and "<script>" not in card


def test_an_export_replaces_its_own_card_and_no_other_file(run, tmp_path, capsys):
    out = tmp_path / "head.safetensors"
    export_run(run.path, out)
    export_run(run.path, out)
    (tmp_path / "README.md").write_text("mine")
    assert "README.md" in fails(capsys, "export", run.path, "--out", tmp_path / "README.safetensors")
    assert (tmp_path / "README.md").read_text() == "mine"
    (tmp_path / "mine.safetensors").write_text("mine")
    assert "mine.safetensors" in fails(capsys, "export", run.path, "--out", tmp_path / "mine.safetensors")
    assert (tmp_path / "mine.safetensors").read_text() == "mine" and not (tmp_path / "mine.md").exists()


@pytest.mark.onnx
def test_two_files_have_no_common_card(run, tmp_path, capsys):
    export_run(run.path, tmp_path / "head.safetensors")
    card = (tmp_path / "head.md").read_text()
    assert "describes 'head.safetensors'" in fails(capsys, "export", run.path, "--out", tmp_path / "head.onnx")
    assert (tmp_path / "head.md").read_text() == card and not (tmp_path / "head.onnx").exists()


@pytest.mark.onnx
def test_a_model_is_not_replaced_by_a_head(run, tmp_path, capsys):
    out = tmp_path / "new" / "model.onnx"  # the folder is made
    export_run(run.path, out, "model")
    before = out.read_bytes()
    assert "--kind model" in fails(capsys, "export", run.path, "--out", out)
    assert out.read_bytes() == before
    assert main(["export", str(run.path), "--out", str(out), "--kind", "model"]) == 0


# --- errors -------------------------------------------------------------------------------------------


def test_a_run_that_is_not_linear_has_no_head(not_linear, tmp_path, capsys):
    line = fails(capsys, "export", not_linear.path, "--out", tmp_path / "head.safetensors")
    assert "--kind model" in line and "head.onnx" in line
    assert "--kind model" in fails(capsys, "export", not_linear.path, "--out", tmp_path / "a.onnx", "--kind", "head")
    assert not list(tmp_path.iterdir())


def test_a_transductive_run_cannot_be_exported(data_root, tmp_path, capsys):
    run = train("GLA", data_root, tmp_path, "TRAINER.GLA.PRIOR", "unlabelled")
    for out in ("head.safetensors", "model.onnx"):
        assert "unlabelled" in fails(capsys, "export", run.path, "--out", tmp_path / out)


@pytest.mark.parametrize(
    ("out", "kind", "reason"),
    [
        ("head.bin", "", ".safetensors"),
        ("head", "", ".onnx"),
        ("model.safetensors", "model", "--kind model"),
        ("folder.safetensors", "", "folder.safetensors"),
    ],
)
def test_a_wrong_out_is_an_error(out, kind, reason, run, tmp_path, capsys):
    (tmp_path / "folder.safetensors").mkdir()
    assert reason in fails(capsys, "export", run.path, "--out", tmp_path / out, *(["--kind", kind] if kind else []))
    assert [path.name for path in tmp_path.iterdir()] == ["folder.safetensors"]


def test_a_folder_that_cannot_be_written_is_an_error(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("unskew.runs.export.write.unwritable", lambda folder: f"'{folder}' is read-only")
    assert "read-only" in fails(capsys, "export", run.path, "--out", tmp_path / "head.safetensors")


def test_a_file_of_the_run_is_kept(run, capsys, monkeypatch):
    monkeypatch.chdir(run.path)
    assert "predictions.safetensors" in fails(capsys, "export", ".", "--out", "predictions.safetensors")


def test_a_missing_run_or_an_older_one_is_an_error(run, tmp_path, capsys):
    assert "nowhere" in fails(capsys, "export", tmp_path / "nowhere", "--out", tmp_path / "head.safetensors")
    copy = tmp_path / "run"
    shutil.copytree(run.path, copy)
    os.unlink(copy / "model.json")
    (copy / "done").write_text((copy / "done").read_text().replace("model.json\n", ""))
    assert "model.json" in fails(capsys, "export", copy, "--out", tmp_path / "head.safetensors")


def test_a_missing_package_is_one_line_with_the_command(run, tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "onnxscript" else find(name, *rest)
    )
    line = fails(capsys, "export", run.path, "--out", tmp_path / "head.onnx")
    assert "onnxscript" in line and "unskew[export]" in line
    assert export_run(run.path, tmp_path / "head.safetensors").file.is_file()
