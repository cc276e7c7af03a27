"""Tip-Adapter-F: Tip-Adapter with trained keys (Zhang et al., ECCV 2022, arXiv 2111.03930, section 3.2)."""

from pathlib import Path

from unskew.engine import checkpoint
from unskew.engine.clip_trainer import CLIPTrainer
from unskew.engine.optim import build_lr_scheduler, build_optimizer
from unskew.engine.trainer import TRAINER_REGISTRY
from unskew.trainers import tipadapter


@TRAINER_REGISTRY.register()
class TipAdapterF(tipadapter.TipAdapter):
    """Train the keys by cross entropy at the alpha and beta of the config, then search both again."""

    def build_model(self) -> None:
        self.cache = self.build_cache()
        optimizer = build_optimizer(self.cache, self.cfg.OPTIM)
        for group in optimizer.param_groups:
            group["eps"] = self.node.EPS
        self.register_model("cache", self.cache, optimizer, build_lr_scheduler(optimizer, self.cfg.OPTIM))

    def train(self) -> None:
        if self.dataset.train_x:  # before_train raises an error without training images
            self.fill_cache()
        CLIPTrainer.train(self)  # skips TipAdapter.train, which has no epochs

    def after_train(self) -> None:
        """Search alpha and beta for the keys to deploy and store them in the checkpoint of these keys."""
        self.accelerator.wait_for_everyone()
        folder = Path(self.output_dir) / "cache"
        kept = folder / checkpoint.BEST if self.cfg.TEST.FINAL_MODEL == "best_val" else None
        if kept is None or not kept.is_file():
            kept = checkpoint.last_checkpoint(folder)
        if kept is None:  # no epoch was trained
            self.search()
            self.save_model(0, self.output_dir)
        else:
            state = checkpoint.load_checkpoint(kept)
            checkpoint.load_weights(self.cache, state["state_dict"], kept)
            self.search()
            self.accelerator.wait_for_everyone()  # all have read the file
            if self.accelerator.is_main_process:
                checkpoint.save({**state, "state_dict": self.cache.state_dict()}, kept)
        super().after_train()
