"""Linear probe: logistic regression on frozen image features (Radford et al. 2021, arXiv 2103.00020, section 3.2)."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from tqdm import tqdm

from unskew.engine.checkpoint import bind_to_classes
from unskew.engine.clip_trainer import CLIPTrainer
from unskew.engine.trainer import TRAINER_REGISTRY

CANDIDATES = tuple(10.0**power for power in range(-2, 5))


@TRAINER_REGISTRY.register()
class LinearProbe(CLIPTrainer):
    """Multinomial logistic regression (L2, L-BFGS) on normalised features of the images, without augmentation."""

    def build_model(self) -> None:
        with torch.device(self.device):
            self.head = torch.nn.Linear(self.zeroshot_weights.shape[1], self.num_classes).requires_grad_(False)
        bind_to_classes(self.head, self.classnames)
        self.register_model("head", self.head.to(self.device))

    def logits(self, image_features: Tensor) -> Tensor:
        return self.head(F.normalize(image_features, dim=-1))

    def train(self) -> None:
        self.before_train()
        candidates: Sequence[float] = CANDIDATES if self.dataset.val else (1.0,)
        if self.node.C:
            candidates = (self.node.C,)
        paths, labels = self.labelled(self.dataset.train_x)
        inputs, targets = F.normalize(self.encode(paths), dim=-1).cpu().numpy(), labels.cpu().numpy()
        best_accuracy, model = -1.0, LogisticRegression(max_iter=2000, warm_start=True)
        for candidate in tqdm(candidates, desc="linear probe", delay=2, leave=False, disable=None):
            model.set_params(C=candidate).fit(inputs, targets)
            accuracy = self._val_accuracy(model) if len(candidates) > 1 else 0.0
            if accuracy > best_accuracy:  # of equal accuracies, the stronger regularisation wins
                best_accuracy, weight, bias = accuracy, *self._weights_of(model)
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(weight))
            self.head.bias.copy_(torch.from_numpy(bias))
        self.save_model(0, self.output_dir)
        self.after_train()

    def _val_accuracy(self, model: LogisticRegression) -> float:
        paths, labels = self.labelled(self.dataset.val)
        return model.score(F.normalize(self.encode(paths), dim=-1).cpu().numpy(), labels.cpu().numpy())

    def _weights_of(self, model: LogisticRegression) -> tuple[np.ndarray, np.ndarray]:
        """Return weights [C, D] and biases [C] of all classes.

        scikit-learn has one row for two classes and none for a class without images.
        """
        rows, bias = model.coef_, model.intercept_
        if len(model.classes_) == 2:
            rows, bias = np.concatenate([-rows, rows]) / 2, np.concatenate([-bias, bias]) / 2
        weight = np.zeros((self.num_classes, rows.shape[1]))
        full_bias = np.full(self.num_classes, bias.min() - 10.0)
        weight[model.classes_], full_bias[model.classes_] = rows, bias
        return weight, full_bias
