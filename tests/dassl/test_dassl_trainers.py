"""Dassl's own trainers: they are registered, they learn, they resume, and they refuse configs that do not suit them."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy_domains import CLASSES, make_cfg, seed_all

from unskew.dassl import engine, finder
from unskew.dassl.trainers import da, dg, ssl

LOSSES = {
    "AdaBN": (),
    "ADDA": ("loss_critic", "loss_model"),
    "CDAC": (
        *("loss_x", "acc_x", "loss_u", "aac_loss", "pl_loss", "cons_loss"),
        *("p_u_pred_acc", "p_u_pred_acc_thre", "p_u_pred_keep"),
    ),
    "CrossGrad": ("loss_f", "loss_d"),
    "DAEL": ("loss_x", "acc_x", "loss_cr", "loss_u"),
    "DAELDG": ("loss_x", "acc", "loss_cr"),
    "DANN": ("loss_x", "acc_x", "loss_d"),
    "DDAIG": ("loss_g", "loss_f", "loss_d"),
    "DomainMix": ("loss", "acc"),
    "EntMin": ("loss_x", "acc_x", "loss_u"),
    "FixMatch": ("loss_x", "acc_x", "loss_u", "y_u_pred_acc_raw", "y_u_pred_acc_thre", "y_u_pred_keep"),
    "M3SDA": ("loss_step_A", "loss_step_B", "loss_step_C"),
    "MCD": ("loss_step_A", "loss_step_B", "loss_step_C"),
    "MME": ("loss_x", "acc_x", "loss_u"),
    "MeanTeacher": ("loss_x", "acc_x", "loss_u"),
    "MixMatch": ("loss_x", "loss_u"),
    "SE": ("loss_x", "acc_x", "loss_u"),
    "SourceOnly": ("loss", "acc"),
    "SupBaseline": ("loss", "acc"),
    "Vanilla": ("loss", "acc"),
}

# Dassl's modules and the class of each.
MODULES = {
    "da": {
        **{"adabn": "AdaBN", "adda": "ADDA", "cdac": "CDAC", "dael": "DAEL", "dann": "DANN", "m3sda": "M3SDA"},
        **{"mcd": "MCD", "mme": "MME", "se": "SE", "source_only": "SourceOnly"},
    },
    "dg": {
        **{"crossgrad": "CrossGrad", "daeldg": "DAELDG", "ddaig": "DDAIG", "domain_mix": "DomainMix"},
        "vanilla": "Vanilla",
    },
    "ssl": {
        **{"entmin": "EntMin", "fixmatch": "FixMatch", "mean_teacher": "MeanTeacher", "mixmatch": "MixMatch"},
        "sup_baseline": "SupBaseline",
    },
}
FROM_WEIGHTS = ("ADDA", "AdaBN")


def build(name, folder, *pairs):
    seed_all()
    return engine.build_trainer(make_cfg(name, folder, *pairs))


@pytest.fixture(scope="module")
def source_weights(tmp_path_factory):
    """A checkpoint of a network with batch norm, trained on the source domains."""
    folder = tmp_path_factory.mktemp("source")
    build("SourceOnly", folder, "MODEL.BACKBONE.NAME", "toy_norm", "TEST.NO_TEST", True).train()
    return folder / "run" / "model" / "model.pth.tar-8"


def settings(name, source_weights):
    if name not in FROM_WEIGHTS:
        return ()
    return "MODEL.BACKBONE.NAME", "toy_norm", "MODEL.INIT_WEIGHTS", str(source_weights)


def test_all_twenty_are_under_dassls_modules():
    kinds = {"da": da, "dg": dg, "ssl": ssl}
    assert {name for names in MODULES.values() for name in names.values()} == LOSSES.keys()
    for kind, names in MODULES.items():
        for module, name in names.items():
            assert f"dassl.engine.{kind}.{module}" in finder.MODULES
            assert engine.TRAINER_REGISTRY.get(name) is getattr(kinds[kind], name)


@pytest.mark.parametrize("name", LOSSES)
def test_each_learns_and_logs_dassls_names(name, tmp_path, source_weights):
    trainer = build(name, tmp_path, *settings(name, source_weights))
    seen = []
    step = trainer.forward_backward
    trainer.forward_backward = lambda *batches: seen.append(step(*batches)) or seen[-1]
    trainer.train()
    assert len(seen) == 8 * 3
    assert all(tuple(losses or ()) == LOSSES[name] for losses in seen)
    assert all(math.isfinite(value) for losses in seen for value in (losses or {}).values())
    assert trainer.results["accuracy"] > 180 / CLASSES
    schedule = next(sched for sched in trainer._scheds.values())
    steps = {"AdaBN": 0, "CDAC": 24}.get(name, 8)
    assert schedule.last_epoch == steps


@pytest.mark.parametrize("name", ["DAEL", "MeanTeacher", "SE", "DANN", "CDAC"])
def test_a_resumed_run_equals_an_uninterrupted_run(name, tmp_path):
    class Killed(Exception):
        pass

    def kill(trainer):
        if trainer.epoch == 1:
            raise Killed

    pairs = ("TRAIN.CHECKPOINT_FREQ", 1, "OPTIM.MAX_EPOCH", 4, "TEST.NO_TEST", True)
    whole = build(name, tmp_path, *pairs, "OUTPUT_DIR", str(tmp_path / "whole"))
    whole.train()
    first = build(name, tmp_path, *pairs)
    first.epoch_callbacks.append(kill)
    with pytest.raises(Killed):
        first.train()
    second = build(name, tmp_path, *pairs)
    second.train()
    assert second.start_epoch == 2
    states = [trainer.state_dict() for trainer in (whole, second)]
    for part, weights in states[0].items():
        assert all(torch.equal(states[1][part][key], value) for key, value in weights.items())


def test_the_teacher_of_a_checkpoint_of_dassl_is_the_model(tmp_path):
    first = build("MeanTeacher", tmp_path, "OPTIM.MAX_EPOCH", 1, "TEST.NO_TEST", True)
    first.train()
    path = Path(first.output_dir) / "model" / "model.pth.tar-1"
    state = torch.load(path, weights_only=True)
    assert "teacher" in state
    torch.save({key: value for key, value in state.items() if key not in ("teacher", "random_state")}, path)
    second = build("MeanTeacher", tmp_path, "OPTIM.MAX_EPOCH", 1)
    assert second.resume_model_if_exist(second.output_dir) == 1
    for key, value in second.teacher.state_dict().items():
        assert torch.equal(value, state["state_dict"][key])


@pytest.mark.parametrize(
    ("name", "pairs", "fact"),
    [
        ("DAEL", ("DATALOADER.TRAIN_X.SAMPLER", "RandomSampler"), "RandomDomainSampler"),
        ("DAEL", ("DATALOADER.TRAIN_U.SAME_AS_X", True), "SAME_AS_X"),
        ("DAEL", ("TRAINER.DAEL.STRONG_TRANSFORMS", []), "DAEL.STRONG_TRANSFORMS"),
        ("DAELDG", ("DATASET.SOURCE_DOMAINS", ("dark",)), "SOURCE_DOMAINS"),
        ("FixMatch", ("TRAINER.FIXMATCH.STRONG_TRANSFORMS", []), "FIXMATCH.STRONG_TRANSFORMS"),
        ("MixMatch", ("DATALOADER.K_TRANSFORMS", 1), "K_TRANSFORMS"),
        ("SE", ("DATALOADER.K_TRANSFORMS", 3), "K_TRANSFORMS"),
        ("CDAC", ("DATALOADER.K_TRANSFORMS", 1), "K_TRANSFORMS"),
        ("M3SDA", ("TRAIN.ACCUMULATE", 2), "ACCUMULATE"),
        ("MME", ("TRAIN.ACCUMULATE", 2), "ACCUMULATE"),
        ("DomainMix", ("TRAINER.DOMAINMIX.TYPE", "other"), "crossdomain"),
        ("DDAIG", ("TRAINER.DDAIG.G_ARCH", "fcn"), "fcn"),
        ("ADDA", (), "INIT_WEIGHTS"),
        ("AdaBN", ("MODEL.INIT_WEIGHTS", "missing.pth"), r"missing\.pth"),
    ],
)
def test_a_config_that_does_not_suit_is_an_error(name, pairs, fact, tmp_path):
    with pytest.raises(ValueError, match=fact):
        build(name, tmp_path, *pairs)


def test_missing_unlabelled_images_are_an_error(tmp_path):
    trainer = build("EntMin", tmp_path)
    trainer.train_loader_u = None
    with pytest.raises(ValueError, match="train_u"):
        trainer.train()


SCRIPT = """
from dassl.engine import TRAINER_REGISTRY, TrainerX, build_trainer
from dassl.engine.ssl import EntMin as Package

@TRAINER_REGISTRY.register()
class Narrow(Package):
    pass

from dassl.engine import EntMin, DAEL
from dassl.engine.ssl.entmin import EntMin as Module
from dassl.engine.da.dael import Experts
assert EntMin is Module is Package and DAEL.__name__ == "DAEL" and Experts(2, 3, 4)
print(len(TRAINER_REGISTRY.registered_names()))
"""

FIRST = """
from dassl.engine import TRAINER_REGISTRY, TrainerX

@TRAINER_REGISTRY.register()
class Vanilla(TrainerX):
    pass

from dassl.engine import EntMin
assert TRAINER_REGISTRY.get("Vanilla") is Vanilla and TRAINER_REGISTRY.get("EntMin") is EntMin
print(len(TRAINER_REGISTRY.registered_names()))
"""


@pytest.mark.parametrize(("script", "count"), [(SCRIPT, 21), (FIRST, 20)], ids=["imports", "own-name-first"])
def test_scripts_import_them_and_may_use_their_names(script, count, tmp_path):
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, "-m", "unskew.dassl", "--force", str(tmp_path / "script.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(count)
