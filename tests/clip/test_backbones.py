import os
import re
import subprocess
import sys
import time
from pathlib import Path

import open_clip
import pytest
import torch
import yaml
from open_clip import pretrained
from safetensors.torch import save_file

import unskew
from unskew.clip import _weights, backbones
from unskew.micro import weights as micro


def images(backbone, n=2):
    return torch.randn(n, 3, backbone.size, backbone.size, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def random_micro():
    return backbones.load_backbone("micro@random")


@pytest.mark.parametrize("name", backbones.OPENAI)
def test_short_names_mean_openai_weights_with_quick_gelu(name):
    arch, tag, file = _weights.resolve(name)[:3]
    assert (tag, file) == ("openai", None)
    assert pretrained.is_pretrained_cfg(arch, tag)
    assert open_clip.get_model_config(arch)["quick_gelu"] is True


def test_every_backbone_config_names_a_known_backbone():
    files = sorted((Path(unskew.__file__).parent.parent / "configs" / "backbones").glob("*.yaml"))
    assert len(files) >= 7
    for file in files:
        name = yaml.safe_load(file.read_text())["MODEL"]["BACKBONE"]["NAME"]
        assert name.replace("/", "-") == file.stem
        assert name in (*backbones.OPENAI, *micro.NAMES)


@pytest.mark.parametrize(
    ("name", "wrong", "near"),
    [
        ("ViT-B/17", "ViT-B/17", "ViT-B/16"),
        ("micro-d", "micro-d", "micro-a"),
        ("ViT-B-61@openai", "ViT-B-61", "ViT-B-16"),
        ("ViT-B-16@laion2b_s34b_b88", "laion2b_s34b_b88", "laion2b_s34b_b88k"),
        ("micro@rendom", "rendom", "random"),
    ],
)
def test_unknown_names_list_the_near_ones(name, wrong, near):
    with pytest.raises(ValueError, match=rf"{re.escape(wrong)}.*{re.escape(near)}[ ?]"):
        backbones.load_backbone(name)


def test_short_names_are_found_in_any_case_and_with_a_hyphen():
    assert backbones.load_backbone("MICRO-A") is backbones.load_backbone("micro-a")
    assert _weights.spelling("vit-b-16") == "ViT-B/16" and _weights.spelling("vit-b-16@x") == "vit-b-16@x"


def test_unknown_precision():
    with pytest.raises(ValueError, match=r"fp61.*fp16"):
        backbones.load_backbone("micro@random", precision="fp61")


def test_offline_is_one_quick_line_that_says_what_to_do(tmp_path):
    """In a process of its own, whose caches are empty and whose hub is a closed port."""
    closed = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HOME": str(tmp_path)}
    code = """
import time, open_clip, huggingface_hub
from unskew.clip import _weights, backbones
start = time.time()
try:
    backbones.load_backbone("RN50")
except FileNotFoundError as error:
    print(f"{time.time() - start:.1f}|{error}")
"""
    environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()} | closed
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    seconds, message = run.stdout.split("|")
    assert float(seconds) < 20  # the hub's own retries take 46
    assert message.count("\n") == 1
    for part in ("'RN50'", "http://127.0.0.1:9/", ".safetensors", "HF_ENDPOINT", "RN50-quickgelu@FILE", "'micro'"):
        assert part in message


def test_random_is_the_same_each_time_and_leaves_the_random_stream_alone(random_micro):
    state = torch.get_rng_state()
    backbones._load.cache_clear()
    again = backbones.load_backbone("micro@random")
    assert torch.equal(state, torch.get_rng_state())
    assert again is not random_micro and again.id == random_micro.id
    for a, b in zip(again.parameters(), random_micro.parameters(), strict=True):
        assert torch.equal(a, b)


def test_loaded_once_frozen_and_always_in_eval(random_micro):
    loaded = backbones.load_backbone("micro@random")
    assert backbones.load_backbone("micro@random", "amp", torch.device("cpu")) is loaded
    loaded.train()
    assert not any(module.training for module in loaded.modules())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_the_surface(random_micro):
    b = random_micro
    assert b.encode_image(images(b)).shape == (2, 64)
    assert torch.equal(b.encode_image(images(b)), b.model.encode_image(images(b)))
    assert b.tokenizer(["red", "a blue star"]).shape == (2, b.context_length) == (2, 32)
    assert (b.size, b.interpolation, len(b.mean), len(b.std)) == (32, "bicubic", 3, 3)
    assert b.logit_scale is b.model.logit_scale and b.device.type == "cpu" and b.dtype == torch.float32
    assert b.visual is b.model.visual and b.causal
    assert b.pad_id == 0 and b.end_id == max(b.tokenizer.encoder.values()) and len(b.start_ids) == 1


def test_fp16_on_a_cpu_is_fp32_with_one_warning():
    backbones._warn_fp16_once.cache_clear()
    with pytest.warns(UserWarning, match="fp16.*fp32") as caught:
        loaded = [backbones.load_backbone("micro@random", "fp16") for _ in range(3)]
    assert len([w for w in caught if "fp16" in str(w.message)]) == 1
    assert loaded[0] is backbones.load_backbone("micro@random", "fp32")


