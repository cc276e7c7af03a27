"""Worlds in which the class bias is known: Gaussian classes, scored by the exact log posterior under a skewed prior."""

import numpy as np


class ExactWorld:
    """C Gaussian classes with unit variance in ``dim`` dimensions, and a model that saw them with prior q.

    The model's logits are the exact log posterior up to a constant per row, so that its temperature is 1, its bias is
    log q, and logits minus log q are Bayes' rule for balanced images.
    """

    def __init__(self, classes, imbalance, seed, dim=4, separation=1.0):
        self.rng = np.random.default_rng(seed)
        self.means = separation * self.rng.normal(size=(classes, dim))
        log_q = -np.linspace(0, np.log(imbalance), classes)
        self.log_q = self.rng.permutation(log_q - np.log(np.exp(log_q).sum()))

    def sample(self, counts):
        """Return logits [N, C] and labels [N], with as many images of each class as ``counts`` says."""
        labels = np.repeat(np.arange(len(self.means)), counts)
        images = self.means[labels] + self.rng.normal(size=(len(labels), self.means.shape[1]))
        return images @ self.means.T - 0.5 * (self.means**2).sum(1) + self.log_q, labels
