"""The plain output ensemble: a fine-tuned model and the zero-shot one, both calibrated, added.

What GLA is without its priors (Zhu et al., NeurIPS 2023, arXiv 2310.08106), and its closest competitor.
"""

import functools
import logging
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from yacs.config import CfgNode

from unskew import config
from unskew.debias.metrics import selection_score
from unskew.debias.temperature import fit_temperature
from unskew.engine import fingerprint
from unskew.engine.clip_trainer import CLIPTrainer
from unskew.engine.debiasing import FittedTerms, check_choice, fitting_items
from unskew.engine.trainer import TRAINER_REGISTRY

logger = logging.getLogger("unskew")


@TRAINER_REGISTRY.register()
class Ensemble(CLIPTrainer):
    """Logits = ft/T_ft + zs/T_zs.

    The base trains itself; the trainer around it only decides which of its epochs is kept, by its own accuracy on val.
    """

    @property
    def node(self) -> CfgNode:
        return self.cfg.TRAINER[type(self).__name__.upper()]

    @property
    def logit_adjusted(self) -> bool:
        return self.base.logit_adjusted

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        check_choice(cfg, f"{type(self).__name__.upper()}.TEMPERATURE", ("confidence", "nll"))
        if cfg.SEED < 0:
            raise ValueError(f"{type(self).__name__} and its base must draw the same images: set SEED to 0 or more")

    def build_model(self) -> None:
        cfg = base_config(self.cfg, self.node) if self.node.BASE_DIR else self.cfg
        self.base = TRAINER_REGISTRY.get(config.class_name(self.node.BASE))(cfg)
        self.base.validate = self.validate
        self.terms = self.build_terms().to(self.device)
        self.register_model(type(self).__name__.lower(), self.terms)

    def build_terms(self) -> FittedTerms:
        return FittedTerms(self.classnames, zeroshot_temperature=1.0, finetuned_temperature=1.0)

    def fit_terms(self) -> None:
        """Fit what does not depend on the base."""
        paths, labels = self.labelled(fitting_items(self))
        temperature = fit_temperature(self.zeroshot_logits(paths), labels, method=self.node.TEMPERATURE)
        self.terms.fill(zeroshot_temperature=temperature)

    # --- training: the base's, scored by the sum ----------------------------------------------------

    def train(self) -> None:
        self.before_train()
        self.fit_terms()  # never resumed: it costs little, and the prior's file may have changed
        if self.node.BASE_DIR:
            self.base.load_model(self.node.BASE_DIR)
        else:
            self.base.fit()
        self.calibrate()
        numbers = [f"{name} {value:.3g}" for name, value in self.terms.named_buffers() if value.dim() == 0]
        logger.info(f"Fitted: {', '.join(numbers[1:])}")  # the first is the hash of the classes
        self.save_model(0, self.output_dir)
        self.after_train()

    @functools.cached_property
    def val(self) -> tuple[list[str], Tensor, Tensor]:
        """Paths, labels [N] and zero-shot logits [N, C] of val."""
        paths, labels = self.labelled(self.dataset.val)
        return paths, labels, self.zeroshot_logits(paths)

    def calibrate(self) -> Tensor | None:
        """Fit on val what depends on the base as it is now; the base's logits [N, C] there. Without val, nothing."""
        if not self.dataset.val:
            logger.warning(f"{type(self).__name__} has no val to calibrate its base on: it is added as it is")
            return None
        paths, labels, _ = self.val
        finetuned = self.base.predict(paths)
        temperature = fit_temperature(finetuned, labels, method=self.node.TEMPERATURE)
        self.terms.fill(finetuned_temperature=temperature)
        return finetuned

    def validate(self) -> float:
        """The score on val, calibrated at this moment, by which the base's epochs are kept."""
        finetuned = self.calibrate()
        _, labels, zeroshot = self.val
        return selection_score(self.balanced(zeroshot, finetuned), labels)

    def balanced(self, zeroshot: Tensor, finetuned: Tensor) -> Tensor:
        """What is scored on val, [N, C]."""
        return list(self.parts(zeroshot, finetuned).values())[-1]

    # --- prediction ---------------------------------------------------------------------------------

    def parts(self, zeroshot: Tensor, finetuned: Tensor) -> dict[str, Tensor]:
        """The parts and, last, the whole, each [N, C], from both models' logits."""
        zs, ft = zeroshot / self.terms.zeroshot_temperature, finetuned / self.terms.finetuned_temperature
        return {"zs": zs, "ft": ft, "ensemble": ft + zs}

    def scores(self, paths: Sequence[str]) -> dict[str, Tensor]:
        return self.parts(self.zeroshot_logits(paths), self.base.predict(paths))

    def predict(self, paths: Sequence[str]) -> Tensor:
        return list(self.scores(paths).values())[-1]

    # --- checkpoints: the base's models lie beside the trainer's own --------------------------------

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        self.base.load_model(self.node.BASE_DIR or directory, epoch)
        if self.terms.matches_classes(Path(directory) / type(self).__name__.lower()):
            super().load_model(directory)
        else:
            logger.warning(f"'{directory}' is of other classes: what was fitted there is fitted again, for these")
            self.fit_terms()
            self.calibrate()
        if epoch is not None:  # what was saved belongs to the epoch that was kept
            self.calibrate()

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        return {**self.base.state_dict(), **super().state_dict()}

    def load_state_dict(self, states: dict[str, dict[str, Tensor]]) -> None:
        own = set(self.get_model_names())
        super().load_state_dict({name: state for name, state in states.items() if name in own})
        self.base.load_state_dict({name: state for name, state in states.items() if name not in own})