def test_bf16(random_micro):
    low = backbones.load_backbone("micro@random", "bf16")
    features = low.encode_image(images(low))
    assert features.dtype == low.dtype == torch.bfloat16
    torch.testing.assert_close(features.float(), random_micro.encode_image(images(low)), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("suffix", ["pt", "pth", "safetensors"])
def test_a_local_file(tmp_path, random_micro, suffix):
    state = {key: value + value / 8 for key, value in random_micro.model.state_dict().items()}
    file, moved = tmp_path / f"weights.{suffix}", tmp_path / f"moved.{suffix}"
    if suffix == "safetensors":
        save_file(state, file)
    else:  # as open_clip's training saves it
        torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}, file)
    loaded = backbones.load_backbone(f"micro@{file}")
    for key, value in loaded.model.state_dict().items():
        assert torch.equal(value, state[key])
    moved.write_bytes(file.read_bytes())
    assert loaded.id == backbones.load_backbone(f"micro@{moved}").id != random_micro.id


def test_a_partial_checkpoint_lists_the_first_missing_keys(tmp_path, random_micro):
    state = random_micro.model.state_dict()
    partial = {key: value for key, value in state.items() if not key.startswith("transformer")}
    save_file(partial, tmp_path / "partial.safetensors")
    with pytest.raises(ValueError, match=r"Missing .*transformer\S+, \S+, \S+ and \d+ more$"):
        backbones.load_backbone(f"micro@{tmp_path}/partial.safetensors")


def test_weights_of_another_architecture(tmp_path, random_micro):
    torch.save(random_micro.model.state_dict(), tmp_path / "micro.pt")
    with pytest.raises(ValueError, match="micro-vit"):
        backbones.load_backbone(f"micro-vit@{tmp_path}/micro.pt")


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt"):
        backbones.load_backbone(f"micro@{tmp_path}/nowhere.pt")


class Code:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path):
    torch.save({"state_dict": Code(tmp_path / "ran")}, tmp_path / "code.pt")
    with pytest.raises(ValueError, match="plain tensors"):
        backbones.load_backbone(f"micro@{tmp_path}/code.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", b"junk", b"PK\x03\x04 cut off"])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_file_that_is_no_checkpoint(tmp_path, content, suffix):
    file = tmp_path / f"bad.{suffix}"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"bad\.{suffix}[^\n]+$"):
        backbones.load_backbone(f"micro@{file}")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_torchscript_is_read_only_from_openai(tmp_path, monkeypatch, random_micro):
    file, archive = tmp_path / "archive.pt", torch.nn.Module()
    for key, value in random_micro.model.state_dict().items():
        *folders, name = key.split(".")
        module = archive
        for folder in folders:
            if not hasattr(module, folder):
                module.add_module(folder, torch.nn.Module())
            module = getattr(module, folder)
        module.register_buffer(name, value)
    archive.register_buffer("context_length", torch.tensor(32))  # OpenAI's files carry such extras
    torch.jit.save(torch.jit.script(archive), file)
    with pytest.raises(ValueError, match="plain tensors"):
        backbones.load_backbone(f"micro@{file}")
    assert len(backbones.openai_hashes()) == 9
    monkeypatch.setattr(backbones, "openai_hashes", lambda: {_weights.hash_file(file)})
    loaded = backbones.load_backbone(f"micro@{file}")
    assert torch.equal(loaded.encode_image(images(loaded)), random_micro.encode_image(images(loaded)))


@pytest.mark.parametrize("place", ["hub cache", "clip cache", "network"])
def test_a_tag_brings_its_activation_and_preprocessing(tmp_path, monkeypatch, place):
    """Through open_clip's own table, for weights that were trained with QuickGELU; a file: URL is the network."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repo = tmp_path / "hub" / "models--someone--tagged"
    name, folder = {
        "hub cache": ("open_clip_model.safetensors", repo / "snapshots" / "abc"),
        "clip cache": ("tagged.pt", tmp_path / ".cache" / "clip"),
        "network": ("tagged.pt", tmp_path / "far"),
    }[place]
    folder.mkdir(parents=True)
    state = backbones.load_backbone("micro-vit@random").model.state_dict()
    save_file(state, folder / name) if place == "hub cache" else torch.save(state, folder / name)
    (repo / "refs").mkdir(parents=True, exist_ok=True)
    (repo / "refs" / "main").write_text("abc")

    stats = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "interpolation": "bilinear", "resize_mode": "squash"}
    url = (folder / name).as_uri() if place == "network" else "https://example.invalid/tagged.pt"
    tag = {"url": url, "hf_hub": "someone/tagged/" if place == "hub cache" else "", "quick_gelu": True, **stats}
    monkeypatch.setitem(pretrained._PRETRAINED, "micro-vit", {place.replace(" ", "_"): tag})
    tagged = backbones.load_backbone(f"micro-vit@{place.replace(' ', '_')}")
    plain = backbones.load_backbone("micro-vit@random")
    blocks = (*tagged.resblocks, *tagged.visual.transformer.resblocks)
    assert {type(block.mlp.gelu).__name__ for block in blocks} == {"QuickGELU"}
    assert {type(block.mlp.gelu).__name__ for block in plain.resblocks} == {"GELU"}
    assert {key: getattr(tagged, key) for key in stats} == stats
    assert tagged.id.startswith("micro-vit-quickgelu@")


@pytest.mark.parametrize("name", micro.NAMES)
def test_shipped_models_load_at_once(name):
    if not micro.model_path(name).is_file():
        pytest.skip("its weights are not in this checkout")
    start = time.time()
    backbone = backbones.load_backbone(name)
    assert time.time() - start < 5
    assert backbone.encode_image(images(backbone)).isfinite().all()
    assert backbone.id != backbones.load_backbone(f"{name}@random").id


def test_an_unknown_device_is_an_error():
    with pytest.raises(ValueError, match="'cud'"):
        backbones.load_backbone("micro", device="cud")
