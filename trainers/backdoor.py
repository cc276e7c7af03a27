"""Backdoor adjustment over several foundation models (Chen et al., ICML 2025, arXiv 2501.15955)."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from unskew import config
from unskew.clip import backbones
from unskew.data.saved_run import check_can_fit
from unskew.debias.metrics import crossed_groups
from unskew.debias.mixture import COMBINE, combine_members, fit_member_weights
from unskew.debias.temperature import fit_temperature
from unskew.engine.dataset_groups import dataset_groups
from unskew.engine.debiasing import FittedTerms, check_prior
from unskew.engine.evaluator import labels_of
from unskew.engine.image_models import MixtureModel
from unskew.engine.label_prior import write_prior
from unskew.engine.prediction import Prediction
from unskew.engine.run_dir import RunDir, path_safe
from unskew.engine.trainer import TRAINER_REGISTRY, SimpleTrainer, build_trainer
from unskew.engine.transfer import Use, may_fit, saved_state, use_of
from unskew.utils.blocks import in_blocks, row_blocks
from unskew.utils.processes import together
from unskew.utils.seeds import derive_seed, set_random_seed

logger = logging.getLogger("unskew")

_DEBIASED = ("GLA", "DebiasedZeroshot", "Ensemble")  # bases that contain a zero-shot half
_CHOICES = {
    "COMBINE": COMBINE,
    "WEIGHTS": ("", "uniform", "val"),
    "CALIBRATE": ("nll", "confidence", "none"),
}
_SETTINGS = (*_CHOICES, "DEBIAS")  # they decide the fitted numbers, with the members


class Member(NamedTuple):
    """A member; ``micro-a#2`` is replica 2 of micro-a, with another seed and the same images, ``micro-a`` replica 0."""

    name: str
    backbone: str
    replica: int


def parse_member(name: str) -> Member:
    """Return the member that an entry of ``MEMBERS`` names, ``<backbone>`` or ``<backbone>#<replica>``.

    Raises:
        ValueError: the backbone is unknown, or the replica is not a whole number of 0 or more.
    """
    backbone, separator, replica = str(name).partition("#")
    if separator and not replica.isdecimal():
        raise ValueError(f"TRAINER.BACKDOOR.MEMBERS must list BACKBONE or BACKBONE#NUMBER (got '{name}')")
    return Member(str(name), config.check_backbone(backbone), int(replica or 0))


