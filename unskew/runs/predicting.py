"""The methods of a run that predict; they import PyTorch at the first call."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from unskew.runs import plugins

if TYPE_CHECKING:
    from unskew.runs.predict import Images, Predictions, Predictor, Probabilities


class Predicting:
    """The predictions of a finished run. `unskew.Run` is the only subclass."""

    plugins: tuple[str, ...]

    @property
    def path(self) -> Path:
        """The run's folder."""
        raise NotImplementedError

    def predict(self, images: "Images") -> "Predictions":
        """Return the predicted classes of images; the finished run's folder is enough, without its dataset.

        The first call loads the model, which stays in memory. With ``PRIOR unlabelled`` or ``COMBINE otter`` the result
        depends on all images of the call.

        Args:
            images: N paths, PIL images, tensors [3, H, W] or NumPy arrays [H, W, 3], or one tensor [N, 3, H, W] or
                array [N, H, W, 3]. Tensors and arrays hold bytes, or floats in [0, 1]; all images are preprocessed
                like those of the test.

        Returns:
            The ``labels`` [N], their ``names`` [N], and the names of all ``classes``.

        Raises:
            FileNotFoundError: the folder holds no finished run, or weights are missing.
            ValueError: an image cannot be read, the weights have changed, or an older version wrote the folder.

        Examples:
            >>> import tempfile, unskew
            >>> from PIL import Image
            >>> run = unskew.train("digits", "ZeroshotCLIP", shots=1, seed=1, output=tempfile.mkdtemp())
            >>> run.predict([Image.new("RGB", (32, 32))]).labels.shape
            (1,)
        """
        return self._predictor.predict(images)

    def predict_proba(self, images: "Images") -> "Probabilities":
        """Return the class ``probabilities`` [N, C] of images, and the names of the C ``classes``; see `predict`.

        They are calibrated: composite trainers calibrate their logits, those of others are divided by a temperature
        that was fitted on val. Without val, they are the softmax of the logits.
        """
        return self._predictor.predict_proba(images)

    @functools.cached_property
    def _predictor(self) -> "Predictor":
        from unskew.runs.predict import Predictor

        plugins.load(self.plugins)
        return Predictor(self.path)

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "_predictor"}  # a copy loads its own