# What two trainers must share for one to be calibrated on images that the other was not trained on.
_SAME = ("SEED", *(f"DATASET.{key}" for key in ("NAME", "ROOT", "SEED", "NUM_SHOTS", "NUM_VAL_SHOTS", "HOLDOUT")))
_SAME = (*_SAME, *(f"DATASET.{key}" for key in ("SUBSAMPLE_CLASSES", "IMBALANCE", "CLASSNAMES")))


def base_config(cfg: CfgNode, node: CfgNode) -> CfgNode:
    """The frozen config of the finished run in ``node.BASE_DIR``, to build its trainer on this machine.

    Raises:
        FileNotFoundError: there is no finished run.
        ValueError: it is another trainer's, or its images are not this run's.
    """
    folder = Path(node.BASE_DIR)
    if not (folder / "done").is_file():
        raise FileNotFoundError(
            f"BASE_DIR '{folder}', named by the config of {cfg.TRAINER.NAME}, holds no finished run (no file 'done')"
        )
    saved = config.read_yaml(folder / "config.yaml")
    theirs, ours = dict(config.flatten(saved)), dict(config.flatten(cfg))
    if theirs.get("TRAINER.NAME") != node.BASE:
        raise ValueError(
            f"BASE_DIR '{folder}' holds a run of {theirs.get('TRAINER.NAME')}, but BASE is {node.BASE}; "
            "make them the same"
        )
    counting = fingerprint.identity(cfg), fingerprint.identity(CfgNode(saved))
    different = [key for key in _SAME if counting[0].get(key) != counting[1].get(key)]
    if different:
        raise ValueError(
            f"BASE_DIR '{folder}' was trained on other images: its {different[0]} is {theirs.get(different[0])}, "
            f"here it is {ours[different[0]]}; the base must not have seen what it is calibrated on"
        )
    here = [pair for key in fingerprint.NOT_IDENTITY for pair in (key, ours[key])]
    return config.load(
        theirs["DATASET.NAME"], theirs["MODEL.BACKBONE.NAME"], node.BASE, here, str(folder / "config.yaml")
    )
