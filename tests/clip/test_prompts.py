import copy

import pytest
import torch

from unskew.clip import backbones, prompts

NAMES = ["red_circle", "star", "a very striped green triangle", "x", "zebra (animal)"]


@pytest.fixture(scope="module")
def backbone():
    return backbones.load_backbone("micro@random")


def words(backbone, text):
    """The tokens of a text without start and end."""
    return backbone.tokenizer.encode(text)


def by_class(found):
    """Prompts -> a list of [n, W], prefix included."""
    return [torch.cat([found.prefix, own]) for own in found.suffix.split(found.lengths)]


def embedded(backbone, text):
    """A text's embeddings up to the end token, cut from the padded row at its largest id, as CLIP finds it."""
    ids = backbone.tokenizer([text])[0]
    return backbone.token_embedding(ids[: ids.argmax() + 1])


def test_fill():
    assert prompts.fill("a {}, a type of {}.", ["sea_lion"]) == ["a sea lion, a type of sea lion."]
    assert prompts.fill("{}", ["{}% {x}"]) == ["{}% {x}"]
    with pytest.raises(ValueError, match=r"'a photo\.'.*\{\}"):
        prompts.fill("a photo.", ["dog"])


@pytest.mark.parametrize("names", [NAMES, NAMES[:1], ["red", "red"], ["star", "star red"], ["", "blue"]])
def test_fixed_prompts_are_the_embedded_texts(backbone, names):
    texts = [f"a photo of a {name}." for name in names]
    found = prompts.fixed_prompts(backbone, texts)
    assert min(found.lengths) >= 1 and sum(found.lengths) == len(found.suffix)
    for row, text in zip(by_class(found), texts, strict=True):
        assert torch.equal(row, embedded(backbone, text))


def test_the_shared_prefix_is_the_longest(backbone):
    found = prompts.fixed_prompts(backbone, ["a photo of a red star.", "a photo of a red moon.", "a photo of a red x"])
    assert len(found.prefix) == 1 + len(words(backbone, "a photo of a red"))
    same = prompts.fixed_prompts(backbone, ["a star.", "a star."])
    assert same.lengths == (1, 1)  # the end token alone
    apart = prompts.fixed_prompts(backbone, ["red", "green"])
    assert len(apart.prefix) == 1


def test_a_prompt_that_is_too_long(backbone):
    name = "very " * 40 + "long"
    count = len(words(backbone, f"a {name}.")) + 2
    with pytest.raises(ValueError, match=rf"'a very .* long\.'.* {count} tokens.*micro@random.* 32"):
        prompts.fixed_prompts(backbone, ["a dog.", f"a {name}."])
    fits = 32 - 16 - len(words(backbone, ".")) - 2
    letters = " ".join("x" * fits)
    prompts.LearnableContext(backbone, [letters], n_ctx=16)
    with pytest.raises(ValueError, match=r"33 tokens.*17 .*context.* 32"):
        prompts.LearnableContext(backbone, [letters], n_ctx=17)
    with pytest.raises(ValueError, match="no class names"):
        prompts.fixed_prompts(backbone, [])


def coop(backbone, learner, names, position, suffix="."):
    """CoOp's own recipe: embed "X X ... X name.", cut it at the context and the name, and put the context in."""
    ctx = learner.ctx if learner.ctx.ndim == 3 else learner.ctx.expand(len(names), -1, -1)
    n, half, rows = ctx.shape[1], ctx.shape[1] // 2, []
    for context, name in zip(ctx, [name.replace("_", " ") for name in names], strict=True):
        row = embedded(backbone, " ".join(["X"] * n) + " " + name + suffix)
        start, end = row[:1], row[1 + n :]
        k = len(words(backbone, name))
        order = {
            "end": [start, context, end],
            "middle": [start, context[:half], end[:k], context[half:], end[k:]],
            "front": [start, end[:k], context, end[k:]],
        }
        rows.append(torch.cat(order[position]))
    return rows


@pytest.mark.parametrize("position", prompts.POSITIONS)
@pytest.mark.parametrize("csc", [False, True])
@pytest.mark.parametrize("n_ctx", [1, 5])
def test_token_order_is_coops(backbone, position, csc, n_ctx):
    learner = prompts.LearnableContext(backbone, NAMES, n_ctx, csc=csc, position=position)
    assert learner.ctx.shape == ((len(NAMES), n_ctx, 64) if csc else (n_ctx, 64))
    for row, expected in zip(by_class(learner()), coop(backbone, learner, NAMES, position), strict=True):
        assert torch.equal(row, expected)


