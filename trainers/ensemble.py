"""The plain output ensemble: a fine-tuned model and the zero-shot one, both calibrated, added.

What GLA is without its priors (Zhu et al., NeurIPS 2023, arXiv 2310.08106), and its closest competitor.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from yacs.config import CfgNode

from unskew import config
from unskew.calibration import fit_temperature
from unskew.clip_trainer import CLIPTrainer
from unskew.engine import TRAINER_REGISTRY
from unskew.losses import cross_entropy

logger = logging.getLogger("unskew")


def defaults() -> CfgNode:
    return CfgNode(
        {
            "BASE": "ResidualPrompt",  # the fine-tuned half: any registered trainer
            "BASE_DIR": "",  # the folder of a finished run of the base, which is then not trained again
            "TEMPERATURE": "confidence",  # how both halves are calibrated: confidence or nll
        }
    )


class Terms(torch.nn.Module):
    """The numbers beside the two models, as buffers that a checkpoint holds."""

    def __init__(self, **values: Tensor | float) -> None:
        super().__init__()
        for name, value in values.items():
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32))


@TRAINER_REGISTRY.register()
class Ensemble(CLIPTrainer):
    """Logits = ft/T_ft + zs/T_zs.

    The base trains itself; the trainer around it only decides which of its epochs is kept, by its own accuracy on val.
    """

    @property
    def node(self) -> CfgNode:
        return self.cfg.TRAINER[type(self).__name__.upper()]

    def build_model(self) -> None:
        cfg = base_config(self.cfg, self.node) if self.node.BASE_DIR else self.cfg
        self.base = TRAINER_REGISTRY.get(config.class_name(self.node.BASE))(cfg)
        self.base.validate = self.validate
        self.terms = self.build_terms().to(self.device)
        self.register_model(type(self).__name__.lower(), self.terms)

    def build_terms(self) -> Terms:
        """What does not depend on the base is fitted once, before training."""
        paths, labels = self.labelled(self.dataset.val or self.dataset.train_x)
        temperature = fit_temperature(self.zeroshot_logits(paths), labels, method=self.node.TEMPERATURE)
        return Terms(zeroshot_temperature=temperature, finetuned_temperature=1.0)

    # --- training: the base's, scored by the sum ----------------------------------------------------

    def train(self) -> None:
        self.before_train()
        if self.node.BASE_DIR:
            self.base.load_model(self.node.BASE_DIR)
        else:
            self.base.fit()
        self.calibrate()
        numbers = {name: value.item() for name, value in self.terms.named_buffers() if value.ndim == 0}
        logger.info("Fitted: " + ", ".join(f"{name} {value:.3g}" for name, value in numbers.items()))
        self.save_model(0, self.output_dir)
        self.after_train()

    def calibrate(self) -> tuple[list[str], Tensor, Tensor]:
        """Fit on val (without val: on train) what depends on the base as it is now; its paths, labels and logits."""
        paths, labels = self.labelled(self.dataset.val or self.dataset.train_x)
        finetuned = self.base.predict(paths)
        temperature = fit_temperature(finetuned, labels, method=self.node.TEMPERATURE)
        self.terms.finetuned_temperature.fill_(temperature)
        return paths, labels, finetuned

    def validate(self) -> float:
        """Accuracy on val in percent, calibrated at this moment; the base's epochs are kept by it.

        A few shots' val has few images and epochs often tie: then the one of lower cross entropy is better.
        """
        paths, labels, finetuned = self.calibrate()
        scores = list(self.parts(paths, finetuned).values())[-1]
        accuracy = (scores.argmax(1) == labels).float().mean()
        return (100 * accuracy - 1e-3 * cross_entropy(scores, labels)).item()

    # --- prediction ---------------------------------------------------------------------------------

    def parts(self, paths: Sequence[str], finetuned: Tensor) -> dict[str, Tensor]:
        """The parts and, last, the whole, each [N, C], from the base's logits for ``paths``."""
        zs = self.zeroshot_logits(paths) / self.terms.zeroshot_temperature
        ft = finetuned / self.terms.finetuned_temperature
        return {"zs": zs, "ft": ft, "ensemble": ft + zs}

    def scores(self, paths: Sequence[str]) -> dict[str, Tensor]:
        return self.parts(paths, self.base.predict(paths))

    def predict(self, paths: Sequence[str]) -> Tensor:
        return list(self.scores(paths).values())[-1]

    # --- checkpoints: the base's models lie beside the trainer's own --------------------------------

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        self.base.load_model(self.node.BASE_DIR or directory, epoch)
        super().load_model(directory)
        if epoch is not None:  # what was saved belongs to the epoch that was kept
            self.calibrate()

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        return {**self.base.state_dict(), **super().state_dict()}

    def load_state_dict(self, states: dict[str, dict[str, Tensor]]) -> None:
        own = set(self.get_model_names())
        super().load_state_dict({name: state for name, state in states.items() if name in own})
        self.base.load_state_dict({name: state for name, state in states.items() if name not in own})


# What two trainers must share for one to be calibrated on images that the other was not trained on.
_SAME = ("DATASET.NAME", "DATASET.NUM_SHOTS", "DATASET.NUM_VAL_SHOTS", "DATASET.SUBSAMPLE_CLASSES", "SEED")


def base_config(cfg: CfgNode, node: CfgNode) -> CfgNode:
    """The frozen config of the finished run in ``node.BASE_DIR``, to build its trainer on this machine.

    Raises:
        FileNotFoundError: there is no finished run.
        ValueError: it is another trainer's, or its images are not this run's.
    """
    folder = Path(node.BASE_DIR)
    if not (folder / "done").is_file():
        raise FileNotFoundError(f"BASE_DIR '{folder}' holds no finished run (there is no file 'done' in it)")
    saved = config.read_yaml(folder / "config.yaml")
    theirs, ours = dict(config.flatten(saved)), dict(config.flatten(cfg))
    if theirs.get("TRAINER.NAME") != node.BASE:
        raise ValueError(
            f"BASE_DIR '{folder}' holds a run of {theirs.get('TRAINER.NAME')}, but BASE is {node.BASE}; "
            "make them the same"
        )
    different = [key for key in _SAME if theirs.get(key) != ours[key]]
    if different:
        raise ValueError(
            f"BASE_DIR '{folder}' was trained on other images: its {different[0]} is {theirs.get(different[0])}, "
            f"here it is {ours[different[0]]}; the base must not have seen what it is calibrated on"
        )
    here = [pair for key in config.NOT_IDENTITY for pair in (key, ours[key])]
    return config.load(
        theirs["DATASET.NAME"], theirs["MODEL.BACKBONE.NAME"], node.BASE, here, str(folder / "config.yaml")
    )
