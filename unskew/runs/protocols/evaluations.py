"""Evaluations of trained runs, as jobs of `unskew.runs.launchers.launch_jobs`."""

import functools
from collections.abc import Hashable
from dataclasses import dataclass, replace
from pathlib import Path

from unskew.engine.run_dir import RunDir
from unskew.runs import elsewhere, evaluate, launch
from unskew.runs.run import Run

_HALF = "DATASET.SUBSAMPLE_CLASSES"


@dataclass(frozen=True)
class Evaluation:
    """The test of a trained run on another dataset, or on another half of its classes.

    Attributes:
        source: the trained run; it need not be trained yet.
        dataset: the dataset to test on.
        half: "base" or "new"; empty for all classes.
    """

    source: Run
    dataset: str
    half: str = ""

    @property
    def label(self) -> str:
        """A few words for the line of progress."""
        half = f" ({self.half} classes)" if self.half else ""
        return f"{launch.label_of(self.source)}, on {self.dataset}{half}"

    def __getstate__(self) -> dict:
        """Return the description alone, see `Job`."""
        return {"source": self.source, "dataset": self.dataset, "half": self.half}

    @property
    def shares(self) -> Hashable:
        """The dataset and the backbones."""
        return self.dataset, self.source.root, self.source.backbone

    @functools.cached_property
    def preview(self) -> Run:
        """The evaluation's config before the source is trained; trainer and backbone are the source's."""
        run = self.source
        return Run(
            self.dataset, run.trainer, run.backbone, run.shots, run.seed, run.root, opts=self._opts, plugins=run.plugins
        )

    @functools.cached_property
    def _opts(self) -> tuple:
        """The source's KEY VALUE pairs; those of another dataset do not hold for this one."""
        pairs = zip(self.source.opts[::2], self.source.opts[1::2], strict=True)
        same = self.dataset == self.source.dataset
        kept = [pair for pair in pairs if pair[0] != _HALF and (same or not pair[0].startswith("DATASET."))]
        own = [(_HALF, self.half)] if self.half else []
        return tuple(part for pair in [*kept, *own] for part in pair)

    @property
    def place(self) -> Path:
        """The folder of the results."""
        return self.source.path / "eval" / evaluate.label(self.preview.config)

    def reads(self) -> elsewhere.Reads:
        """Return the paths that the evaluation reads, with the trained run and an unfinished evaluation."""
        return elsewhere.reads(self.preview, self.source.path, self.place)

    def moved(self, root: str) -> "Evaluation":
        """Return the evaluation for a worker without the driver's files."""
        return replace(self, source=elsewhere.moved(self.source, root))

    def finished(self) -> dict | None:
        """Return the metrics if this trained run was evaluated with this config."""
        if not RunDir(self.source.path).is_finished:
            return None
        return evaluate.finished_evaluation(self._run(), str(self.source.path))

    def execute(self) -> dict:
        """Evaluate the trained run; return the metrics."""
        return evaluate.evaluate(self._run(), str(self.source.path), console=False)[0]

    def _run(self) -> Run:
        run = Run(self.dataset, "", root=self.source.root, opts=self._opts, plugins=self.source.plugins)
        return evaluate.with_settings_of(str(self.source.path), run)