def member_config(cfg: CfgNode, member: Member, folder: str | Path) -> CfgNode:
    """Return the config of a member's run in ``folder``: ``BASE`` on the member's backbone.

    Replica 0 keeps ``SEED``, so it equals a run of ``BASE`` alone. The others derive their seed from ``SEED`` and keep
    the few-shot sample.
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
    """Return the config of GLA over a finished member.

    Args:
        cfg: the member's config.
        node: Backdoor's node, which holds GLA's settings.
    """
    values = {
        "BASE": cfg.TRAINER.NAME,
        "BASE_DIR": cfg.OUTPUT_DIR,
        "COMBINE": "fitted",
        "TARGET": "uniform",
        **{key: node[key] for key in ("PRIOR", "STRENGTH", "TEMPERATURE")},
    }
    run = {"TRAINER.NAME": "GLA", "TRAINER.CLASS": "", "OUTPUT_DIR": str(Path(cfg.OUTPUT_DIR) / "debiased")}
    return config.derive(cfg, {**run, **{f"TRAINER.GLA.{key}": value for key, value in values.items()}})


class MemberTerms(FittedTerms):
    """The fitted numbers of M members: uniform weights and temperatures of 1 at first.

    Attributes:
        weights: [M], P(m).
        temperatures: [M], of the members.
        temperature: of the combined logits.
    """

    weights: Tensor
    temperatures: Tensor
    temperature: Tensor

    def __init__(self, identity: Sequence[str], members: int) -> None:
        super().__init__(identity, weights=torch.empty(members), temperatures=torch.empty(members), temperature=1.0)
        self.reset()

    def reset(self) -> None:
        """Set uniform weights and temperatures of 1."""
        self.fill(weights=1 / len(self.weights), temperatures=1.0, temperature=1.0)


@TRAINER_REGISTRY.register()
class Backdoor(SimpleTrainer):
    """P(Y | do(X)) = sum_m P(Y | X, m) P(m): the models m are fine-tuned one by one and their logits are combined.

    Each member is a run of ``BASE`` in ``members/<name>`` below this run's folder, with its own preprocessing. It is
    loaded from there for each prediction, so that at most one member is in memory.

    Attributes:
        terms: P(m), the members' temperatures, and that of the combination.
        directory: the folder that contains ``members``.
        members_epoch: the epoch of the members to load; ``None`` for the one that each deploys.
    """

    has_fitted_terms = True
    directory: str | Path
    members_epoch: int | None

    def check_cfg(self, cfg: CfgNode) -> None:
        node = self.node
        members = [parse_member(name)[1:] for name in node.MEMBERS]
        if not members or len(set(members)) < len(members):
            raise ValueError(
                "TRAINER.BACKDOOR.MEMBERS must list at least one backbone, and each once (BACKBONE#1 is a second seed "
                f"of BACKBONE; got {list(node.MEMBERS)})"
            )
        for key, known in _CHOICES.items():
            if node[key] not in known:
                choices = ", ".join(known).removeprefix(", ")
                raise ValueError(f"TRAINER.BACKDOOR.{key} must be one of {choices} (got '{node[key]}')")
        if node.DEBIAS and (config.class_name(node.BASE) in _DEBIASED or cfg.TRAINER.FINETUNE.LOSS == "gla_train"):
            raise ValueError(
                f"TRAINER.BACKDOOR.DEBIAS would subtract log q twice, as BASE {node.BASE} subtracts it already: set "
                "TRAINER.BACKDOOR.DEBIAS to False"
            )
        if node.DEBIAS:
            check_prior(cfg, "BACKDOOR")
        if cfg.SEED < 0:
            raise ValueError("the members must be trained on the same sample of images: set SEED to 0 or more")
        if node.MEMBERS_DIR and not Path(node.MEMBERS_DIR).is_dir():
            raise FileNotFoundError(f"TRAINER.BACKDOOR.MEMBERS_DIR '{node.MEMBERS_DIR}' does not exist: check the path")

    def build_data_loader(self) -> None:
        super().build_data_loader()
        self.dataset, self.classnames = self.dm.dataset, self.dm.dataset.classnames
        self.test_loader = None  # test labels are the evaluator's alone
        if self.node.WEIGHTS == "val" and self.dataset.train_x and not self.dataset.val:
            other = "DATASET.TRAIN_ON_VAL to False" if self.cfg.DATASET.TRAIN_ON_VAL else "DATASET.HOLDOUT to 0.05"
            raise ValueError(
                f"TRAINER.BACKDOOR.WEIGHTS is val, but '{self.cfg.DATASET.NAME}' has no val split: "
                f'set it to uniform or "", or set {other}'
            )

    def build_model(self) -> None:
        self.members = [parse_member(name) for name in self.node.MEMBERS]
        self.directory, self.members_epoch = self.output_dir, None
        self._described: dict[Member, dict[str, Any]] = {}
        self._trained: dict[str, int] = {}  # parameters by member
        self.terms = MemberTerms(self._identity(self.node), len(self.members)).to(self.device)
        self.register_model("backdoor", self.terms)

    def _identity(self, node: Mapping[str, Any]) -> list[str]:
        """Return the classes, members and settings for which the terms are valid.

        Terms of older runs, without a temperature of the combination, have another identity too.
        """
        settings = (f"{key} {node[key]}" for key in _SETTINGS if key in node)
        return [*self.classnames, *node.get("MEMBERS", ()), *settings, "temperature"]

    @classmethod
    def is_class_bound(cls, cfg: CfgNode) -> bool:
        base = cfg.TRAINER[cls.node_name_in(cfg)].BASE
        return TRAINER_REGISTRY.get(config.class_name(base)).is_class_bound(cfg)

    @property
    def calibrated(self) -> bool:
        return self.node.CALIBRATE != "none"

    @property
    def uses_val(self) -> bool:
        node = self.node
        return node.DEBIAS or node.CALIBRATE != "none" or node.WEIGHTS != "uniform"

    @property
    def logit_adjusted(self) -> bool:
        return self.node.DEBIAS or build_trainer(self._member_config(self.members[0])).logit_adjusted

    # --- members ------------------------------------------------------------------------------------

    def _member_config(self, member: Member) -> CfgNode:
        return member_config(self.cfg, member, Path(self.directory) / "members" / path_safe(member.name))

    def train_member(self, member: Member) -> None:
        """Train a member, unless its folder or a folder below ``MEMBERS_DIR`` holds the finished run."""
        cfg, main = self._member_config(member), self.accelerator.is_main_process
        folder = RunDir(cfg.OUTPUT_DIR)
        with together():
            if main and not folder.is_finished_run_of(cfg):
                self._prepare(folder, cfg)
        if folder.is_finished_run_of(cfg):
            logger.info("The member is trained already")
        else:
            set_random_seed(cfg.SEED)
            build_trainer(cfg).fit()
            with together():
                if main:
                    folder.finish(cfg)
        if self.node.DEBIAS:
            cfg = debiased_config(cfg, self.node)
            with together():
                if main:
                    RunDir(cfg.OUTPUT_DIR).prepare(cfg)  # an older run's prior must not be resumed
            debiased = build_trainer(cfg)
            debiased.fit()
            with together():
                if main:
                    write_prior(RunDir(cfg.OUTPUT_DIR).prior, debiased)
            del debiased
        backbones.release()

    def _prepare(self, folder: RunDir, cfg: CfgNode) -> None:
        """Remove a run with another config, and copy the finished run from ``MEMBERS_DIR`` if it is there."""
        stale = folder.is_finished  # with another config, or with files that have changed since
        folder.prepare(cfg)
        if stale:
            folder.drop_checkpoints()
        source = RunDir.find(self.node.MEMBERS_DIR, cfg) if self.node.MEMBERS_DIR else None
        if source:
            logger.info(f"Copy the member from {source.path}")
            source.copy_checkpoints(folder)
            folder.finish(cfg)

    def member_logits(self, member: Member, paths: Sequence[str]) -> Tensor:
        """Return a member's logits [N, C], before temperature scaling.

        Raises:
            FileNotFoundError: the member is not trained.
        """
        trainer = self._load_member(member)
        logits = trainer.predict(paths)
        self._trained[member.name] = trainer.trained_parameters()
        del trainer
        backbones.release()
        return logits

    def _load_member(self, member: Member) -> SimpleTrainer:
        trainer, directory = self._build_member(member)
        trainer.load_model(directory, self.members_epoch)
        return trainer

    def _build_member(self, member: Member) -> tuple[SimpleTrainer, str]:
        """Return a member's trainer without its weights, and the folder that holds them."""
        cfg = self._member_config(member)
        cfg = debiased_config(cfg, self.node) if self.node.DEBIAS else cfg
        # An evaluation reads the trained run's folder and writes only into its own.
        here = Path(self.output_dir) / Path(cfg.OUTPUT_DIR).relative_to(self.directory)
        trainer = build_trainer(config.derive(cfg, {"OUTPUT_DIR": str(here)}))
        self._described[member] = trainer.foundation_models()[0]
        self.transductive = trainer.transductive
        return trainer, cfg.OUTPUT_DIR

    def foundation_models(self) -> list[dict[str, Any]]:
        for member in self.members:
            if member not in self._described:  # no prediction has built it
                self._build_member(member)
                backbones.release()
        return [self._described[member] for member in self.members]

    def _all_logits(self, paths: Sequence[str]) -> Tensor:
        """Return the logits [M, N, C] of all members, before temperature scaling."""
        logits = torch.empty(0)
        for number, member in enumerate(self.members):
            rows = self.member_logits(member, paths)
            if number == 0:
                logits = rows.new_empty(len(self.members), *rows.shape)
            logits[number] = rows
        return logits

    def trained_parameters(self) -> int:
        """Return the sum over the members that have predicted: the other members are not loaded."""
        return sum(self._trained.values())

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
        """Fit temperatures and weights on val; without val, set temperatures of 1 and uniform weights."""
        check_can_fit(self.dataset)
        self.terms.reset()
        items, node = self.dataset.val or [], self.node
        if not items:
            logger.info("No val images: the members have equal weights and temperatures of 1")
            return
        if (node.CALIBRATE, node.WEIGHTS) == ("none", "uniform"):
            return
        paths, labels = [item.impath for item in items], labels_of(items).to(self.device)
        logits = self._all_logits(paths)
        if node.CALIBRATE != "none":
            temperatures = [fit_temperature(member_logits, labels, method=node.CALIBRATE) for member_logits in logits]
            self.terms.temperatures.copy_(torch.tensor(temperatures))
        logits = logits / self.terms.temperatures[:, None, None]
        if node.WEIGHTS != "uniform":
            self.terms.weights.copy_(fit_member_weights(logits, labels, node.COMBINE))
        if node.CALIBRATE != "none":
            combined = combine_members(logits, self.terms.weights, node.COMBINE)
            self.terms.fill(temperature=fit_temperature(combined, labels, method=node.CALIBRATE))
        for member, weight, temperature in zip(self.members, self.terms.weights, self.terms.temperatures, strict=True):
            logger.info(f"{member.name}: weight {weight:.3g}, temperature {temperature:.3g}")
        logger.info(f"combination: temperature {self.terms.temperature:.3g}")

    # --- prediction ---------------------------------------------------------------------------------

    @torch.no_grad()
    def predict_parts(self, paths: Sequence[str]) -> Prediction:
        """Return the combined logits, with the calibrated logits of each member as parts."""
        logits = self._all_logits(paths)
        logits /= self.terms.temperatures[:, None, None]
        parts = {path_safe(member.name): part for member, part in zip(self.members, logits, strict=True)}

        def combine(rows: slice) -> dict[str, Tensor]:
            mean = combine_members(logits[:, rows], self.terms.weights, self.node.COMBINE)
            return {"backdoor": mean / self.terms.temperature}

        combined = in_blocks(combine, row_blocks(len(paths), logits.shape[0] * logits.shape[2]))
        return Prediction(combined["backdoor"], {**parts, **combined})

    def predict(self, paths: Sequence[str]) -> Tensor:
        return self.predict_parts(paths).logits

    def image_model(self) -> nn.Module:
        members = [self._load_member(member).image_model() for member in self.members]
        terms = self.terms
        return MixtureModel(members, terms.temperatures, terms.weights, self.node.COMBINE, terms.temperature)

    def class_groups(self) -> dict[str, Tensor]:
        if not self.dataset.train_x:  # a test-only set
            return {}
        groups = {**super().class_groups(), **dataset_groups(self.cfg, self.device)}
        return groups | crossed_groups(groups)

    def load_model(self, directory: str | Path, epoch: int | None = None) -> None:
        """Use the members in ``directory``, at their epoch ``epoch``; fit the terms again for other settings."""
        if directory:
            self.directory, self.members_epoch = directory, epoch
        use = use_of(self, "backdoor", ("MEMBERS", *_SETTINGS), self._identity, directory)
        if use is Use.LOAD:
            super().load_model(directory)
        elif use is Use.CARRY:
            state = saved_state(directory, "backdoor") or {}
            self.terms.fill(
                **{name: state[name] for name in ("weights", "temperatures", "temperature") if name in state}
            )
        # The saved terms belong to the deployed epoch and to their settings.
        if use is Use.FIT or (epoch is not None and may_fit(self, directory)):
            logger.info("Fit the temperatures and weights of the members again")
            self.fit_terms()
        elif epoch is not None:
            logger.info(f"Weights and temperatures are those of the epoch that '{directory}' keeps")
