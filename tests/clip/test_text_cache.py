"""Zero-shot classifiers are kept on disk by all that decides their bits."""

import copy

import pytest
import torch

from unskew.clip import backbones, text
from unskew.utils import row_store

NAMES, TEMPLATES = ["red circle", "blue star", "green_square"], ["a photo of a {}.", "a {} on white."]


@pytest.fixture
def encoded(monkeypatch):
    """The prompts that are encoded."""
    texts, encode = [], text.encode_prompts
    monkeypatch.setattr(text, "encode_prompts", lambda backbone, some: texts.extend(some) or encode(backbone, some))
    return texts


@pytest.fixture
def backbone():
    """A copy that may be changed."""
    return copy.deepcopy(backbones.load_backbone("micro"))


def as_another_process():
    row_store.open_folder.cache_clear()


def stored_files(cache):
    return list((cache.parent / "text").rglob("*.safetensors"))


def test_a_classifier_is_encoded_once_with_equal_bits(cache, encoded, backbone):
    expected = text._ensemble(backbone, NAMES, TEMPLATES)
    encoded.clear()
    first = text.zeroshot_classifier(backbone, NAMES, TEMPLATES)
    assert len(encoded) == 6 and len(stored_files(cache)) == 1
    second = text.zeroshot_classifier(backbone, tuple(NAMES), tuple(TEMPLATES))
    second.add_(1)  # a caller may change its copy
    as_another_process()
    third = text.zeroshot_classifier(backbones.load_backbone("micro"), NAMES, TEMPLATES)
    assert len(encoded) == 6 and len(stored_files(cache)) == 1
    assert torch.equal(first, expected) and torch.equal(third, expected)


OTHERS = {
    "name": (["red circle", "blue star", "green squares"], TEMPLATES, {}),
    "order of the names": (NAMES[::-1], TEMPLATES, {}),
    "borders of the names": (["red circle blue", "star", "green_square"], TEMPLATES, {}),
    "borders of the templates": (NAMES, [" ".join(TEMPLATES)], {}),
    "fewer names": (NAMES[:2], TEMPLATES, {}),
    "template": (NAMES, ["a photo of a {}.", "a {} on black."], {}),
    "fewer templates": (NAMES, TEMPLATES[:1], {}),
    "backbone": (NAMES, TEMPLATES, {"name": "micro-a"}),
    "precision": (NAMES, TEMPLATES, {"precision": "bf16"}),
}


@pytest.mark.parametrize("other", OTHERS)
def test_what_decides_a_classifier_has_its_own_file(other, cache, encoded, backbone):
    text.zeroshot_classifier(backbone, NAMES, TEMPLATES)
    names, templates, options = OTHERS[other]
    changed = backbones.load_backbone(**{"name": "micro"} | options)
    expected = text._ensemble(changed, names, templates)
    encoded.clear()
    found = text.zeroshot_classifier(changed, names, templates)
    assert torch.equal(found, expected) and len(encoded) == len(names) * len(templates)
    assert len(stored_files(cache)) == 2


def test_autocast_has_its_own_file(cache, encoded, backbone):
    exact = text.zeroshot_classifier(backbone, NAMES, TEMPLATES)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = text.zeroshot_classifier(backbone, NAMES, TEMPLATES)
    assert not torch.equal(mixed, exact) and len(encoded) == 12


def test_changed_weights_are_not_those_of_the_file(cache, encoded, backbone):
    """The backbone's id is that of the loaded weights; PyTorch does not count writes to ``data``."""
    before = text.zeroshot_classifier(backbone, NAMES, TEMPLATES)
    weight = backbone.resblocks[0].mlp.c_fc.weight
    original = weight.detach().clone()
    weight.data.mul_(1.5)
    changed = text.zeroshot_classifier(backbone, NAMES, TEMPLATES)
    assert not torch.equal(changed, before) and torch.equal(changed, text._ensemble(backbone, NAMES, TEMPLATES))
    weight.data.copy_(original)
    encoded.clear()
    assert torch.equal(text.zeroshot_classifier(backbone, NAMES, TEMPLATES), before) and encoded == []


def test_another_activation_and_another_tokenizer_have_their_own_files(cache, encoded, backbone):
    text.zeroshot_classifier(backbone, NAMES, TEMPLATES)
    for block in backbone.resblocks:
        block.mlp.gelu = torch.nn.ReLU()
    relu = text.zeroshot_classifier(backbone, NAMES, TEMPLATES)
    assert torch.equal(relu, text._ensemble(backbone, NAMES, TEMPLATES))
    original = backbone.tokenizer
    backbone.tokenizer = lambda texts, length: original([words.replace("star", "circle") for words in texts], length)
    other = text.zeroshot_classifier(backbone, NAMES, TEMPLATES)
    assert torch.equal(other, text._ensemble(backbone, NAMES, TEMPLATES)) and not torch.equal(other, relu)
    assert len(stored_files(cache)) == 3


@pytest.mark.parametrize("reason", ["trained", "hooked"])
def test_a_tower_that_is_trained_or_hooked_writes_nothing(reason, cache, backbone):
    if reason == "trained":
        backbone.ln_final.requires_grad_(True)
    else:
        backbone.ln_final.register_forward_hook(lambda module, inputs, output: 2 * output + 1)
    found = text.zeroshot_classifier(backbone, NAMES, TEMPLATES)
    assert torch.equal(found, text._ensemble(backbone, NAMES, TEMPLATES)) and not stored_files(cache)


def test_a_damaged_file_is_made_again_with_one_warning(cache, encoded, backbone, warned):
    expected = text.zeroshot_classifier(backbone, NAMES, TEMPLATES)
    (file,) = stored_files(cache)
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    as_another_process()
    assert torch.equal(text.zeroshot_classifier(backbone, NAMES, TEMPLATES), expected)
    assert len(encoded) == 12 and len(warned()) == 1 and file.name in warned()[0]
    as_another_process()
    assert torch.equal(text.zeroshot_classifier(backbone, NAMES, TEMPLATES), expected) and len(encoded) == 12


def test_without_a_place_to_write_a_classifier_is_kept_in_memory(cache, encoded, backbone, warned):
    cache.parent.write_text("a file where the folder should be")
    rows = [text.zeroshot_classifier(backbone, NAMES, TEMPLATES) for _ in range(2)]
    assert torch.equal(*rows) and len(encoded) == 6
    assert len(warned()) == 1 and "in memory" in warned()[0]


def test_a_classifier_of_a_patched_tower_is_not_cached(cache, backbone):
    mlp = backbone.resblocks[0].mlp
    plain, forward = text.zeroshot_classifier(backbone, NAMES, TEMPLATES), mlp.forward
    mlp.forward = lambda x: 2 * forward(x)
    patched = text.zeroshot_classifier(backbone, NAMES, TEMPLATES)
    assert torch.equal(patched, text._ensemble(backbone, NAMES, TEMPLATES)) and not torch.equal(patched, plain)


def test_class_names_may_hold_bytes_that_are_not_utf8(cache, backbone):
    names = ["a\udcffb", "c"]
    expected = text._ensemble(backbone, names, TEMPLATES)
    assert torch.equal(text.zeroshot_classifier(backbone, names, TEMPLATES), expected)
