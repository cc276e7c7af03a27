"""The moments of checkpoints, and the number of them that stay."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from yacs.config import CfgNode

from unskew.engine import checkpoint

if TYPE_CHECKING:
    from unskew.engine.loop import TrainerBase

# A run without a checkpoint for so long saves one, so that a kill costs a few minutes.
SECONDS = 120.0


class CheckpointSchedule:
    """Checkpoints after the epochs that the config names, after the last epoch, and every two minutes.

    Args:
        node: ``cfg.TRAIN``, with ``CHECKPOINT_FREQ`` and ``KEEP``.
    """

    def __init__(self, node: CfgNode) -> None:
        self.frequency, self.keep = node.CHECKPOINT_FREQ, node.KEEP
        self._saved_at, self._took = time.monotonic(), 0.0

    def is_due(self, epochs: int, last: int) -> bool:
        """Return whether to save after so many of ``last`` epochs; saving takes at most a tenth of the time."""
        if epochs == last or (self.frequency > 0 and epochs % self.frequency == 0):
            return True
        return time.monotonic() - self._saved_at >= max(SECONDS, 10 * self._took)

    def save(self, trainer: "TrainerBase", epoch: int, directory: str | Path) -> None:
        """Save the models, then delete their older checkpoints: a kill in between leaves too many, not too few."""
        started = time.monotonic()
        trainer.save_model(epoch, directory)
        if trainer.accelerator is None or trainer.accelerator.is_main_process:
            for name in trainer.get_model_names():
                checkpoint.prune(Path(directory) / name, epoch + 1, self.keep, self.frequency)
        self._saved_at = time.monotonic()
        self._took = self._saved_at - started
