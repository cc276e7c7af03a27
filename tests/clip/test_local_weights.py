"""Weights on this machine: the activation, the architecture and the preprocessing that they were trained with."""

import json
import os
import shutil
import subprocess
import sys

import open_clip
import pytest
import torch
from open_clip.push_to_hf_hub import save_config_for_hf
from open_clip.transform import image_transform
from PIL import Image
from safetensors.torch import save_file

from unskew import config
from unskew.clip import _weights, backbones
from unskew.config.defaults import get_cfg_default
from unskew.data.transforms import build_transform
from unskew.engine.run_dir import path_safe
from unskew.runs.run import Run, execute, load_run

TINY = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 48, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
STATS = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear", "resize_mode": "squash"}


def write_folder(folder, model_config=TINY, **preprocess):
    """Write a model with random weights as open_clip's `push_to_hf_hub` writes it; return its image tower's output."""
    folder.mkdir(parents=True)
    (folder / "tiny.json").write_text(json.dumps(model_config))
    open_clip.add_model_config(folder / "tiny.json")
    torch.manual_seed(1)
    model = open_clip.create_model("tiny", force_preprocess_cfg=STATS | preprocess).eval()
    (folder / "tiny.json").unlink()
    save_config_for_hf(model, folder / "open_clip_config.json", model_config)
    damage(folder, preprocess_cfg=preprocess)  # open_clip does not save the fill colour
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    with torch.no_grad():
        return model.encode_image(images())


def damage(folder, **changes):
    content = json.loads((folder / "open_clip_config.json").read_text())
    for key, value in changes.items():
        content[key] = value if value is None else {**content[key], **value}
    (folder / "open_clip_config.json").write_text(json.dumps(content))


def images():
    return torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))


def activations(backbone):
    blocks = (*backbone.resblocks, *backbone.visual.transformer.resblocks)
    return {type(block.mlp.gelu).__name__ for block in blocks}


# --- local-dir: --------------------------------------------------------------------------------------