@pytest.mark.parametrize("position", prompts.POSITIONS)
def test_rows_with_the_same_history_are_known(backbone, position):
    names = ["red box", "red cup", "blue red", "red box", "red"]
    learned = prompts.LearnableContext(backbone, names, 3, position=position)()
    for found in (learned, prompts.fixed_prompts(backbone, [f"a {name}." for name in names])):
        seen, expected = {}, []
        for rows in found.suffix.split(found.lengths):
            for n in range(1, len(rows) + 1):
                expected.append(seen.setdefault(str(rows[:n].tolist()), len(expected)))
        assert found.prefix_ids == tuple(expected) != tuple(range(len(found.suffix)))


def test_contexts_of_their_own_have_no_history_in_common(backbone):
    assert prompts.LearnableContext(backbone, ["red box", "red cup"], 3, csc=True)().prefix_ids is None
    assert prompts.ResidualContext(backbone, ["a red box.", "a red cup."])().prefix_ids is None


def test_a_shared_context_before_the_name_is_shared(backbone):
    for position, shared in (("end", 5), ("middle", 2), ("front", 0)):
        assert len(prompts.LearnableContext(backbone, NAMES, 5, position=position)().prefix) == 1 + shared


def test_the_noise_comes_from_the_generator(backbone):
    def context(seed, **options):
        generator = torch.Generator().manual_seed(seed)
        return prompts.LearnableContext(backbone, NAMES, 16, generator=generator, **options).ctx

    assert torch.equal(context(1), context(1)) and not torch.equal(context(1), context(2))
    assert 0.018 < context(1, csc=True).std() < 0.022
    assert not torch.equal(context(1, csc=True)[0], context(1, csc=True)[1])


@pytest.mark.parametrize("csc", [False, True])
def test_ctx_init_counts_tokens_not_words(backbone, csc):
    text = "a centered satellite photo of"
    tokens = words(backbone, text)
    assert len(tokens) > len(text.split())
    learner = prompts.LearnableContext(backbone, NAMES, n_ctx=3, ctx_init=text.replace(" ", "_"), csc=csc)
    assert learner.ctx.shape[-2] == len(tokens)
    # Untrained, it is the hand-made prompt.
    for row, name in zip(by_class(learner()), NAMES, strict=True):
        assert torch.equal(row, embedded(backbone, f"{text} {name.replace('_', ' ')}."))


def test_ctx_init_with_a_hole_keeps_what_follows(backbone):
    template = "a photo of {}, a type of x"
    learner = prompts.LearnableContext(backbone, NAMES, ctx_init=template)
    assert learner.ctx.shape == (len(words(backbone, "a photo of")), 64)
    for row, text in zip(by_class(learner()), prompts.fill(template, NAMES), strict=True):
        assert torch.equal(row, embedded(backbone, text))


@pytest.mark.parametrize("options", [{"ctx_init": "{} texture."}, {"n_ctx": 0}, {"n_ctx": -1}])
def test_no_context_is_refused(backbone, options):
    with pytest.raises(ValueError, match="at least one token"):
        prompts.LearnableContext(backbone, NAMES, **options)


def test_an_unknown_position(backbone):
    with pytest.raises(ValueError, match=r"'ende'.*end"):
        prompts.LearnableContext(backbone, NAMES, position="ende")


def test_the_residual_starts_at_the_hand_made_prompt_and_spares_both_ends(backbone):
    texts = prompts.fill("a photo of a {}.", NAMES)
    learner = prompts.ResidualContext(backbone, texts)
    inner = [len(words(backbone, text)) for text in texts]
    assert learner.residual.shape == (sum(inner), 64) and not learner.residual.any()
    for row, text in zip(by_class(learner()), texts, strict=True):
        assert torch.equal(row, embedded(backbone, text))
    with torch.no_grad():
        learner.residual += 1 + torch.arange(len(learner.residual))[:, None]
    first = 1
    for row, text, n in zip(by_class(learner()), texts, inner, strict=True):
        shift = torch.cat([torch.zeros(1), torch.arange(first, first + n), torch.zeros(1)])
        torch.testing.assert_close(row, embedded(backbone, text) + shift[:, None])
        first += n


def test_state_dicts_hold_only_what_is_learned(backbone):
    assert list(prompts.LearnableContext(backbone, NAMES).state_dict()) == ["ctx"]
    assert list(prompts.ResidualContext(backbone, NAMES).state_dict()) == ["residual"]


def test_a_tower_without_embeddings_is_named(backbone):
    strings_only = copy.deepcopy(backbone)  # as Hugging Face's text towers are in open_clip
    del strings_only.model.token_embedding
    with pytest.raises(ValueError, match="micro@random"):
        prompts.LearnableContext(strings_only, NAMES)
