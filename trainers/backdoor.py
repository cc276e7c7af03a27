"""Backdoor adjustment over several foundation models (Chen et al., ICML 2025, arXiv 2501.15955)."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from yacs.config import CfgNode

from unskew import config
from unskew.clip import backbones
from unskew.debias.metrics import crossed_groups
from unskew.debias.mixture import COMBINE, combine_members, fit_member_weights
from unskew.debias.temperature import fit_temperature
from unskew.engine.dataset_groups import dataset_groups
from unskew.engine.debiasing import FittedTerms, matches_classes
from unskew.engine.evaluator import labels_of
from unskew.engine.prediction import Prediction
from unskew.engine.run_dir import RunDir, path_safe
from unskew.engine.trainer import TRAINER_REGISTRY, SimpleTrainer, build_trainer
from unskew.utils.seeds import derive_seed, set_random_seed

logger = logging.getLogger("unskew")


_DEBIASED = ("GLA", "DebiasedZeroshot", "Ensemble")  # bases with a zero-shot half of their own
_CHOICES = {
    "COMBINE": COMBINE,
    "WEIGHTS": ("uniform", "val"),
    "CALIBRATE": ("nll", "confidence", "none"),
}


class Member(NamedTuple):
    """``micro-a#2`` is replica 2 of micro-a: the same training images, another seed; ``micro-a`` is replica 0."""

    name: str
    backbone: str
    replica: int


def parse_member(name: str) -> Member:
    """A name in ``MEMBERS``, ``<backbone>`` or ``<backbone>#<replica>``.

    Raises:
        ValueError: an unknown backbone, or a replica that is not a whole number of 0 or more.
    """
    backbone, mark, replica = str(name).partition("#")
    if mark and not replica.isdecimal():
        raise ValueError(f"a member of TRAINER.BACKDOOR.MEMBERS is a backbone or BACKBONE#NUMBER, got '{name}'")
    return Member(str(name), config.check_backbone(backbone), int(replica or 0))


def member_config(cfg: CfgNode, member: Member, folder: str | Path) -> CfgNode:
    """The config of a member's own run in ``folder``: that of ``BASE`` alone on the member's backbone.

    Replica 0 keeps ``SEED``, so that it is the very run that ``BASE`` would be by itself. The others draw a seed
    from it, and keep the few-shot sample.
    """
    base = cfg.TRAINER.BACKDOOR.BASE
    class_name = config.class_name(base)
    values = {
        "TRAINER.NAME": base,
        "TRAINER.CLASS": "" if class_name == base else class_name,
        "OUTPUT_DIR": str(folder),
        "RESUME": "",
        "VERBOSE": False,
    }
    if member.replica:
        values["SEED"] = derive_seed(cfg.SEED, member.replica)
        values["DATASET.SEED"] = cfg.SEED if cfg.DATASET.SEED < 0 else cfg.DATASET.SEED
    return config.derive(cfg, {**config.backbone_layer(member.backbone), **values})


def debiased_config(cfg: CfgNode, node: CfgNode) -> CfgNode:
    """The config of GLA around a finished member with config ``cfg``; ``node`` is Backdoor's own."""
    values = {
        "BASE": cfg.TRAINER.NAME,
        "BASE_DIR": cfg.OUTPUT_DIR,
        "COMBINE": "sum",
        "TARGET": "uniform",
        **{key: node[key] for key in ("PRIOR", "STRENGTH", "TEMPERATURE")},
    }
    where = {"TRAINER.NAME": "GLA", "TRAINER.CLASS": "", "OUTPUT_DIR": str(Path(cfg.OUTPUT_DIR) / "debiased")}
    return config.derive(cfg, {**where, **{f"TRAINER.GLA.{key}": value for key, value in values.items()}})


