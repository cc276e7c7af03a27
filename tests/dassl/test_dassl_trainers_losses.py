"""One step of each of Dassl's trainers against the independent loops of `trainer_loops`."""

import pytest
import torch
from toy_domains import CLASSES, SIDE, WIDTH, make_cfg, seed_all
from trainer_loops import LOOPS, RATE, Loop, probabilities

from unskew.dassl import engine

PLAIN = ("OPTIM.LR", RATE, "OPTIM.MOMENTUM", 0.0, "OPTIM.WEIGHT_DECAY", 0.0, "OPTIM.MAX_EPOCH", 5)


def make_batches(name):
    """Return a labelled batch of 12 images, 4 of each domain, and an unlabelled one of 6, in float64."""
    generator = torch.Generator().manual_seed(3)

    def images(count):
        return torch.randn(count, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)

    batches = []
    for count in (12, 6):
        views = 2 if name in ("MixMatch", "SE", "CDAC") else 1
        batch = {key: [images(count) for _ in range(views)] for key in ("img", "img2")}
        batch = {key: found if views > 1 else found[0] for key, found in batch.items()}
        labels = torch.randint(CLASSES, (count,), generator=generator)
        batches.append({**batch, "label": labels, "domain": torch.arange(count) % 3})
    return batches


@pytest.mark.parametrize("name", LOOPS)
def test_one_step_equals_an_independent_loop(name, tmp_path):
    loop, *pairs = LOOPS[name]
    if name == "ADDA":
        build("SourceOnly", tmp_path, "TEST.NO_TEST", True).train()
        pairs = ["MODEL.INIT_WEIGHTS", str(tmp_path / "run" / "model" / "model.pth.tar-5")]
    trainer = build(name, tmp_path, *pairs)
    for module in (*trainer._models.values(), *extra_networks(trainer)):
        module.double()
    if hasattr(trainer, "teacher"):
        with torch.no_grad():  # a teacher that differs from the model
            for number, weight in enumerate(trainer.teacher.parameters()):
                weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)))
    trainer.num_batches, trainer.epoch, trainer.batch_idx = 3, 2, 1  # the eighth step
    trainer.set_model_mode("train")
    mine = Loop(trainer)
    if hasattr(trainer, "teacher"):
        mine.parts["teacher"] = {key: mine.leaf(value) for key, value in trainer.teacher.state_dict().items()}
    labelled, unlabelled = make_batches(name)
    seed_all(7)
    expected = loop(mine, labelled, unlabelled)
    seed_all(7)
    batches = (labelled,) if isinstance(trainer, engine.TrainerX) else (labelled, unlabelled)
    found = trainer.forward_backward(*batches)
    assert found == pytest.approx(
        {key: float(torch.as_tensor(value).detach()) for key, value in expected.items()}, rel=1e-6, abs=1e-9
    )
    networks = {**trainer._models, **({"teacher": trainer.teacher} if hasattr(trainer, "teacher") else {})}
    for part, weights in mine.parts.items():
        for key, value in networks[part].state_dict().items():
            if "running" not in key and "num_batches" not in key:
                torch.testing.assert_close(value, weights[key].detach(), rtol=1e-6, atol=1e-8, msg=f"{part}.{key}")


def build(name, folder, *pairs):
    seed_all()
    return engine.build_trainer(make_cfg(name, folder, *PLAIN, *pairs))


def extra_networks(trainer):
    return [getattr(trainer, name) for name in ("teacher", "source_model") if hasattr(trainer, name)]


def test_adabn_takes_the_targets_statistics_alone(tmp_path):
    norm = ("MODEL.BACKBONE.NAME", "toy_norm")
    source = build("SourceOnly", tmp_path, *norm, "TEST.NO_TEST", True)
    source.train()
    path = tmp_path / "run" / "model" / "model.pth.tar-5"
    trainer = build("AdaBN", tmp_path, *norm, "MODEL.INIT_WEIGHTS", str(path), "OUTPUT_DIR", str(tmp_path / "adabn"))
    trainer.set_model_mode("train")
    trainer.before_epoch()
    _, unlabelled = make_batches("AdaBN")
    images = [unlabelled["img"].float() + shift for shift in (0.0, 2.0)]
    for image in images:
        assert trainer.forward_backward(None, {"img": image}) is None
    mean = torch.zeros(3)
    for image in images:
        mean = 0.9 * mean + 0.1 * image.mean((0, 2, 3))  # the momentum of PyTorch's batch norm
    torch.testing.assert_close(trainer.model.backbone.norm.running_mean, mean)
    for key, value in source.model.named_parameters():
        assert torch.equal(trainer.model.state_dict()[key], value)


def test_predictions_of_ensembles_are_mean_probabilities(tmp_path):
    image = make_batches("DAEL")[0]["img"].float()
    for name, heads in (("DAEL", "linears.{}."), ("M3SDA", "{}.c1.")):
        trainer = build(name, tmp_path)
        trainer.set_model_mode("eval")
        mine = Loop(trainer)
        part = "E" if name == "DAEL" else "C"
        features = mine.features(image)
        assert features.shape == (12, WIDTH)
        mean = sum(probabilities(mine.linear(features, part, heads.format(k))) for k in range(3)) / 3
        torch.testing.assert_close(trainer.model_inference(image), mean)
