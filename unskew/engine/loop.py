"""`TrainerBase`: the loop over epochs, its hooks, and the models that it trains; knows nothing of data."""

import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from unskew.engine import checkpoint

logger = logging.getLogger("unskew")


class TrainerBase:
    """The loop over epochs and the models that it trains.

    Attributes:
        epoch_callbacks: called with the trainer after each epoch's ``after_epoch``.
        show_progress: a bar over the epochs on a terminal, once training takes more than two seconds.
    """

    accelerator = None
    show_progress = True

    def __init__(self) -> None:
        self._models: OrderedDict[str, nn.Module] = OrderedDict()
        self._optims: OrderedDict[str, torch.optim.Optimizer | None] = OrderedDict()
        self._scheds: OrderedDict[str, object | None] = OrderedDict()
        self._writer = None
        self._finite: Tensor | None = None
        self.epoch_callbacks: list[Callable[[TrainerBase], None]] = []

    # --- models -------------------------------------------------------------------------------------

    def register_model(self, name: str = "model", model=None, optim=None, sched=None) -> None:
        """File a model (or a part of one) under the name of its checkpoints' folder.

        Without an optimiser it is saved and restored, but not trained.
        """
        if "_models" not in self.__dict__:
            raise AttributeError("call super().__init__() before register_model()")
        if name in self._models:
            raise ValueError(f"a model named '{name}' is already registered; give each its own name")
        if optim is not None and self._scaler is not None:  # all that accelerate's wrapper adds, at 0.3 ms a step
            optim = self.accelerator.prepare_optimizer(optim)
        self._models[name], self._optims[name], self._scheds[name] = model, optim, sched

    def get_model_names(self, names=None) -> list[str]:
        """All registered names, or ``names`` as a list once they are known to be registered."""
        if names is None:
            return list(self._models)
        names = [names] if isinstance(names, str) else list(names)
        for name in names:
            if name not in self._models:
                raise ValueError(f"no model named '{name}' is registered (there are {', '.join(self._models)})")
        return names

    def set_model_mode(self, mode: str = "train", names=None) -> None:
        """``train()`` for mode "train", ``eval()`` for "eval" and "test"."""
        if mode not in ("train", "test", "eval"):
            raise KeyError(f"mode must be train, test or eval, got '{mode}'")
        for name in self.get_model_names(names):
            self._models[name].train(mode == "train")

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """A copy of each registered model's state, by name."""
        return {
            name: {key: value.detach().clone() for key, value in model.state_dict().items()}
            for name, model in self._models.items()
        }

    def load_state_dict(self, states: dict[str, dict[str, Tensor]]) -> None:
        """Put back what `state_dict` gave."""
        for name in self.get_model_names(list(states)):
            self._models[name].load_state_dict(states[name])

    # --- checkpoints --------------------------------------------------------------------------------

    def save_model(self, epoch: int, directory, is_best: bool = False, val_result=None, model_name: str = "") -> None:
        """Save each model to ``directory/<its name>/``; ``epoch`` counts from 0, the file's number from 1."""
        if self.accelerator is not None and not self.accelerator.is_main_process:
            return
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

    def resume_model_if_exist(self, directory) -> int:
        """Restore every model from its last checkpoint below ``directory``.

        Returns:
            The epoch to go on from; 0 where a checkpoint is missing or the models' epochs differ.
        """
        paths = {name: checkpoint.last_checkpoint(Path(directory) / name) for name in self._models}
        if not paths or None in paths.values():
            logger.info("No checkpoint found, train from scratch")
            return 0
        states = {name: checkpoint.load_checkpoint(path) for name, path in paths.items()}
        if len({state["epoch"] for state in states.values()}) > 1:
            logger.warning(f"The checkpoints in '{directory}' are of different epochs, train from scratch")
            return 0
        logger.info(f"Found checkpoint at {directory} (will resume training)")
        for name, state in states.items():
            parts = (self._models[name], self._optims[name], self._scheds[name], self._scaler)
            epoch = checkpoint.restore(state, *parts, source=paths[name])
        self.load_extra_state(state)
        return epoch

    def extra_state(self) -> dict:
        """What else a checkpoint keeps, beside the models: tensors and plain values by name."""
        return {}

    def load_extra_state(self, state: dict) -> None:
        """Put back what `extra_state` gave, from a loaded checkpoint, which may lack it."""

    def load_model(self, directory, epoch: int | None = None) -> None:
        """Load every model's weights: those of ``epoch`` (from 1), else the best ones, else the last ones.

        Raises:
            FileNotFoundError: there is no such checkpoint.
            ValueError: it is broken or does not fit the model.
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
    def _scaler(self):
        return None if self.accelerator is None else self.accelerator.scaler

    def scale_loss(self, loss: Tensor) -> Tensor:
        """The loss as mixed precision has to see it, for a trainer that takes its gradients itself."""
        return loss if self._scaler is None else self._scaler.scale(loss)

    def detect_anomaly(self, loss: Tensor) -> None:
        """Raise ``FloatingPointError`` for a loss that is not finite. Waits for the device."""
        if not torch.isfinite(loss).all():
            raise FloatingPointError("Loss is infinite or NaN!")

    def _raise_if_anomalous(self) -> None:
        """`detect_anomaly` for all losses since the last call, of which only this was kept on the device."""
        zero, self._finite = self._finite, None
        if zero is not None and not math.isfinite(zero):
            raise FloatingPointError(f"Loss is infinite or NaN! (epoch {self.epoch + 1}); lower OPTIM.LR")

    def model_zero_grad(self, names=None) -> None:
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].zero_grad()

    def watch(self, loss: Tensor) -> None:
        """Remember, without waiting for the device, whether the loss was finite; training stops if it was not."""
        zero = (loss.detach() * 0).sum()  # NaN where it was not
        self._finite = zero if self._finite is None else self._finite + zero

    def model_backward(self, loss: Tensor) -> None:
        """Gradients of the loss, scaled where mixed precision asks for it."""
        self.watch(loss)
        self.scale_loss(loss).backward()

    def model_update(self, names=None) -> None:
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._average_gradients(self._optims[name])
                self._optims[name].step()

    def _average_gradients(self, optim) -> None:
        """Mean over processes. A registered model may be a part of what is called, so no wrapper can see its calls."""
        if self.accelerator is None or self.accelerator.num_processes == 1:
            return
        for group in optim.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad = self.accelerator.reduce(parameter.grad, "mean")

    def model_backward_and_update(self, loss: Tensor, names=None) -> None:
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)

    def update_lr(self, names=None) -> None:
        """Step the schedules; the trainer calls it at the last batch of each epoch."""
        for name in self.get_model_names(names):
            if self._scheds[name] is not None:
                self._scheds[name].step()

    def get_current_lr(self, names=None) -> float:
        """The learning rate of the first named model that is trained; NaN if none is."""
        optims = (self._optims[name] for name in self.get_model_names(names))
        return next((optim.param_groups[0]["lr"] for optim in optims if optim is not None), math.nan)

    # --- tensorboard --------------------------------------------------------------------------------

    def init_writer(self, log_dir) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(log_dir=str(log_dir))

    def close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def write_scalar(self, tag: str, scalar_value, global_step=None) -> None:
        """Does nothing unless `init_writer` was called: there is a writer only in training."""
        if self._writer is not None:
            self._writer.add_scalar(tag, scalar_value, global_step)

    # --- the loop and its hooks ---------------------------------------------------------------------

    def train(self, start_epoch: int, max_epoch: int) -> None:
        """All epochs from ``start_epoch``, which ``before_train`` may move on, to ``max_epoch``."""
        self.start_epoch, self.max_epoch = start_epoch, max_epoch
        try:
            self.before_train()
            for epoch in self._epochs():
                self.epoch = epoch
                self.seed_epoch()
                self.before_epoch()
                self.run_epoch()
                self._raise_if_anomalous()
                self.after_epoch()
                for callback in self.epoch_callbacks:
                    callback(self)
            self.after_train()
        finally:
            self.close_writer()

    def _epochs(self) -> Iterable[int]:
        epochs = range(self.start_epoch, self.max_epoch)
        disable = None if self.show_progress else True  # None: no bar unless on a terminal
        return tqdm(epochs, desc=type(self).__name__, unit="epoch", delay=2, leave=False, disable=disable)

    def seed_epoch(self) -> None:
        """Make the epoch's random draws depend on the seed and the epoch alone."""

    def before_train(self) -> None:
        pass

    def after_train(self) -> None:
        pass

    def before_epoch(self) -> None:
        pass

    def after_epoch(self) -> None:
        pass

    def run_epoch(self) -> None:
        raise NotImplementedError

    def test(self, split: str | None = None) -> float:
        raise NotImplementedError

    def predict(self, paths: Sequence[str]) -> Tensor:
        raise NotImplementedError

    def parse_batch_train(self, batch):
        raise NotImplementedError

    def parse_batch_test(self, batch):
        raise NotImplementedError

    def forward_backward(self, batch):
        """One step on a batch; returns what is logged, ``{"loss": ..}``, as tensors that stay on the device."""
        raise NotImplementedError

    def model_inference(self, input):
        raise NotImplementedError
