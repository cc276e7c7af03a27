"""Adapters in image towers: exact at initialisation, and each against a forward pass written by hand."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from unskew.clip import adapters, backbones

# The variants of open_clip's vision transformer, and towers that are none.
VITS = {
    "plain": {},
    "averaged, layer scale": {"pool_type": "avg", "ls_init_value": 0.1, "final_ln_after_pool": True},
    "custom block": {"qk_norm": True, "scale_attn": True, "scale_fc": True},
    "attentional pool": {
        "attentional_pool": True,
        "attn_pooler_queries": 3,
        "attn_pooler_heads": 2,
        "output_tokens": True,
    },
}
OTHERS = ("micro", "timm")
CASES = [(tower, name) for tower in ("micro-vit", *VITS) for name in adapters.IN_TOWER]
CASES += [(tower, name) for tower in OTHERS for name in ("bitfit", "full")]


def build_tower(name):
    """An image tower of open_clip and images for it."""
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    torch.manual_seed(0)
    if name in VITS:
        return VisionTransformer(16, 8, 16, 2, 2, 2.0, output_dim=6, **VITS[name]), torch.randn(3, 3, 16, 16)
    if name == "timm":
        return TimmModel("test_vit", 16, 160, pool="token"), torch.randn(2, 3, 160, 160)
    return backbones.load_backbone(name).visual, torch.randn(3, 3, 32, 32)


def adapted(visual, name, width=3, deep=True, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return adapters.adapt(adapters.frozen_copy(visual), name, width, generator, deep)


def trained(tower, seed=2):
    """A tower whose adapters have learned something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in tower.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return tower


@pytest.mark.parametrize(("tower", "name"), [case for case in CASES if case[1] != "vpt"])
@torch.no_grad()
def test_at_initialisation_the_tower_is_the_frozen_one(tower, name):
    visual, images = build_tower(tower)
    frozen, model = adapters.frozen_copy(visual), adapted(visual, name)
    # Whether a weight requires gradients may choose PyTorch's kernel; for the whole tower that is rounding.
    tolerance = {"rtol": 0, "atol": 1e-6 if name == "full" else 0}
    torch.testing.assert_close(model(images), frozen(images), **tolerance)
    if name == "full":
        assert all(torch.equal(value, frozen.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("tower", "name"), CASES)
def test_only_the_adapter_gets_gradients_and_the_original_is_left_alone(tower, name):
    visual, images = build_tower(tower)
    before = {key: value.clone() for key, value in visual.state_dict().items()}
    original = {key.removesuffix(".original").replace("parametrizations.", "") for key in before}
    model = trained(adapted(visual, name))
    model(images).square().sum().backward()
    with_gradient = {key for key, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    if name == "bitfit":
        assert all(key.endswith("bias") for key in with_gradient)
    elif name != "full":
        assert with_gradient
        assert not with_gradient & original
    assert visual.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in visual.state_dict().items())
    assert all(parameter.grad is None for parameter in visual.parameters())


@torch.no_grad()
def test_the_copy_stops_before_a_projection_matrix():
    visual, images = build_tower("micro-vit")
    assert torch.equal(adapters.frozen_copy(visual)(images) @ visual.proj, visual(images))
    for name in OTHERS:
        visual, images = build_tower(name)
        assert torch.equal(adapters.frozen_copy(visual)(images), visual.eval()(images))


# --- forward passes written by hand ------------------------------------------------------------------


def attend(block, x, weight=None):
    """Multi-head attention of a block, [B, L, D] -> [B, L, D]."""
    attn = block.attn
    weight = attn.in_proj_weight if weight is None else weight
    q, k, v = (x @ weight.T + attn.in_proj_bias).chunk(3, dim=-1)
    rows = []
    for head in range(attn.num_heads):
        part = slice(head * attn.head_dim, (head + 1) * attn.head_dim)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / attn.head_dim**0.5
        rows.append(scores.softmax(-1) @ v[..., part])
    return torch.cat(rows, -1) @ attn.out_proj.weight.T + attn.out_proj.bias


def embed(visual, images):
    patches = visual.conv1(images).flatten(2).transpose(1, 2)
    first = visual.class_embedding.expand(len(images), 1, -1)
    return visual.ln_pre(torch.cat([first, patches], 1) + visual.positional_embedding)


def pool(visual, x, tokens=0):
    """The mean of the patches' rows, behind the class token and ``tokens`` prompts, as micro-vit has it."""
    assert visual.pool_type == "avg"
    return visual.ln_post(x)[:, 1 + tokens :].mean(1)


@torch.no_grad()
def test_adaptformer_is_its_formula():
    visual, images = build_tower("micro-vit")
    model = trained(adapted(visual, "adaptformer")).double()
    visual, images = copy.deepcopy(visual).double(), images.double()
    x = embed(visual, images)
    for block, ours in zip(visual.transformer.resblocks, model.transformer.resblocks, strict=True):
        weights = dict(ours.mlp.adapter.named_parameters())
        x = x + attend(block, block.ln_1(x))
        mean, var = x.mean(-1, keepdim=True), x.var(-1, correction=0, keepdim=True)
        hidden = (x - mean) / (var + 1e-5).sqrt() * weights["ln.weight"] + weights["ln.bias"]
        hidden = (hidden @ weights["down.weight"].T + weights["down.bias"]).clamp_min(0)
        branch = weights["scale"] * (hidden @ weights["up.weight"].T + weights["up.bias"])
        x = x + block.mlp(block.ln_2(x)) + branch
        assert branch.abs().max() > 0.1
    torch.testing.assert_close(model(images), pool(visual, x), rtol=0, atol=1e-6)


@torch.no_grad()
def test_adapters_branch_equals_a_float64_reference():
    generator = torch.Generator().manual_seed(0)
    adapter = adapters.Adapter(8, 4, generator)
    assert torch.equal(adapter(torch.ones(1, 8)), torch.zeros(1, 8))
    assert adapter.scale.item() == 1
    trained(adapter)
    x = torch.randn(5, 8, generator=generator)
    w = {key: value.double() for key, value in adapter.state_dict().items()}
    for row, out in zip(x.double(), adapter(x), strict=True):
        normal = (row - row.mean()) / (row.var(correction=0) + 1e-5).sqrt() * w["ln.weight"] + w["ln.bias"]
        hidden = [max(0.0, float(w["down.weight"][i] @ normal + w["down.bias"][i])) for i in range(4)]
        expected = w["scale"] * (w["up.weight"] @ torch.tensor(hidden, dtype=torch.float64) + w["up.bias"])
        torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=1e-6)
    bottleneck = adapters.Bottleneck(8, 4, generator)
    assert torch.equal(bottleneck(x), x)
    trained(bottleneck)
    assert torch.equal(bottleneck(x), x + bottleneck.adapter(x))


