"""Tiny towers with random weights, and an encoder's output with its gradient, for the tests of text."""

import json

import open_clip
import torch

from unskew.clip import backbones
from unskew.clip.prompts import POSITIONS, LearnableContext, ResidualContext, fill

NAMES = ["tench", "great_white_shark", "kite (bird of prey)", "a", "desert grassland whiptail lizard of the far south"]
TEXT = {"context_length": 40, "vocab_size": 49408, "width": 48, "heads": 4, "layers": 3}
CAUSAL = {
    "tiny": {},
    "tiny-quick": {"quick_gelu": True},
    "tiny-custom": {"custom_text": True, "text_cfg": {"ls_init_value": 0.3, "proj_bias": True, "mlp_ratio": 2.0}},
    "tiny-eos": {"custom_text": True, "text_cfg": {"pool_type": "eos", "eos_id": 49407, "proj_type": "none"}},
    "tiny-shallow": {"text_cfg": {"layers": 1}},
}
PLAIN = {
    "tiny-both-ways": {"custom_text": True, "text_cfg": {"no_causal_mask": True, "pool_type": "last"}},
    "tiny-last": {"custom_text": True, "text_cfg": {"pool_type": "last"}},
    "tiny-norms": {"text_cfg": {"qk_norm": True}},
    "tiny-coca": {
        "custom_text": True,
        "text_cfg": {"embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {"context_length": 40, "vocab_size": 49408, "width": 48, "heads": 4, "layers": 1},
        "vision_cfg": {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
    },
}


def add_architectures(folder):
    """Make the towers known to open_clip."""
    for name, change in (CAUSAL | PLAIN).items():
        vision = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16}
        config = {"embed_dim": 48, "vision_cfg": vision, "text_cfg": TEXT}
        config |= {k: config[k] | v if k in config else v for k, v in change.items()}
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


def load(name, **options):
    return backbones.load_backbone(f"{name}@random", **options)


def learners(backbone, names=NAMES):
    generator = torch.Generator().manual_seed(0)
    for position in POSITIONS:
        for csc in (False, True):
            yield LearnableContext(backbone, names, 7, csc=csc, position=position, generator=generator)
    residual = ResidualContext(backbone, fill("a photo of a {}.", names))
    torch.nn.init.normal_(residual.residual, std=0.02, generator=generator)
    yield residual


def outputs_and_gradient(encode, backbone, learner):
    learner.zero_grad()
    features = encode(backbone, learner())
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
    (features * weights).sum().backward()
    return features.detach(), next(learner.parameters()).grad.clone()


def assert_close(a, b, tolerance=1e-5):
    assert a.shape == b.shape and b.abs().max() > 0
    assert (a - b).abs().max() <= tolerance * b.abs().max()
