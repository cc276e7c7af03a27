"""TransCLIP: transductive CLIP (Zanella et al., NeurIPS 2024, arXiv 2406.01837).

A Gaussian mixture of the image features, whose assignments stay near the zero-shot predictions and near those of
similar images, is fitted to the images of one prediction.
"""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from unskew.data.dataset import Datum
from unskew.engine.checkpoint import bind_to_classes
from unskew.engine.clip_trainer import CLIPTrainer
from unskew.engine.trainer import TRAINER_REGISTRY
from unskew.utils.blocks import row_blocks

logger = logging.getLogger("unskew")

# The numbers of the authors' release, which are the same for all datasets.
NEIGHBOURS = 3
ITERATIONS = 10  # of the mixture's parameters
INNER_ITERATIONS = 5  # of the assignments at given parameters
TEMPERATURE = 50.0  # divides the log likelihood
CONFIDENT = 8  # images per class whose mean starts a component without labels
LAMBDA = {"zero-shot": 1.0, "few-shot": 0.5}  # exponent of the zero-shot prediction

TINY = 1e-10  # least variance, for dimensions in which all images are equal

BLOCK = 2**24  # numbers of a block of similarities


class Labelled(NamedTuple):
    """Normalised features of labelled images."""

    features: Tensor  # [S, D]
    labels: Tensor  # [S]


class Graph(NamedTuple):
    """The affinities w of the images to predict (Q) and the labelled ones."""

    queries: Tensor  # [Q, Q], sparse: w_ij + w_ji
    labelled: Tensor  # [Q, C]: sum over labelled images j of w_ji times the one-hot label


# --- affinities -------------------------------------------------------------------------------------


def nearest(features: Tensor, others: Tensor, count: int, itself: bool = False) -> tuple[Tensor, Tensor]:
    """Return similarities and indices ``[N, count]`` of the nearest others, computed in blocks.

    Args:
        features: ``[N, D]``, normalised.
        others: ``[M, D]``, normalised.
        count: Number of neighbours.
        itself: Whether both are the same images; an image is then no neighbour of its own.
    """
    values, places = [], []
    for rows in row_blocks(len(features), len(others), BLOCK):
        similarities = features[rows] @ others.T
        if itself:
            similarities[torch.arange(rows.stop - rows.start), torch.arange(rows.start, rows.stop)] = -torch.inf
        best = similarities.topk(count, dim=1)
        values.append(best.values)
        places.append(best.indices)
    return torch.cat(values), torch.cat(places)


def build_graph(queries: Tensor, classes: int, support: Labelled | None = None) -> Graph:
    """Return the affinities max(0, cosine) of each image with its nearest images to predict.

    A labelled image has neighbours among the images to predict alone.
    """
    count = len(queries)
    neighbours = min(NEIGHBOURS, count - 1)
    weights, columns = nearest(queries, queries, neighbours, itself=True)
    rows = torch.arange(count, device=queries.device).repeat_interleave(neighbours)
    pairs = torch.stack([rows, columns.flatten()])
    values = weights.flatten().clamp_min(0).double().repeat(2)
    pairs = torch.cat([pairs, pairs.flip(0)], 1)
    symmetric = torch.sparse_coo_tensor(pairs, values, (count, count), check_invariants=False).coalesce()
    labelled = torch.zeros(count, classes, dtype=torch.float64, device=queries.device)
    if support is not None and len(support.labels):
        weights, places = nearest(support.features, queries, min(NEIGHBOURS, count))
        cells = places * classes + support.labels[:, None]
        labelled.view(-1).index_add_(0, cells.flatten(), weights.flatten().clamp_min(0).double())
    return Graph(symmetric, labelled)


# --- the mixture ------------------------------------------------------------------------------------