def test_a_folder_of_open_clip_is_a_backbone(tmp_path):
    expected = write_folder(tmp_path / "model")
    loaded = backbones.load_backbone(f"local-dir:{tmp_path}/model")
    assert torch.equal(loaded.encode_image(images()), expected)
    assert {key: getattr(loaded, key) for key in STATS} == {**STATS, "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    assert (loaded.size, loaded.context_length) == (48, 24) and activations(loaded) == {"QuickGELU"}
    assert loaded.tokenizer(["a photo of a red circle"]).shape == (1, 24)
    shutil.copytree(tmp_path / "model", tmp_path / "moved")
    assert backbones.load_backbone(f"local-dir:{tmp_path}/moved").id == loaded.id
    changed = json.loads((tmp_path / "moved" / "open_clip_config.json").read_text())
    changed["model_cfg"]["quick_gelu"] = False
    (tmp_path / "moved" / "open_clip_config.json").write_text(json.dumps(changed))
    backbones.release()
    assert backbones.load_backbone(f"local-dir:{tmp_path}/moved").id != loaded.id


def test_a_run_on_a_folder_stays_inside_the_output_folder(tmp_path, data_root):
    write_folder(tmp_path / "model")
    name = f"local-dir:{tmp_path}/x/../model"
    (tmp_path / "x").mkdir()
    run = Run("digits", "ZeroshotCLIP", name, 1, 1, data_root, str(tmp_path / "out"))
    metrics = execute(run, console=False)
    assert metrics["backbone"] == name and 0 <= metrics["accuracy"] <= 100
    (done,) = (tmp_path / "out").rglob("done")
    assert done.parent.parent.parent == tmp_path / "out" / "digits" / "ZeroshotCLIP"
    assert load_run(done.parent).backbone == name


FAULTS = {
    "no folder": (shutil.rmtree, FileNotFoundError),
    "no config": (lambda f: (f / "open_clip_config.json").unlink(), FileNotFoundError),
    "no weights": (lambda f: (f / "open_clip_model.safetensors").unlink(), FileNotFoundError),
    "no JSON": (lambda f: (f / "open_clip_config.json").write_text("{"), ValueError),
    "a list": (lambda f: (f / "open_clip_config.json").write_text("[1]"), ValueError),
    "no model": (lambda f: damage(f, model_cfg=None), ValueError),
    "wrong width": (lambda f: damage(f, model_cfg={"embed_dim": 16}), ValueError),
    "wrong key": (lambda f: damage(f, model_cfg={"nonsense": 16}), ValueError),
    "one mean": (lambda f: damage(f, preprocess_cfg={"mean": [0.5]}), ValueError),
    "zero std": (lambda f: damage(f, preprocess_cfg={"std": [0, 1, 1]}), ValueError),
    "odd resize": (lambda f: damage(f, preprocess_cfg={"resize_mode": "sideways"}), ValueError),
    "odd interpolation": (lambda f: damage(f, preprocess_cfg={"interpolation": "psychic"}), ValueError),
    "two weights": (
        lambda f: (
            [shutil.copy(f / "open_clip_model.safetensors", f / f"{n}.safetensors") for n in "ab"]
            and (f / "open_clip_model.safetensors").unlink()
        ),
        ValueError,
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_is_no_model_is_one_line(fault, tmp_path):
    write_folder(tmp_path / "model")
    act, kind = FAULTS[fault]
    act(tmp_path / "model")
    with pytest.raises(kind, match=str(tmp_path)) as error:
        backbones.load_backbone(f"local-dir:{tmp_path}/model")
    assert "\n" not in str(error.value)


# --- ARCH@FILE ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arch"),
    [
        ("ViT-B/32@{}", "ViT-B-32-quickgelu"),
        ("ViT-L/14@336px@{}", "ViT-L-14-336-quickgelu"),
        ("ViT-L/14@{}", "ViT-L-14-quickgelu"),
        ("RN50@{}", "RN50-quickgelu"),
        ("ViT-B-32@{}", "ViT-B-32"),
        ("ViT-B-32-quickgelu@{}", "ViT-B-32-quickgelu"),
        ("ViT-H-14@{}", "ViT-H-14"),
    ],
)
def test_a_short_name_with_a_file_means_quick_gelu_as_the_short_name_does(name, arch, tmp_path):
    source = _weights.resolve(name.format(tmp_path / "weights.pt"))
    assert (source.arch, source.tag, source.file) == (arch, "", tmp_path / "weights.pt")
    assert open_clip.get_model_config(arch).get("quick_gelu", False) == arch.endswith("-quickgelu")


@pytest.fixture
def two_activations(tmp_path, monkeypatch):
    """Make open_clip know an architecture with either activation, with the short name X/16; return its weights."""
    for name in ("X-16", "X-16-quickgelu"):
        model = TINY | {"quick_gelu": name.endswith("quickgelu")}
        (tmp_path / f"{name}.json").write_text(json.dumps(model))
        open_clip.add_model_config(tmp_path / f"{name}.json")
    monkeypatch.setattr(_weights, "OPENAI", (*_weights.OPENAI, "X/16"))
    (tmp_path / "weights").mkdir()
    file = tmp_path / "weights" / "weights.pt"
    torch.save(open_clip.create_model("X-16").state_dict(), file)
    return file


def test_the_activation_of_a_file_is_that_of_its_name_with_a_warning_for_a_guess(two_activations, warned):
    names = [f"{arch}@{two_activations}" for arch in ("X/16", "X-16", "X-16-quickgelu")]
    loaded = [backbones.load_backbone(name) for name in names]
    assert [activations(backbone) for backbone in loaded] == [{"QuickGELU"}, {"GELU"}, {"QuickGELU"}]
    assert [sum(name in line for line in warned()) for name in names] == [1, 1, 0]
    assert loaded[0].id == loaded[2].id != loaded[1].id


def test_openais_own_file_has_quick_gelu_under_any_name(two_activations, monkeypatch, warned):
    monkeypatch.setattr(backbones, "openai_hashes", lambda: {_weights.hash_file(two_activations)})
    loaded = backbones.load_backbone(f"X-16@{two_activations}")
    assert activations(loaded) == {"QuickGELU"} and loaded.id.startswith("X-16-quickgelu@") and not warned()


@pytest.mark.parametrize("quick", [True, False])
def test_a_config_beside_the_file_decides(quick, tmp_path, two_activations, warned):
    model = TINY | {"quick_gelu": quick, "vision_cfg": TINY["vision_cfg"] | {"ls_init_value": 0.5}}
    expected = write_folder(tmp_path / "model", model, resize_mode="longest")
    for arch in ("X/16", "X-16"):
        loaded = backbones.load_backbone(f"{arch}@{tmp_path}/model/open_clip_model.safetensors")
        assert torch.equal(loaded.encode_image(images()), expected)
        assert activations(loaded) == ({"QuickGELU"} if quick else {"GELU"})
        assert (loaded.mean, loaded.interpolation, loaded.resize_mode) == ((0.1, 0.2, 0.3), "bilinear", "longest")
    assert not any(str(tmp_path) in line for line in warned())


def test_a_config_of_another_architecture_is_an_error(tmp_path, two_activations):
    write_folder(tmp_path / "model")
    with pytest.raises(ValueError, match=r"ViT-B-32.*open_clip_config\.json") as error:
        backbones.load_backbone(f"ViT-B-32@{tmp_path}/model/open_clip_model.safetensors")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_images_are_preprocessed_as_open_clip_does(resize_mode, interpolation, tmp_path):
    write_folder(tmp_path / "model", resize_mode=resize_mode, interpolation=interpolation, fill_color=90)
    backbone = backbones.load_backbone(f"local-dir:{tmp_path}/model")
    theirs = image_transform(48, False, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), resize_mode, interpolation, fill_color=90)
    ours = build_transform(get_cfg_default(), backbone, train=False)
    noise = torch.randint(256, (90, 70, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for image in (Image.fromarray(noise.numpy()), Image.fromarray(noise[:40].numpy())):
        assert torch.equal(ours(image), theirs(image))
    assert "90" in repr(ours) or resize_mode != "longest"


# --- hf-hub: -----------------------------------------------------------------------------------------


def test_a_model_of_the_hub_is_read_from_its_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repo = tmp_path / "hub" / "models--someone--tiny"
    expected = write_folder(repo / "snapshots" / "abc")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    loaded = backbones.load_backbone("hf-hub:someone/tiny")
    assert torch.equal(loaded.encode_image(images()), expected) and loaded.mean == (0.1, 0.2, 0.3)


def test_without_internet_a_model_of_the_hub_is_one_quick_line(tmp_path):
    closed = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HOME": str(tmp_path)}
    code = """
import time, open_clip, huggingface_hub
from unskew.clip import backbones
for name in ("hf-hub:someone/tiny", "hf-hub:not/a/repository"):
    start = time.time()
    try:
        backbones.load_backbone(name)
    except (FileNotFoundError, ValueError) as error:
        print(f"{time.time() - start:.1f}|{error}")
"""
    environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()} | closed
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    lines = run.stdout.splitlines()
    assert len(lines) == 2 and all(float(line.split("|")[0]) < 20 for line in lines)
    assert "'hf-hub:someone/tiny'" in lines[0] and "http://127.0.0.1:9/" in lines[0]
    assert "'hf-hub:not/a/repository'" in lines[1]


# --- names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hf-hub:someone/tiny", "local-dir:../../etc", "local-dir:/a/" + "b/" * 200])
def test_the_schemes_are_names_of_backbones_everywhere(name):
    assert config.check_backbone(name) == name
    cfg = Run("digits", "ZeroshotCLIP", name, 1, 1).config
    folder = os.path.relpath(cfg.OUTPUT_DIR, "output")
    assert name == cfg.MODEL.BACKBONE.NAME
    assert len(folder.split(os.sep)) == 4 and ".." not in folder.split(os.sep)
    assert all(len(part.encode()) < 255 for part in folder.split(os.sep))
    assert config.load("digits", trainer="ZeroshotCLIP", opts=("MODEL.BACKBONE.NAME", name)).MODEL.BACKBONE.NAME == name


def test_a_scheme_without_a_place_is_refused():
    for name in ("hf-hub:", "local-dir:"):
        with pytest.raises(ValueError, match=name):
            config.check_backbone(name)


def test_folder_names_of_backbones():
    assert path_safe("ViT-B/16") == "ViT-B-16" and path_safe("hf-hub:a/b") == "hf-hub-a-b"
    long = ["local-dir:/" + letter * 300 + "/model" for letter in "ab"]
    assert path_safe(long[0]) != path_safe(long[1]) and all(len(path_safe(name)) < 120 for name in long)
