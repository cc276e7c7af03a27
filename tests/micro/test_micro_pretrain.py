"""Tests of the shipped models of the embedded world and of their pre-training."""

import gzip

import numpy as np
import pytest
import torch
from safetensors import safe_open

from unskew.micro import drawn_datasets, pretrain, vocabulary, weights, world


@pytest.mark.parametrize("name", weights.DRAWN)
def test_shipped_model_is_small_and_classifies(name):
    path = weights.model_path(name)
    assert path.stat().st_size <= 3_000_000
    with safe_open(path, "pt") as file:
        tensors = [file.get_tensor(key) for key in file.keys()]  # noqa: SIM118 (not a dict)
    assert all(t.dtype == torch.float16 and t.isfinite().all() for t in tensors if t.is_floating_point())
    model = pretrain.create(name, path=path).eval()
    assert model.logit_scale.exp() <= pretrain.MAX_SCALE * 1.001
    labels = np.repeat(np.arange(96), 5)
    rng = np.random.default_rng(123)
    factors = {f: rng.integers(len(world.FACTORS[f]), size=len(labels)) for f in world.VISUAL}
    factors |= dict(zip(("shape", "colour"), np.unravel_index(labels, (12, 8)), strict=True))
    prompts = [world.TEMPLATES[0].format(phrase) for phrase in world.phrases(("shape", "colour"))]
    hits = pretrain.zero_shot(name, model, world.render(factors, rng=rng), prompts).argmax(1).numpy() == labels
    assert 100 * hits.mean() > FLOORS[name]  # chance is 1


FLOORS = {"micro": 35, "micro-a": 35, "micro-b": 10, "micro-c": 10, "micro-vit": 35}


def test_fifty_steps_lower_the_loss():
    _, history = pretrain.pretrain("micro", steps=50)
    assert len(history) == 50 and np.mean(history[-10:]) < np.mean(history[:10]) - 0.2


def test_same_seed_gives_the_same_weights():
    states = [pretrain.pretrain("micro", steps=2, seed=seed)[0].state_dict() for seed in (3, 3, 4)]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert any(not torch.equal(states[0][k], states[2][k]) for k in states[0])


def test_run_writes_what_open_clip_loads(tmp_path):
    import open_clip

    result = pretrain.run("micro", 2, tmp_path)
    assert len(result["history"]) == 2 and set(result["accuracy"]) == set(drawn_datasets.DATASETS) - {"shapes_shifted"}
    open_clip.add_model_config(tmp_path / "micro.json")
    model = open_clip.create_model("micro", pretrained=str(tmp_path / "micro.safetensors"))
    assert model.visual.image_size == (32, 32) or model.visual.image_size == 32
    assert tuple(model.visual.image_mean) == tuple(weights.image_stats()[0])


def test_cut_text_encoding_equals_open_clips():
    model = pretrain.create("micro", seed=0).eval()
    tokens = weights.tokenizer()([t.format("red circle") for t in world.TEMPLATES])
    longest = int(tokens.argmax(1).max()) + 1
    assert longest < tokens.shape[1]
    with torch.no_grad():
        assert torch.allclose(pretrain.encode_bank(model, tokens[:, :longest]), model.encode_text(tokens), atol=1e-6)


def test_the_loss_keeps_the_prior_and_infonce_does_not():
    """Compare the optima of both losses for a joint p(image, text) of two by two."""
    joint = torch.tensor([[0.6, 0.02], [0.2, 0.18]], dtype=torch.float64)  # [image, text]
    images, texts = (t.flatten() for t in torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij"))
    p_text = joint.sum(0)

    def fit(loss) -> torch.Tensor:
        table = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([table], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-12)

        def closure():
            optimizer.zero_grad()
            value = loss(table)
            value.backward()
            return value

        optimizer.step(closure)
        return table.detach().softmax(1)  # the estimate of p(text|image)

    def bank(table):  # the image-to-text half: every caption once
        return -(joint.flatten() * table.log_softmax(1)[images, texts]).sum()

    def sampled(table):  # InfoNCE with many negatives, drawn from p(text)
        return (
            -(joint.flatten() * (table + p_text.log()).log_softmax(1)[images, texts]).sum()
            + (joint.flatten() * p_text.log()[texts]).sum()
        )

    posterior = joint / joint.sum(1, keepdim=True)
    assert torch.allclose(fit(bank), posterior, atol=1e-5)
    without = posterior / p_text
    assert torch.allclose(fit(sampled), without / without.sum(1, keepdim=True), atol=1e-5)


@pytest.mark.parametrize("name", ["micro", "micro-emoji"])
def test_vocabulary_is_reproducible(tmp_path, name):
    vocabulary.write(tmp_path / "v.gz", name)
    ours, again = (gzip.decompress(p.read_bytes()) for p in (weights.vocabulary(name), tmp_path / "v.gz"))
    assert ours == again and not ours.endswith(b"\n")


def test_unknown_model():
    with pytest.raises(ValueError, match="micro-vit"):
        pretrain.pretrain("micro-vitt")
    with pytest.raises(ValueError, match="steps"):
        pretrain.pretrain("micro", steps=0)