@TRAINER_REGISTRY.register()
class Backdoor(SimpleTrainer):
    """P(Y | do(X)) = sum_m P(Y | X, m) P(m): the models m are fine-tuned one by one, and their scores averaged.

    Each member is a run of ``BASE`` in a folder of its own below this run's, ``members/<name>``, and is built from it
    whenever it has to predict; no two of them are in memory at once. A member owns its preprocessing.

    Attributes:
        terms: ``weights`` P(m) and ``temperatures``, [M] each.
    """

    def check_cfg(self, cfg: CfgNode) -> None:
        node = self.node
        members = [parse_member(name)[1:] for name in node.MEMBERS]
        if not members or len(set(members)) < len(members):
            raise ValueError(
                f"TRAINER.BACKDOOR.MEMBERS names one backbone or more, each once (a second seed of one is "
                f"BACKBONE#1), got {list(node.MEMBERS)}"
            )
        for key, known in _CHOICES.items():
            if node[key] not in known:
                raise ValueError(f"TRAINER.BACKDOOR.{key} must be one of {', '.join(known)}, got '{node[key]}'")
        if node.DEBIAS and (config.class_name(node.BASE) in _DEBIASED or cfg.TRAINER.FINETUNE.LOSS == "gla_train"):
            raise ValueError(
                f"TRAINER.BACKDOOR.DEBIAS would take log q out twice: BASE {node.BASE} does it already; set it to False"
            )
        if cfg.SEED < 0:
            raise ValueError("the members are trained on one sample of images: set SEED to 0 or more")
        if node.MEMBERS_DIR and not Path(node.MEMBERS_DIR).is_dir():
            raise FileNotFoundError(f"TRAINER.BACKDOOR.MEMBERS_DIR: there is no folder '{node.MEMBERS_DIR}'")

    def build_data_loader(self) -> None:
        super().build_data_loader()
        self.dataset, self.classnames = self.dm.dataset, self.dm.dataset.classnames
        self.test_loader = None  # test labels are the evaluator's alone
        if self.node.WEIGHTS == "val" and not self.dataset.val:
            raise ValueError(
                f"TRAINER.BACKDOOR.WEIGHTS is val, but '{self.cfg.DATASET.NAME}' has no val split; "
                "choose uniform, or set DATASET.HOLDOUT to 0.05"
            )

    def build_model(self) -> None:
        self.members = [parse_member(name) for name in self.node.MEMBERS]
        self.directory, self.members_epoch = self.output_dir, None
        count = len(self.members)
        # What weights and temperatures are of: loaded for anything else they would be wrong without a word.
        made_of = [*self.classnames, *self.node.MEMBERS, *(f"{k} {self.node[k]}" for k in (*_CHOICES, "DEBIAS"))]
        terms = FittedTerms(made_of, weights=torch.full((count,), 1 / count), temperatures=torch.ones(count))
        self.terms = terms.to(self.device)
        self.register_model("backdoor", self.terms)

    @property
    def logit_adjusted(self) -> bool:
        return self.node.DEBIAS or build_trainer(self._config(self.members[0])).logit_adjusted

    # --- members ------------------------------------------------------------------------------------

    def _config(self, member: Member) -> CfgNode:
        return member_config(self.cfg, member, Path(self.directory) / "members" / path_safe(member.name))

    def train_member(self, member: Member) -> None:
        """Train it, unless its folder, or one below ``MEMBERS_DIR``, holds the finished run."""
        cfg, main = self._config(member), self.accelerator.is_main_process
        folder = RunDir(cfg.OUTPUT_DIR)
        if main and not folder.is_finished_run_of(cfg):
            self._prepare(folder, cfg)
        self.accelerator.wait_for_everyone()
        if folder.is_finished_run_of(cfg):
            logger.info("It is trained already")
        else:
            set_random_seed(cfg.SEED)
            build_trainer(cfg).fit()
            if main:
                folder.finish(cfg)
        self.accelerator.wait_for_everyone()
        if self.node.DEBIAS:
            cfg = debiased_config(cfg, self.node)
            if main:
                RunDir(cfg.OUTPUT_DIR).prepare(cfg)  # an older run's prior must not be resumed
            self.accelerator.wait_for_everyone()
            build_trainer(cfg).fit()
        backbones.release()

    def _prepare(self, folder: RunDir, cfg: CfgNode) -> None:
        stale = folder.is_finished  # with another config, or with files that have changed since
        folder.done.unlink(missing_ok=True)
        folder.prepare(cfg)
        if stale:
            folder.drop_checkpoints()
        source = RunDir.find(self.node.MEMBERS_DIR, cfg) if self.node.MEMBERS_DIR else None
        if source:
            logger.info(f"Copy it from {source.path}")
            source.copy_checkpoints(folder)
            folder.finish(cfg)

    def member_logits(self, member: Member, paths: Sequence[str]) -> Tensor:
        """Its score [N, C], not divided by its temperature.

        Raises:
            FileNotFoundError: it is not trained.
        """
        cfg = self._config(member)
        cfg = debiased_config(cfg, self.node) if self.node.DEBIAS else cfg
        trainer = build_trainer(cfg)
        trainer.load_model(cfg.OUTPUT_DIR, self.members_epoch)
        logits = trainer.predict(paths)
        del trainer
        backbones.release()
        return logits

    # --- training -----------------------------------------------------------------------------------

    def train(self) -> None:
        self.directory, self.members_epoch = self.output_dir, None
        self.before_train()
        for number, member in enumerate(self.members, 1):
            logger.info(f"Member {number} of {len(self.members)}: {member.name}")
            self.train_member(member)
        self.fit_terms()
        self.save_model(0, self.output_dir)
        self.after_train()

    @torch.no_grad()
    def fit_terms(self) -> None:
        """Temperatures and weights on val, which no member was trained on; else 1 and uniform."""
        count = len(self.members)
        self.terms.fill(weights=torch.full((count,), 1 / count), temperatures=torch.ones(count))
        items, node = self.dataset.val or [], self.node
        if not items or (node.CALIBRATE, node.WEIGHTS) == ("none", "uniform"):
            return
        paths, labels = [item.impath for item in items], labels_of(items).to(self.device)
        logits = torch.stack([self.member_logits(member, paths) for member in self.members])  # [M, N, C]
        if node.CALIBRATE != "none":
            fitted = [fit_temperature(part, labels, method=node.CALIBRATE) for part in logits]
            self.terms.temperatures.copy_(torch.tensor(fitted))
        if node.WEIGHTS == "val":
            weights = fit_member_weights(logits / self.terms.temperatures[:, None, None], labels, node.COMBINE)
            self.terms.weights.copy_(weights)
        for member, weight, temperature in zip(self.members, self.terms.weights, self.terms.temperatures, strict=True):
            logger.info(f"{member.name}: weight {weight:.3g}, temperature {temperature:.3g}")

    # --- prediction ---------------------------------------------------------------------------------

    @torch.no_grad()
    def predict_parts(self, paths: Sequence[str]) -> Prediction:
        """Return the combined logits, with the calibrated logits of each member by name."""
        logits = torch.stack([self.member_logits(member, paths) for member in self.members])  # [M, N, C]
        logits = logits / self.terms.temperatures[:, None, None]
        parts = {path_safe(m.name): part for m, part in zip(self.members, logits, strict=True)}
        combined = combine_members(logits, self.terms.weights, self.node.COMBINE)
        return Prediction(combined, {**parts, "backdoor": combined})

    def predict(self, paths: Sequence[str]) -> Tensor:
        return self.predict_parts(paths).logits

    def class_groups(self) -> dict[str, Tensor]:
        groups = {**super().class_groups(), **dataset_groups(self.cfg, self.device)}
        return groups | crossed_groups(groups)

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Take the members in ``directory``; ``epoch`` is theirs."""
        if directory:
            self.directory, self.members_epoch = directory, epoch
        same = matches_classes(self.terms, Path(directory) / "backdoor")
        if same:
            super().load_model(directory)
        if epoch is not None or not same:  # what was saved belongs to the epoch that was kept, and to that config
            logger.info("Temperatures and weights are fitted again")
            self.fit_terms()