@torch.no_grad()
def test_lora_is_a_low_rank_change_of_queries_and_values():
    visual, images = build_tower("micro-vit")
    model = trained(adapted(visual, "lora", width=2))
    merged = adapters.frozen_copy(visual)
    for block, ours in zip(merged.transformer.resblocks, model.transformer.resblocks, strict=True):
        lora = ours.attn.parametrizations.in_proj_weight[0]
        width = block.attn.embed_dim
        changes = [lora.up[i] @ lora.down[i].weight for i in range(2)]
        assert [torch.linalg.matrix_rank(change).item() for change in changes] == [2, 2]
        block.attn.in_proj_weight[:width] += changes[0]
        block.attn.in_proj_weight[2 * width :] += changes[1]
    torch.testing.assert_close(model(images), merged(images))


@pytest.mark.parametrize("deep", [True, False])
@torch.no_grad()
def test_vpt_is_its_formula(deep):
    visual, images = build_tower("micro-vit")
    model = trained(adapted(visual, "vpt", width=4, deep=deep))
    assert len(model.transformer.resblocks) == (4 if deep else 1)
    x = embed(visual, images)
    for number, block in enumerate(visual.transformer.resblocks):
        if deep or number == 0:
            tokens = model.transformer.resblocks[number].prompts
            own = x if number == 0 else torch.cat([x[:, :1], x[:, 5:]], 1)
            x = torch.cat([own[:, :1], tokens.expand(len(x), -1, -1), own[:, 1:]], 1)
        x = x + attend(block, block.ln_1(x))
        x = x + block.mlp(block.ln_2(x))
    torch.testing.assert_close(model(images), pool(visual, x, tokens=4), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_vpt_starts_within_xaviers_bound():
    visual, _ = build_tower("micro-vit")
    prompts = torch.cat([block.prompts for block in adapted(visual, "vpt", 10).transformer.resblocks])
    bound = (6 / (3 * 4 * 4 + 96)) ** 0.5
    assert 0.99 * bound < prompts.abs().max() <= bound


def test_bitfit_trains_every_bias_and_full_everything():
    visual, _ = build_tower("micro-vit")
    biases = sum(p.numel() for key, p in visual.named_parameters() if "bias" in key)
    found = {
        name: sum(p.numel() for p in adapted(visual, name).parameters() if p.requires_grad)
        for name in ("bitfit", "full")
    }
    assert found == {"bitfit": biases, "full": sum(p.numel() for p in visual.parameters()) - visual.proj.numel()}


# --- names, widths, seeds ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "layers", "width"), [(1000, 12, 32), (365, 12, 8), (8142, 12, 256), (100, 12, 4), (10, 12, 1)]
)
def test_default_widths_are_the_published_ones(classes, layers, width):
    assert adapters.default_width(classes, layers) == width


def test_an_adapter_that_the_tower_does_not_take_is_an_error():
    vit, resnet = build_tower("micro-vit")[0], build_tower("micro")[0]
    assert [adapters.check_adapter("", tower) for tower in (vit, resnet)] == ["adaptformer", "bottleneck"]
    for name in adapters.IN_BLOCKS:
        with pytest.raises(ValueError, match=f"ModifiedResNet .*bitfit, full, .*'{name}'"):
            adapters.check_adapter(name, resnet)
        with pytest.raises(ValueError, match="TimmModel"):
            adapted(build_tower("timm")[0], name)
    with pytest.raises(ValueError, match=r"VisionTransformer .*adapter'"):
        adapters.check_adapter("adapter", vit)


@pytest.mark.parametrize("name", adapters.IN_BLOCKS)
def test_an_adapter_is_where_its_tower_is(name):
    visual, images = build_tower("plain")
    model = adapted(visual.to("meta"), name)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert model(images.to("meta")).shape == (3, 16)


@pytest.mark.parametrize("name", adapters.IN_BLOCKS)
def test_the_generator_decides_every_bit(name):
    visual, _ = build_tower("plain")
    first, again, other = (adapted(visual, name, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert not all(torch.equal(value, other[key]) for key, value in first.items())


def test_a_tower_in_half_precision_is_tuned_in_float32():
    visual, images = build_tower("plain")
    half = visual.to(torch.bfloat16)
    assert {p.dtype for p in adapted(half, "full").parameters()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        out = adapted(half, "adaptformer")(images)
    assert F.cosine_similarity(out.float(), adapters.frozen_copy(half)(images)).min() > 0.99
    assert isinstance(half.proj, nn.Parameter)