class Mixture:
    """A Gaussian component per class on the unit sphere, with one diagonal covariance.

    Attributes:
        means: ``[C, D]``, normalised.
        variances: ``[D]``.
    """

    def __init__(self, queries: Tensor, predicted: Tensor, support: Labelled | None) -> None:
        """Start the means at the labelled images of each class or, without them, at the most confident images.

        Args:
            queries: ``[Q, D]``, normalised, in float64.
            predicted: ``[Q, C]``, zero-shot probabilities.
            support: Labelled images.
        """
        best = predicted.topk(min(CONFIDENT, len(queries)), dim=0)  # [8, C]
        means = torch.stack([w @ queries[i] for w, i in zip(best.values.T, best.indices.T, strict=True)])
        self._support, self._sums, self._counts = support, torch.zeros_like(means), means.new_zeros(len(means))
        if support is not None:
            self._sums.index_add_(0, support.labels, support.features.to(means))
            self._counts += support.labels.bincount(minlength=len(means))
            means = torch.where(self._counts[:, None] > 0, self._sums, means)
        self.means = F.normalize(means, dim=1)
        self.variances = means.new_full((means.shape[1],), 1 / means.shape[1])

    def log_likelihood(self, queries: Tensor) -> Tensor:
        """Return ``-1/2 (f - mu)^T Sigma^-1 (f - mu)`` ``[Q, C]``, up to a constant of each image."""
        scaled = self.means / self.variances
        return (queries @ scaled.T).sub_((scaled * self.means).sum(1) / 2)

    def update(self, queries: Tensor, assigned: Tensor, gamma: float) -> None:
        """Set means and variances to their optimum for assignments ``[Q, C]`` and the weight of the labelled images."""
        share = gamma * TEMPERATURE / max(1, int(self._counts.sum()))
        sums = assigned.T @ queries / len(queries) + share * self._sums
        counts = assigned.sum(0) / len(queries) + share * self._counts
        self.means = F.normalize(sums, dim=1)
        squares = queries.square().mean(0)
        if self._support is not None:
            squares = squares + share * self._support.features.to(queries).square().sum(0)
        spread = squares - 2 * (sums * self.means).sum(0) + counts @ self.means.square()
        self.variances = (spread / counts.sum()).clamp_min(TINY)


def transduce(
    queries: Tensor, log_predicted: Tensor, graph: Graph, support: Labelled | None = None, gamma: float = 0.0
) -> Tensor:
    """Return log assignments ``[Q, C]`` after the paper's block majorise-minimise updates, as released.

    The updates are ``z ~ yhat^lambda exp(log p / 50 + sum_j (w_ij + w_ji) z_j / (2 k))`` and the weighted means and
    variances, in which the labelled images have the weight ``50 gamma``; the factors 50 and 1/(2k) are the release's.

    Args:
        queries: ``[Q, D]``, normalised features of the images to predict.
        log_predicted: ``[Q, C]``, zero-shot log probabilities.
        graph: That of `build_graph`, for the same images.
        support: Labelled images of the few-shot form.
        gamma: Weight of the labelled images.
    """
    queries, log_predicted = queries.double(), log_predicted.double()
    assigned = log_predicted.exp()
    mixture = Mixture(queries, assigned, support)
    weight = LAMBDA["zero-shot" if support is None else "few-shot"]
    neighbours = 2 * NEIGHBOURS
    for iteration in range(ITERATIONS + 1):
        fixed = mixture.log_likelihood(queries).div_(TEMPERATURE).add_(log_predicted, alpha=weight)
        fixed.add_(graph.labelled, alpha=1 / neighbours)
        for _ in range(INNER_ITERATIONS):
            scores = torch.sparse.mm(graph.queries, assigned).div_(neighbours).add_(fixed)
            assigned = scores.softmax(1)
        if iteration < ITERATIONS:
            mixture.update(queries, assigned, gamma)
    return scores.log_softmax(1)


# --- the trainer ------------------------------------------------------------------------------------


