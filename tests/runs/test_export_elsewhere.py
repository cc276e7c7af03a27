"""The code of docs/USE.md uses an exported head without this package: with open_clip, and with transformers."""

import re
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from building import SHORT
from PIL import Image

import unskew
from unskew.micro.weights import MODELS, model_path
from unskew.runs.export import export_run
from unskew.runs.export.card import OPEN_CLIP
from unskew.runs.model import load_trainer

PAGE = (Path(unskew.__file__).parents[1] / "docs" / "USE.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def block(word):
    """Return the code of the page that imports a library."""
    (code,) = [code for code in BLOCKS if word in code]
    return code


def picture(path, size=(90, 70)):
    pixels = np.random.default_rng(0).integers(256, size=(6, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size).save(path)


@pytest.fixture(params=["micro", "micro-vit"])
def head(request, data_root, tmp_path, monkeypatch):
    """A folder with head.safetensors and image.jpg, and the run's probabilities of the image."""
    options = {"shots": 2, "root": data_root, "folder": tmp_path / "run", "backbone": request.param}
    run = unskew.train("digits", "GLA", opts=SHORT, **options)
    export_run(run.path, tmp_path / "head.safetensors")
    monkeypatch.chdir(tmp_path)
    picture("image.jpg")
    return request.param, load_trainer(run.path).predict(["image.jpg"]).softmax(1)


def test_the_head_works_in_open_clip(head, capsys):
    name, expected = head
    open_clip.add_model_config(MODELS)
    code = block("create_model_and_transforms")
    names = {}
    exec(code.replace('backbone["tag"]', repr(str(model_path(name)))), names)  # a tag would need a download
    torch.testing.assert_close(names["probabilities"], expected, rtol=0, atol=1e-5)
    best = load_trainer("run").classnames[expected.argmax()]
    assert capsys.readouterr().out.startswith(best)


def test_the_card_and_the_page_have_the_same_code(head):
    assert (
        OPEN_CLIP.format(file="head.safetensors", weights='backbone["tag"]').strip()
        == block("create_model_and_transforms").strip()
    )


def test_the_code_of_the_card_loads_the_embedded_models(head):
    _, expected = head
    card, names = Path("head.md").read_text(encoding="utf-8"), {}
    exec(card.split("```python")[1].split("```")[0], names)
    torch.testing.assert_close(names["probabilities"], expected, rtol=0, atol=1e-5)


# --- transformers -------------------------------------------------------------------------------------


def as_open_clip(model):
    """Return the image tower of a CLIPModel as one of open_clip, with the same weights."""
    config, state = model.config.vision_config, model.state_dict()
    tower = open_clip.transformer.VisionTransformer(
        image_size=config.image_size,
        patch_size=config.patch_size,
        width=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        mlp_ratio=config.intermediate_size / config.hidden_size,
        output_dim=config.projection_dim,
        act_layer=open_clip.transformer.QuickGELU,
    )
    start, layer = "vision_model.", "vision_model.encoder.layers.{}."
    ours = {
        "class_embedding": state[f"{start}embeddings.class_embedding"],
        "positional_embedding": state[f"{start}embeddings.position_embedding.weight"],
        "conv1.weight": state[f"{start}embeddings.patch_embedding.weight"],
        "proj": state["visual_projection.weight"].T,
    }
    for kind in ("weight", "bias"):
        ours[f"ln_pre.{kind}"] = state[f"{start}pre_layrnorm.{kind}"]
        ours[f"ln_post.{kind}"] = state[f"{start}post_layernorm.{kind}"]
        for number in range(config.num_hidden_layers):
            here, there = f"transformer.resblocks.{number}.", layer.format(number)
            attention = [state[f"{there}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            ours[f"{here}attn.in_proj_{kind}"] = torch.cat(attention)
            ours[f"{here}attn.out_proj.{kind}"] = state[f"{there}self_attn.out_proj.{kind}"]
            for mine, theirs in (("ln_1", "layer_norm1"), ("ln_2", "layer_norm2")):
                ours[f"{here}{mine}.{kind}"] = state[f"{there}{theirs}.{kind}"]
            for mine, theirs in (("c_fc", "fc1"), ("c_proj", "fc2")):
                ours[f"{here}mlp.{mine}.{kind}"] = state[f"{there}mlp.{theirs}.{kind}"]
    tower.load_state_dict(ours)
    return tower.eval()


def test_the_head_works_in_transformers(head, tmp_path):
    """A random CLIPModel of the head's width gives the numbers that open_clip gives for the same weights."""
    from safetensors.torch import load_file
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    torch.manual_seed(0)
    vision = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 192}
    shape = {"image_size": 32, "patch_size": 8, "projection_dim": 64}
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = CLIPModel(CLIPConfig(vision_config=vision | shape, text_config=text, projection_dim=64)).eval()
    model.save_pretrained(tmp_path / "clip")
    size = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size).save_pretrained(tmp_path / "clip")
    picture("image.jpg", (32, 32))  # of the model's size: the two libraries resize with other rounding
    names = {}
    exec(block("transformers").replace("openai/clip-vit-base-patch16", str(tmp_path / "clip")), names)
    mean, std = (torch.tensor(getattr(open_clip.constants, f"OPENAI_DATASET_{name}")) for name in ("MEAN", "STD"))
    pixels = torch.from_numpy(np.array(Image.open("image.jpg"))).float() / 255
    with torch.no_grad():
        feature = as_open_clip(model)(((pixels - mean) / std).permute(2, 0, 1)[None])
    weight, bias = (load_file("head.safetensors")[name] for name in ("weight", "bias"))
    expected = (feature / feature.norm() @ weight.T + bias).softmax(1)
    torch.testing.assert_close(names["probabilities"], expected, rtol=1e-4, atol=1e-5)
    assert expected.std() > 1e-3
