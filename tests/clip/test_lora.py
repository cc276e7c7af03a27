"""LoRA in both towers: against merged weights, in the packed text encoder, with dropout, beside the frozen towers."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from unskew.clip import adapters, backbones, lora, text

TEXTS = ["a photo of a red box.", "a photo of a red cup.", "a photo of one small blue star here."]


def towers(name="micro-vit", dropout=0.0, seed=0):
    """A backbone, the same with LoRA that has learned something, and the LoRA modules."""
    backbone, generator = backbones.load_backbone(name), torch.Generator().manual_seed(seed)
    options = {"parts": "qkv", "scale": 0.7, "dropout": dropout}
    tuned, modules = lora.with_low_rank(backbone, lambda width: adapters.LowRank(width, 2, generator, **options))
    with torch.no_grad():
        for module in modules:
            for up in module.up:
                up.add_(0.1 * torch.randn(up.shape, generator=generator))
    return backbone, tuned, modules


def merged(backbone, modules):
    """A copy of the whole model whose weights are W + scale * BA; the text tower comes first."""
    twin, rest = copy.deepcopy(backbone), iter(modules)
    visual = getattr(getattr(twin.visual, "transformer", None), "resblocks", ())
    with torch.no_grad():
        for block in [*twin.resblocks, *visual]:
            low_rank = next(rest)
            changes = [up @ down.weight for up, down in zip(low_rank.up, low_rank.down, strict=True)]
            block.attn.in_proj_weight += 0.7 * torch.cat(changes)
    assert next(rest, None) is None
    return twin


@pytest.mark.parametrize("name", ["micro-vit", "micro"])
@torch.no_grad()
def test_both_towers_are_those_with_merged_weights(name):
    backbone, tuned, modules = towers(name)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    before = backbone.encode_image(images), text.encode_prompts(backbone, TEXTS)
    expected = merged(backbone, modules)
    torch.testing.assert_close(tuned.encode_image(images), expected.encode_image(images), rtol=1e-5, atol=1e-5)
    features = text.encode_prompts(tuned, TEXTS)
    torch.testing.assert_close(features, text.encode_prompts(expected, TEXTS), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features, text.encode_plain(tuned, TEXTS), rtol=1e-4, atol=1e-5)  # 77 tokens each
    assert (features - before[1]).abs().max() > 0.01
    assert (tuned.encode_image(images) - before[0]).abs().max() > (0.01 if name == "micro-vit" else -1)
    assert torch.equal(backbone.encode_image(images), before[0])  # the frozen towers are as they were
    assert torch.equal(text.encode_prompts(backbone, TEXTS), before[1])


def test_lora_starts_at_the_frozen_towers_and_is_no_entry_of_the_text_cache():
    backbone = backbones.load_backbone("micro-vit")
    names, templates = ["red box", "blue star"], ["a photo of a {}."]
    settings, first = (
        text._cache_settings(backbone, names, templates),
        text.zeroshot_classifier(backbone, names, templates),
    )
    generator = torch.Generator().manual_seed(0)
    tuned, modules = lora.with_low_rank(backbone, lambda width: adapters.LowRank(width, 2, generator, "qkv"))
    torch.testing.assert_close(text.zeroshot_classifier(tuned, names, templates), first)
    assert text._cache_settings(tuned, names, templates) is None
    assert text._cache_settings(backbone, names, templates) == settings is not None
    with torch.no_grad():
        modules[0].up[0].fill_(1.0)
    assert (text.zeroshot_classifier(tuned, names, templates) - first).abs().max() > 1e-3
    assert not any(weight.requires_grad for weight in backbone.parameters())
    trained = [weight for weight in tuned.parameters() if weight.requires_grad]
    assert {id(weight) for weight in trained} == {id(weight) for weight in modules.parameters()}


@pytest.mark.parametrize("batch_first", [True, False])
@torch.no_grad()
def test_attention_is_pytorchs_with_a_mask(batch_first):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)
    ours = lora.LoRAAttention(attention, adapters.LowRank(8, 2, torch.Generator().manual_seed(0), "qkv"))
    x, mask = torch.randn(3, 5, 8), torch.full((5, 5), -torch.inf).triu(1)
    x = x if batch_first else x.transpose(0, 1)
    expected = attention(x, x, x, need_weights=False, attn_mask=mask)[0]
    torch.testing.assert_close(ours(x, x, x, need_weights=False, attn_mask=mask)[0], expected)


@torch.no_grad()
def test_dropout_is_that_of_the_branch_of_each_part():
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    low_rank = adapters.LowRank(8, 2, torch.Generator().manual_seed(0), "qv", scale=0.7, dropout=0.25)
    for up in low_rank.up:
        up.normal_()
    ours = lora.LoRAAttention(attention, low_rank)
    x = torch.randn(4, 8)
    frozen = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    torch.manual_seed(3)
    masks = [F.dropout(torch.ones(4, 8), 0.25) for _ in "qv"]
    branches = [0.7 * (x * m) @ d.weight.T @ u.T for m, d, u in zip(masks, low_rank.down, low_rank.up, strict=True)]
    torch.manual_seed(3)
    torch.testing.assert_close(ours.train().project(x), frozen + torch.cat([branches[0], 0 * x, branches[1]], 1))
    plain = [0.7 * x @ d.weight.T @ u.T for d, u in zip(low_rank.down, low_rank.up, strict=True)]
    torch.testing.assert_close(ours.eval().project(x), frozen + torch.cat([plain[0], 0 * x, plain[1]], 1))
    torch.testing.assert_close(ours.project(x, "kv"), ours.project(x)[:, 8:])


def test_recomputed_blocks_draw_the_same_dropout(monkeypatch):
    _, tuned, modules = towers(dropout=0.5)
    modules.train()
    gradients = []
    for limit in (text.ACTIVATION_BYTES, 1):
        monkeypatch.setattr(text, "ACTIVATION_BYTES", limit)
        modules.zero_grad()
        torch.manual_seed(5)
        text.encode_prompts(tuned, TEXTS).square().sum().backward()
        gradients.append([weight.grad.clone() for weight in modules.parameters() if weight.grad is not None])
    for once, again in zip(*gradients, strict=True):
        torch.testing.assert_close(once, again)
    assert max(gradient.abs().max() for gradient in gradients[0]) > 1e-3


def test_a_tower_with_other_attention_is_an_error():
    backbone = copy.deepcopy(backbones.load_backbone("micro-vit"))
    backbone.resblocks[0].attn = nn.Identity()
    with pytest.raises(ValueError, match="micro-vit") as error:
        lora.with_low_rank(backbone, lambda width: adapters.LowRank(width, 2, torch.Generator(), "qkv"))
    assert "\n" not in str(error.value)
