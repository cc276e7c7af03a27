"""The training loop: `TrainerBase` owns the models, their checkpoints and the order of the hooks, but no data."""

import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from unskew.engine import checkpoint
from unskew.engine.accelerator import average, average_gradients
from unskew.engine.events import EventWriter
from unskew.engine.history import History
from unskew.utils.processes import Share

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger("unskew")

Names = str | Sequence[str] | None


class TrainerBase:
    """The loop over epochs and the models that it trains.

    Attributes:
        accelerator: devices, precision and processes; ``None`` for a trainer that needs no accelerator.
        epoch_callbacks: functions of the trainer, called after each epoch's ``after_epoch``.
        batch_share: this process's part of the present batch; ``None`` for the whole batch.
        show_progress: whether a terminal shows a bar over the epochs when training takes more than two seconds.
    """

    accelerator: "Accelerator | None" = None
    batch_share: Share | None = None
    show_progress = True

    def __init__(self) -> None:
        self._models: OrderedDict[str, nn.Module] = OrderedDict()
        self._optims: OrderedDict[str, torch.optim.Optimizer | None] = OrderedDict()
        self._scheds: OrderedDict[str, Any] = OrderedDict()
        self._writer: EventWriter | None = None
        self._finite: Tensor | None = None
        self._history = History()
        self._resumed_from: Path | None = None
        self.epoch_callbacks: list[Callable[[TrainerBase], None]] = []

    # --- models -------------------------------------------------------------------------------------

    def register_model(
        self,
        name: str = "model",
        model: Any = None,
        optim: torch.optim.Optimizer | None = None,
        sched: Any = None,
    ) -> None:
        """Register a model, or a part of one, with its optimizer and schedule.

        Args:
            name: the folder of its checkpoints.
            model: the module.
            optim: its optimizer; a model without one is saved and restored, but not trained.
            sched: its learning-rate schedule.

        Raises:
            ValueError: the name is registered already.
        """
        if "_models" not in self.__dict__:
            raise AttributeError("call super().__init__() before register_model()")
        if name in self._models:
            raise ValueError(f"a model named '{name}' is registered already: give each model another name")
        if optim is not None and self.accelerator is not None and self.accelerator.scaler is not None:
            # accelerate's wrapper adds nothing but loss scaling, and costs 0.3 ms per step
            optim = self.accelerator.prepare_optimizer(optim)
        self._models[name], self._optims[name], self._scheds[name] = model, optim, sched

    def get_model_names(self, names: Names = None) -> list[str]:
        """Return ``names`` as a list, by default all registered names.

        Raises:
            ValueError: a name is not registered.
        """
        if names is None:
            return list(self._models)
        names = [names] if isinstance(names, str) else list(names)
        for name in names:
            if name not in self._models:
                raise ValueError(f"no model named '{name}' is registered (there are {', '.join(self._models)})")
        return names

    def set_model_mode(self, mode: str = "train", names: Names = None) -> None:
        """Switch models to training (mode "train") or evaluation (mode "eval" or "test").

        Raises:
            KeyError: the mode is unknown.
        """
        if mode not in ("train", "test", "eval"):
            raise KeyError(f"mode must be train, test or eval (got '{mode}')")
        for name in self.get_model_names(names):
            self._models[name].train(mode == "train")

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return a copy of each registered model's state, by name."""
        return {
            name: {key: value.detach().clone() for key, value in model.state_dict().items()}
            for name, model in self._models.items()
        }

    def load_state_dict(self, states: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Load the states that `state_dict` returned."""
        for name in self.get_model_names(list(states)):
            self._models[name].load_state_dict(states[name])

    def trained_parameters(self) -> int:
        """Return the number of weights that the training chooses: by default, those that an optimizer trains."""
        groups = (group for optim in self._named_optimizers(None) for group in optim.param_groups)
        trained = {parameter for group in groups for parameter in group["params"] if parameter.requires_grad}
        return sum(parameter.numel() for parameter in trained)

    # --- checkpoints --------------------------------------------------------------------------------

    def save_model(
        self,
        epoch: int,
        directory: str | Path,
        is_best: bool = False,
        val_result: float | None = None,
        model_name: str = "",
    ) -> None:
        """Save each model to ``directory/<name>/``, in the main process.

        Args:
            epoch: the epoch, counted from 0; the file's number counts from 1.
            directory: the folder of the run.
            is_best: save the file as ``model-best.pth.tar`` too.
            val_result: the score on val, stored in the file.
            model_name: file name instead of ``model.pth.tar-<epoch>``.
        """
        if self.accelerator is not None and not self.accelerator.is_main_process:
            return
        self._write_history()  # first: a run that resumes from this checkpoint needs the rows up to it
        for name, model in self._models.items():
            optim, sched = self._optims[name], self._scheds[name]
            state = {
                "state_dict": model.state_dict(),
                "epoch": epoch + 1,
                "optimizer": None if optim is None else optim.state_dict(),
                "scheduler": None if sched is None else sched.state_dict(),
                "val_result": val_result,
                **self.extra_state(),
            }
            if self._scaler is not None:
                state["scaler"] = self._scaler.state_dict()
            checkpoint.save_checkpoint(state, Path(directory) / name, is_best=is_best, model_name=model_name)

    def resume_model_if_exist(self, directory: str | Path) -> int:
        """Restore every model from its last checkpoint below ``directory``.

        Returns:
            The epoch to continue from; 0 if a checkpoint is missing or the models have none of the same epoch.
        """
        self._resumed_from = None
        paths = {name: checkpoint.last_checkpoint(Path(directory) / name) for name in self._models}
        if not paths or None in paths.values():
            logger.info("No checkpoint found, train from scratch")
            return 0
        candidates = [paths]
        # A kill between two models leaves them at different last epochs.
        epochs = set.intersection(*(set(checkpoint.saved_epochs(Path(directory) / name)) for name in self._models))
        for epoch in sorted(epochs, reverse=True):
            candidates.append({name: Path(directory) / name / f"model.pth.tar-{epoch}" for name in self._models})
        for paths in candidates:
            states = {name: checkpoint.load_checkpoint(path) for name, path in paths.items()}
            if len({state["epoch"] for state in states.values()}) == 1:
                break
        else:
            logger.warning(f"The checkpoints in '{directory}' are of different epochs, train from scratch")
            return 0
        logger.info(f"Found checkpoint at {directory} (will resume training)")
        for name, state in states.items():
            parts = (self._models[name], self._optims[name], self._scheds[name], self._scaler)
            epoch = checkpoint.restore(state, *parts, source=paths[name])
        self.load_extra_state(state)
        self._resumed_from = Path(directory)
        return epoch

    def extra_state(self) -> dict[str, Any]:
        """Return further tensors and plain values to save in each checkpoint, by name."""
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Load the values of `extra_state` from a checkpoint, which may lack them."""

    def load_model(self, directory: str | Path, epoch: int | None = None) -> None:
        """Load every model's weights: those of ``epoch`` (from 1), else the best, else the last.

        Raises:
            FileNotFoundError: there is no such checkpoint.
            ValueError: the checkpoint is damaged or does not fit the model.
        """
        if not directory:
            logger.info("load_model() is skipped, as no directory is given")
            return
        for name, model in self._models.items():
            folder = Path(directory) / name
            path = folder / (checkpoint.BEST if epoch is None else f"model.pth.tar-{epoch}")
            if epoch is None and not path.is_file():
                path = checkpoint.last_checkpoint(folder) or path
            state = checkpoint.load_checkpoint(path)
            checkpoint.load_weights(model, state["state_dict"], path)
            result = state.get("val_result")
            score = "" if result is None else f", val_result={result:.1f}"
            logger.info(f"Load {path} to {name} (epoch={state.get('epoch')}{score})")

    # --- one step -----------------------------------------------------------------------------------

    @property
    def _scaler(self) -> Any:
        """The loss scaler of mixed precision, or ``None``."""
        return None if self.accelerator is None else self.accelerator.scaler

    @property
    def _weight(self) -> float:
        """The factor of this process's loss in the mean over processes."""
        return 1.0 if self.batch_share is None else self.batch_share.weight

    def scale_loss(self, loss: Tensor) -> Tensor:
        """Return the loss scaled for mixed precision and for the process's share of the batch.

        A trainer that calls ``torch.autograd.grad`` itself needs it.
        """
        loss = loss if self._weight == 1 else loss * self._weight
        return loss if self._scaler is None else self._scaler.scale(loss)

    def average_over_processes(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the means of gradients over the processes, for a step that is not linear in the gradients."""
        return average(self.accelerator, tensors)

    def detect_anomaly(self, loss: Tensor) -> None:
        """Raise ``FloatingPointError`` for a loss that is not finite; wait for the device."""
        if not torch.isfinite(loss).all():
            raise FloatingPointError("Loss is infinite or NaN!")

    def watch(self, loss: Tensor) -> None:
        """Note on the device, without waiting for it, whether a loss is finite; training stops if it is not."""
        zero = (loss.detach() * 0).sum()  # NaN for a loss that is not finite
        self._finite = zero if self._finite is None else self._finite + zero

    def _raise_if_anomalous(self) -> None:
        """Raise ``FloatingPointError`` if a loss that `watch` saw since the last call was not finite."""
        zero, self._finite = self._finite, None
        if zero is not None:
            (zero,) = self.average_over_processes([zero])
        if zero is not None and not math.isfinite(zero):
            raise FloatingPointError(f"Loss is infinite or NaN! (epoch {self.epoch + 1}); lower OPTIM.LR")

    def model_zero_grad(self, names: Names = None) -> None:
        """Reset the gradients."""
        for optim in self._named_optimizers(names):
            optim.zero_grad()

    def model_backward(self, loss: Tensor) -> None:
        """Compute the gradients of the loss, scaled for mixed precision."""
        self.watch(loss)
        self.scale_loss(loss).backward()

    def model_update(self, names: Names = None) -> None:
        """Take a step with each optimizer, with gradients averaged over processes."""
        for optim in self._named_optimizers(names):
            average_gradients(self.accelerator, optim)
            optim.step()

    def model_backward_and_update(self, loss: Tensor, names: Names = None) -> None:
        """Reset the gradients, compute those of the loss and take a step."""
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)

    def update_lr(self, names: Names = None) -> None:
        """Step the schedules. Trainers call it at the last batch of each epoch."""
        for name in self.get_model_names(names):
            if self._scheds[name] is not None:
                self._scheds[name].step()

    def get_current_lr(self, names: Names = None) -> float:
        """Return the learning rate of the first named model that has an optimizer, or NaN."""
        return next((optim.param_groups[0]["lr"] for optim in self._named_optimizers(names)), math.nan)

    def _named_optimizers(self, names: Names) -> list[torch.optim.Optimizer]:
        optims = (self._optims[name] for name in self.get_model_names(names))
        return [optim for optim in optims if optim is not None]

    # --- tensorboard --------------------------------------------------------------------------------

    def init_writer(self, log_dir: str | Path) -> None:
        """Open the tensorboard writer, once."""
        if self._writer is None:
            self._writer = EventWriter(log_dir)

    def close_writer(self) -> None:
        """Close the tensorboard writer if it is open."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def write_scalar(self, tag: str, scalar_value: float | Tensor, global_step: int | None = None) -> None:
        """Write a number to tensorboard; do nothing without a writer, which is open only during training."""
        if self._writer is not None:
            self._writer.add_scalar(tag, scalar_value, global_step)

    # --- the numbers of each epoch ------------------------------------------------------------------

    def _record(self, **values: float) -> None:
        """Add numbers to the current epoch's row of ``history.csv``."""
        self._history.record(self.epoch + 1, **values)

    def _write_history(self) -> None:
        """Write ``history.csv`` in the main process. Each checkpoint does so, too: a resumed run needs no more rows."""
        folder = getattr(self, "output_dir", None)
        if folder and (self.accelerator is None or self.accelerator.is_main_process):
            self._history.write(folder)

    # --- the loop and its hooks ---------------------------------------------------------------------

    def train(self, start_epoch: int, max_epoch: int) -> None:
        """Run the epochs from ``start_epoch``, which ``before_train`` may raise to resume, to ``max_epoch``."""
        self.start_epoch, self.max_epoch = start_epoch, max_epoch
        try:
            self.before_train()
            self._history = History.read(self._resumed_from, self.start_epoch) if self._resumed_from else History()
            for epoch in self._epochs():
                self.epoch = epoch
                self.seed_epoch()
                self.before_epoch()
                self._record(lr=self.get_current_lr())
                self.run_epoch()
                self._raise_if_anomalous()
                self.after_epoch()
                for callback in self.epoch_callbacks:
                    callback(self)
            self._write_history()
            self.after_train()
        finally:
            self.close_writer()

    def _epochs(self) -> Iterable[int]:
        epochs = range(self.start_epoch, self.max_epoch)
        disable = None if self.show_progress else True  # None: no bar unless on a terminal
        return tqdm(epochs, desc=type(self).__name__, unit="epoch", delay=2, leave=False, disable=disable)

    def seed_epoch(self) -> None:
        """Seed the epoch's random draws by the seed and the epoch alone."""

    def before_train(self) -> None:
        """Run before the first epoch."""

    def after_train(self) -> None:
        """Run after the last epoch."""

    def before_epoch(self) -> None:
        """Run before each epoch."""

    def after_epoch(self) -> None:
        """Run after each epoch."""

    def run_epoch(self) -> None:
        """Train for one epoch."""
        raise NotImplementedError

    def test(self, split: str | None = None) -> float:
        """Return the main metric on a split."""
        raise NotImplementedError

    def predict(self, paths: Sequence[str]) -> Tensor:
        """Return the logits [N, C] of images."""
        raise NotImplementedError

    def parse_batch_train(self, batch: Any) -> Any:
        """Return the parts of a training batch, on the device."""
        raise NotImplementedError

    def parse_batch_test(self, batch: Any) -> Any:
        """Return the parts of a test batch, on the device."""
        raise NotImplementedError

    def forward_backward(self, batch: Any) -> dict[str, Any]:
        """Take one step on a batch; return values to log, such as ``{"loss": loss}``, as tensors on the device."""
        raise NotImplementedError

    def model_inference(self, input: Any) -> Any:
        """Return the model's output for a batch of inputs."""
        raise NotImplementedError
