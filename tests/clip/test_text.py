import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from towers import CAUSAL, NAMES, PLAIN, add_architectures, assert_close, learners, load, outputs_and_gradient

from unskew.clip import _packing, text
from unskew.clip.prompts import LearnableContext, Prompts, ResidualContext, fill, fixed_prompts


@pytest.fixture(scope="module", autouse=True)
def architectures(tmp_path_factory):
    add_architectures(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("names", [NAMES, NAMES[:1], ["a"], ["a", "a"]], ids=["all", "one", "one-token", "twice"])
def test_packed_equals_plain_in_outputs_and_gradients(name, names):
    backbone = load(name)
    assert backbone.causal
    for learner in learners(backbone, names):
        packed = outputs_and_gradient(text.encode_prompts, backbone, learner)
        plain = outputs_and_gradient(text.encode_plain, backbone, learner)
        assert_close(packed[0], plain[0])
        assert_close(packed[1], plain[1])


def test_the_packed_path_is_taken(monkeypatch):
    monkeypatch.setattr(text, "encode_plain", None)
    assert text.encode_prompts(load("tiny"), NAMES).shape == (5, 48)


@pytest.mark.parametrize("name", CAUSAL | PLAIN)
def test_strings_equal_open_clips_own_encoding(name):
    backbone = load(name)
    texts = fill("a photo of a {}.", NAMES)
    with torch.no_grad():
        expected = backbone.model.encode_text(open_clip.get_tokenizer(name)(texts), normalize=False)
        assert_close(text.encode_prompts(backbone, texts), expected)
        assert_close(text.encode_plain(backbone, texts), expected)
        assert_close(text.encode_plain(backbone, fixed_prompts(backbone, texts)), expected)
        each = [text.encode_prompts(backbone, [one]) for one in texts]
        assert_close(torch.cat(each), expected)


@pytest.mark.parametrize("name", PLAIN)
def test_other_towers_take_the_plain_path_with_gradients(name):
    """The untrained residual prompt is its text, and the gradient is a difference quotient."""
    backbone = load(name)
    assert not backbone.causal
    learner = ResidualContext(backbone, fill("a photo of a {}.", NAMES))
    features, gradient = outputs_and_gradient(text.encode_prompts, backbone, learner)
    assert_close(features, text.encode_prompts(backbone, fill("a photo of a {}.", NAMES)))
    direction, step = gradient / gradient.norm(), 1e-2
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
    values = []
    for sign in (step, -step):
        with torch.no_grad():
            learner.residual.copy_(sign * direction)
            values.append((text.encode_prompts(backbone, learner()) * weights).sum())
    assert_close((values[0] - values[1]) / (2 * step), gradient.norm(), 1e-2)


def test_the_longest_prompt_and_no_shared_start():
    backbone = load("tiny")
    own = torch.randn(40 + 1 + 7, 48, generator=torch.Generator().manual_seed(0))
    prompts = Prompts(own[:0], own, (40, 1, 7))
    with torch.no_grad():
        assert_close(text.encode_prompts(backbone, prompts), text.encode_plain(backbone, prompts))
    for encode in (text.encode_prompts, text.encode_plain):
        with pytest.raises(ValueError, match=r"41 .*tiny@random.* 40"):
            encode(backbone, Prompts(own[:1], own, (40, 1, 7)))


def test_the_plain_path_leaves_no_trace():
    backbone = load("tiny")
    before = text.encode_plain(backbone, NAMES)
    text.encode_plain(backbone, fixed_prompts(backbone, ["something else"]))
    with pytest.raises(RuntimeError):  # embeddings of another width
        text.encode_plain(backbone, Prompts(torch.zeros(1, 47), torch.zeros(1, 47), (1,)))
    assert torch.equal(before, text.encode_plain(backbone, NAMES))


@pytest.fixture
def fresh_layouts():
    _packing.pack.cache_clear()
    yield
    _packing.pack.cache_clear()


@pytest.mark.parametrize("tile", [1, 19, 40, 1000])
def test_tiles_of_any_size_give_the_plain_features_and_gradients(monkeypatch, fresh_layouts, tile):
    monkeypatch.setattr(_packing, "TILE", tile)
    backbone = load("tiny")
    names = [" ".join(["long"] * (i * i % 17) + ["name", str(i)]) for i in range(23)]
    for learner in learners(backbone, names):
        packed = outputs_and_gradient(text.encode_prompts, backbone, learner)
        plain = outputs_and_gradient(text.encode_plain, backbone, learner)
        assert_close(packed[0], plain[0])
        assert_close(packed[1], plain[1])


def test_no_part_is_cut_and_no_place_is_given_twice():
    layout = _packing.pack(5, (3, 30, 31, 1, 1, 7), None, torch.device("cpu"))
    assert layout.row_places.unique().numel() == len(layout.row_places) == 5 + 3 + 30 + 31 + 1 + 1 + 7
    assert torch.equal(layout.tile_rows[layout.row_places], torch.arange(78))
    tiles = (layout.row_places // 32).split([5, 3, 30, 31, 1, 1, 7])
    assert [tile.unique().tolist() for tile in tiles] == [[0], [0], [1], [2], [2], [3], [3]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mask_leaves_out_all_or_nothing(dtype):
    layout = _packing.pack(5, (3, 30, 1), None, torch.device("cpu"), dtype)
    for mask in (layout.mask, layout.end_mask):
        assert mask.dtype == dtype and mask.unique().tolist() == [-torch.inf, 0]


def test_what_classes_of_a_tile_have_in_common_is_encoded_once(monkeypatch, fresh_layouts):
    backbone = load("tiny")
    names = [f"{colour} {thing}" for colour in ("red", "blue") for thing in ("box", "cup", "red box", "box")]
    learner = LearnableContext(backbone, names, 3)
    prompts = learner()
    words = prompts.suffix.split(prompts.lengths)
    distinct = {tuple(map(tuple, rows[: n + 1].tolist())) for rows in words for n in range(len(rows))}
    rows = []
    monkeypatch.setattr(text, "_block", lambda *a, block=text._block: rows.append(len(x := block(*a))) or x)
    features = text.encode_prompts(backbone, learner())
    assert set(rows) == {len(prompts.prefix) + len(distinct)} and len(distinct) < len(prompts.suffix)
    assert_close(features, text.encode_plain(backbone, learner()))
    assert torch.equal(features[0], features[3])  # the same name twice


def kept_bytes(backbone, learner):
    """Bytes that the forward pass keeps for the backward pass, without the weights and the learner's tensors."""
    ours = {w.data_ptr() for w in [*backbone.parameters(), *learner.parameters(), *learner.buffers()]}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = text.encode_prompts(backbone, learner())
    assert features.requires_grad
    return sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in ours)


MANY = [f"{number} {name}" for number in range(8) for name in NAMES]


def bytes_per_block(backbone, learner):
    prompts = learner()
    layout = _packing.pack(len(prompts.prefix), prompts.lengths, prompts.prefix_ids, prompts.suffix.device)
    return text._activation_bytes(torch.cat([prompts.prefix, prompts.suffix]), layout)


@pytest.mark.parametrize(("name", "most"), [("tiny-quick", 1.1), ("tiny", 1.4)])
def test_the_estimate_of_activations_is_near_to_what_is_kept(name, most):
    backbone = load(name)
    *blocks, last = backbone.resblocks
    for learner in learners(backbone, MANY):
        kept = []
        for count in (1, 2):
            backbone.text.transformer.resblocks = nn.ModuleList([*blocks[:count], last])
            kept.append(kept_bytes(backbone, learner))
        backbone.text.transformer.resblocks = nn.ModuleList([*blocks, last])
        assert 0.9 < bytes_per_block(backbone, learner) / (kept[1] - kept[0]) < most


@pytest.mark.parametrize("autocast", [False, True])
def test_recomputed_blocks_change_nothing_but_the_memory(monkeypatch, autocast):
    backbone = load("tiny-custom")
    for learner in learners(backbone, MANY):
        results, memory = [], []
        for limit in (1 << 40, int(2.5 * bytes_per_block(backbone, learner)), 0):  # none, one, all but the last
            monkeypatch.setattr(text, "ACTIVATION_BYTES", limit)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                memory.append(kept_bytes(backbone, learner))
                results.append(outputs_and_gradient(text.encode_prompts, backbone, learner))
        assert memory[0] > memory[1] > memory[2]
        for features, gradient in results[1:]:
            assert_close(features, results[0][0], 1e-6)
            assert_close(gradient, results[0][1], 1e-6)


def test_two_gradients_of_one_forward_pass_with_recomputed_blocks(monkeypatch):
    backbone = load("tiny")
    learner = LearnableContext(backbone, NAMES, 4)
    gradients = []
    for limit in (1 << 40, 0):
        monkeypatch.setattr(text, "ACTIVATION_BYTES", limit)
        features = text.encode_prompts(backbone, learner())
        first = torch.autograd.grad(features.square().sum(), learner.ctx, retain_graph=True)[0]
        gradients.append((first, torch.autograd.grad(features[0].sum(), learner.ctx)[0]))
    for with_all, again in zip(*gradients, strict=True):
        assert_close(again, with_all, 1e-6)


def test_nothing_is_recomputed_where_there_is_no_backward_pass(monkeypatch):
    monkeypatch.setattr(text, "ACTIVATION_BYTES", 0)
    monkeypatch.setattr(text, "checkpoint", None)
    with torch.no_grad():
        assert text.encode_prompts(load("tiny"), NAMES).shape == (5, 48)


def test_names_alone_need_no_gradient():
    backbone = load("tiny")
    assert not LearnableContext(backbone, NAMES, 4)().suffix.requires_grad
    assert LearnableContext(backbone, NAMES, 4, position="middle")().suffix.requires_grad


def test_low_precision_and_autocast(monkeypatch):
    exact, masks = text.encode_prompts(load("tiny"), NAMES), set()
    attend = text._attend
    monkeypatch.setattr(text, "_attend", lambda query, *a: masks.add((query.dtype, a[-1].dtype)) or attend(query, *a))
    low = load("tiny", precision="bf16")
    learner = LearnableContext(low, NAMES, 4)
    features = text.encode_prompts(low, learner())
    assert features.dtype == torch.bfloat16
    assert masks == {(torch.bfloat16, torch.bfloat16)}  # a GPU's attention takes no other
    features.float().sum().backward()
    assert learner.ctx.dtype == learner.ctx.grad.dtype == torch.float32 and learner.ctx.grad.any()
    assert F.cosine_similarity(text.encode_prompts(low, NAMES).float(), exact).min() > 0.999
    with torch.autocast("cpu", torch.bfloat16):
        mixed = text.encode_prompts(load("tiny"), NAMES)
    assert F.cosine_similarity(mixed.float(), exact).min() > 0.999


@pytest.mark.parametrize("chunk", [1000, 2])
def test_the_zeroshot_classifier_is_the_slow_loop(monkeypatch, chunk):
    monkeypatch.setattr(text, "CHUNK", chunk)
    backbone = load("tiny")
    templates = ["a photo of a {}.", "{} texture.", "itap of my {}."]
    found = text.zeroshot_classifier(backbone, NAMES, templates)
    rows = []
    for name in NAMES:
        features = []
        for template in templates:
            ids = backbone.tokenizer([template.format(name.replace("_", " "))])
            feature = backbone.model.encode_text(ids)[0]
            features.append(feature / feature.norm())
        mean = torch.stack(features).mean(0)
        rows.append(mean / mean.norm())
    assert found.dtype == torch.float32 and not found.requires_grad
    assert_close(found, torch.stack(rows))
    assert_close(found.norm(dim=1), torch.ones(len(NAMES)))


def test_the_zeroshot_classifier_needs_templates():
    with pytest.raises(ValueError, match="template"):
        text.zeroshot_classifier(load("tiny"), NAMES, [])
    with pytest.raises(ValueError, match=r"\{\}"):
        text.zeroshot_classifier(load("tiny"), NAMES, ["a photo of a { }."])


@pytest.mark.parametrize("names", ["zero", [], [0, 1]])
def test_the_names_and_templates_of_a_classifier_are_lists_of_texts(names):
    backbone = load("tiny")
    with pytest.raises(ValueError, match="classnames"):
        text.zeroshot_classifier(backbone, names, ["a photo of a {}."])
    with pytest.raises(ValueError, match="templates"):
        text.zeroshot_classifier(backbone, ["zero"], names)
