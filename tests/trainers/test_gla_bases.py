"""Tests of the bases of GLA: any registered trainer, or a finished run in BASE_DIR."""

import json

import pytest
import torch
from building import SHORT, build, some_paths

from unskew.engine.trainer import TRAINER_REGISTRY, build_trainer
from unskew.runs.run import Run, execute


def finished(name, data_root, folder, *opts, **options):
    """Train a run as `unskew train` does; return its metrics."""
    run = Run("digits", name, shots=2, root=data_root, folder=str(folder), opts=(*SHORT, *opts), **options)
    return execute(run, console=False)


@pytest.mark.parametrize("base", ["CoOp", "LinearProbe"])
def test_a_base_in_base_dir_is_not_trained_again(base, data_root, tmp_path):
    finished(base, data_root, tmp_path / "base", *(["TRAINER.COOP.N_CTX", 3] if base == "CoOp" else []), seed=1)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "base").rglob("*")}
    opts = ("TRAINER.GLA.BASE", base, "TRAINER.GLA.BASE_DIR", str(tmp_path / "base"))
    trainer = build("GLA", data_root, tmp_path / "gla", *opts)
    trainer.base.fit = None  # a call would raise
    trainer.train()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "base").rglob("*")} == before
    if base == "CoOp":
        assert len(trainer.base.prompt_learner.ctx) == 3  # the config of the base's run, not GLA's
    alone = build_trainer(trainer.base.cfg)
    alone.load_model(str(tmp_path / "base"))
    assert torch.equal(alone.predict(some_paths(alone)), trainer.base.predict(some_paths(alone)))
    fresh = build("GLA", data_root, tmp_path / "fresh", *opts)
    fresh.load_model(str(tmp_path / "gla"))
    assert torch.equal(fresh.predict(some_paths(fresh)), trainer.predict(some_paths(fresh)))


def test_a_base_dir_with_another_trainer_seed_or_without_a_run_raises(data_root, tmp_path):
    finished("LinearProbe", data_root, tmp_path / "base", seed=2)

    def gla(base, folder):
        opts = ("TRAINER.GLA.BASE", base, "TRAINER.GLA.BASE_DIR", str(folder))
        build("GLA", data_root, tmp_path / "gla", *opts).train()

    with pytest.raises(ValueError, match=r"LinearProbe.*CoOp"):
        gla("CoOp", tmp_path / "base")
    with pytest.raises(ValueError, match=r"SEED.*2.*1"):
        gla("LinearProbe", tmp_path / "base")
    with pytest.raises(FileNotFoundError, match="done"):
        gla("LinearProbe", tmp_path)


def test_a_base_that_was_trained_on_val_is_not_calibrated_on_it(data_root, tmp_path):
    finished("LinearProbe", data_root, tmp_path / "base", "DATASET.TRAIN_ON_VAL", True, seed=1)
    opts = ("TRAINER.GLA.BASE", "LinearProbe", "TRAINER.GLA.BASE_DIR", str(tmp_path / "base"))
    with pytest.raises(ValueError, match=r"DATASET\.TRAIN_ON_VAL is True there and False here"):
        build("GLA", data_root, tmp_path / "gla", *opts).train()


def test_a_base_may_train_a_copy_of_the_image_tower(data_root, tmp_path, monkeypatch):
    """The zero-shot half must keep the features of the pre-trained tower."""
    import copy

    import torch.nn.functional as F

    from unskew.debias.losses import cross_entropy
    from unskew.engine.clip_trainer import CLIPTrainer

    class Tower(CLIPTrainer):
        needs_images = True

        def build_model(self):
            self.tower = copy.deepcopy(self.backbone.model.visual).float().requires_grad_(True)
            self.register_for_training("tower", self.tower)

        def parse_batch_train(self, batch):
            return batch["img"].to(self.device), batch["label"].to(self.device)

        def forward_backward(self, batch):
            images, labels = self.parse_batch_train(batch)
            loss = cross_entropy(self.cosine_logits(self.tower(images), self.zeroshot_weights), labels)
            self.model_backward_and_update(loss)
            return {"loss": loss.detach()}

        @torch.no_grad()
        def predict(self, paths):
            self.set_model_mode("eval")
            images = torch.cat([batch["img"] for batch in self.dm.path_loader(paths)])
            return self.cosine_logits(F.normalize(self.tower(images), dim=-1), self.zeroshot_weights)

    monkeypatch.setitem(TRAINER_REGISTRY._table, "CoOp", Tower)
    trainer = build("GLA", data_root, tmp_path, "TRAINER.GLA.BASE", "CoOp", "OPTIM.LR", 0.05)
    untouched = build("ZeroshotCLIP", data_root, tmp_path)
    trainer.train()
    parts, paths = trainer.predict_parts(some_paths(trainer)).parts, some_paths(trainer)
    zs = untouched.predict(paths) / trainer.gla.zs_temperature_
    torch.testing.assert_close(parts["zs"], zs)
    assert (parts["ft"] - parts["zs"]).abs().max() > 0.1


def test_a_finished_run_raises_if_its_prior_file_or_base_run_has_changed(data_root, tmp_path):
    (tmp_path / "q.json").write_text(json.dumps([1] * 10))
    opts = ("TRAINER.DEBIASEDZEROSHOT.PRIOR", str(tmp_path / "q.json"))
    before = finished("DebiasedZeroshot", data_root, tmp_path / "run", *opts)
    (tmp_path / "q.json").write_text(json.dumps([50, *[1] * 9]))
    with pytest.raises(ValueError, match=f"'{tmp_path / 'run'}'"):
        finished("DebiasedZeroshot", data_root, tmp_path / "run", *opts)
    (tmp_path / "run" / "done").unlink()  # run again, it reads the new file instead of its checkpoint
    assert finished("DebiasedZeroshot", data_root, tmp_path / "run", *opts)["accuracy"] != before["accuracy"]

    finished("LinearProbe", data_root, tmp_path / "base")
    over = ("TRAINER.GLA.BASE", "LinearProbe", "TRAINER.GLA.BASE_DIR", str(tmp_path / "base"))
    finished("GLA", data_root, tmp_path / "gla", *over)
    finished("GLA", data_root, tmp_path / "gla", *over)
    (tmp_path / "base" / "done").write_text("another")
    with pytest.raises(ValueError, match=f"'{tmp_path / 'gla'}'"):
        finished("GLA", data_root, tmp_path / "gla", *over)


def test_an_infinite_chain_of_bases_raises(data_root, tmp_path):
    with pytest.raises(ValueError, match=r"GLA.*Ensemble.*GLA"):
        build("GLA", data_root, tmp_path, "TRAINER.GLA.BASE", "Ensemble", "TRAINER.ENSEMBLE.BASE", "GLA")