class Samples(nn.Module):
    """The labelled features of train and val, for a checkpoint; their number is that of the checkpoint."""

    def __init__(self, classnames: Sequence[str], width: int) -> None:
        super().__init__()
        for name in ("train", "val"):
            self.register_buffer(f"{name}_features", torch.zeros(0, width))
            self.register_buffer(f"{name}_labels", torch.zeros(0, dtype=torch.long))
        bind_to_classes(self, classnames)

    def split(self, name: str) -> Labelled:
        """Return the images of "train" or "val"."""
        return Labelled(self.get_buffer(f"{name}_features"), self.get_buffer(f"{name}_labels"))

    def fill(self, name: str, samples: Labelled) -> None:
        """Set the images of "train" or "val"."""
        for key, values in samples._asdict().items():
            setattr(self, f"{name}_{key}", values.to(self.get_buffer(f"{name}_{key}")))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        for name, buffer in list(self.named_buffers(recurse=False)):
            saved = state_dict.get(prefix + name) if name != "classes" else None
            if saved is not None and saved.shape[1:] == buffer.shape[1:]:
                setattr(self, name, buffer.new_zeros(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)


@TRAINER_REGISTRY.register()
class TransCLIP(CLIPTrainer):
    """Assignments of all images of a prediction at once; the logits are their logarithms.

    The few-shot form also fits the mixture to the labelled images of train, and chooses their weight gamma on val: the
    image to predict that is nearest to an image of val answers for it, as in the release. Without val, and among equal
    accuracies, the first gamma wins.
    """

    transductive = True
    logit_adjusted = True  # the components have no label frequencies
    not_a_base = "which predicts an image from the other images to predict"

    @property
    def uses_val(self) -> bool:
        return self.node.FEW_SHOT

    @classmethod
    def is_class_bound(cls, cfg: CfgNode) -> bool:
        """Return whether the trainer holds labelled images of its classes."""
        return cfg.TRAINER.TRANSCLIP.FEW_SHOT

    def labelled_items(self) -> Sequence[Datum]:
        return super().labelled_items() if self.node.FEW_SHOT else []

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        if not self.node.GAMMAS or min(self.node.GAMMAS) < 0:
            raise ValueError(
                f"TRAINER.{self.node_name}.GAMMAS must list one or more numbers of 0 or more (got {self.node.GAMMAS})"
            )

    def build_model(self) -> None:
        self.samples = Samples(self.classnames, self.zeroshot_weights.shape[1]).to(self.device)
        if self.node.FEW_SHOT:
            self.register_model("samples", self.samples)

    def train(self) -> None:
        self.before_train()
        if self.node.FEW_SHOT:
            for name, items in (("train", self.dataset.train_x), ("val", self.dataset.val)):
                if items:
                    paths, labels = self.labelled(items)
                    self.samples.fill(name, Labelled(F.normalize(self.mean_features(paths), dim=1), labels))
            self.save_model(0, self.output_dir)
        self.after_train()

    @torch.no_grad()
    def predict(self, paths: Sequence[str]) -> Tensor:
        queries = F.normalize(self.mean_features(paths), dim=1).float()
        log_predicted = self.zeroshot_logits(paths).log_softmax(1)
        if not self.node.FEW_SHOT:
            return transduce(queries, log_predicted, build_graph(queries, self.num_classes)).float()
        support, val = self.samples.split("train"), self.samples.split("val")
        graph = build_graph(queries, self.num_classes, support)
        places = nearest(val.features, queries, 1)[1][:, 0] if len(val.labels) else val.labels  # [V]
        chosen, best = self.node.GAMMAS[0], (-1, queries)
        for gamma in self.node.GAMMAS if len(val.labels) else [chosen]:
            logits = transduce(queries, log_predicted, graph, support, gamma).float()
            correct = int((logits[places].argmax(1) == val.labels).sum())
            if correct > best[0]:
                chosen, best = gamma, (correct, logits)
        logger.info(f"TransCLIP: gamma {chosen:g}, with {best[0]} of {len(val.labels)} images of val correct")
        return best[1]
