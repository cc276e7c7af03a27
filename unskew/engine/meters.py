"""Running averages that keep their values on the device until they are read."""

from collections import defaultdict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def _precision(device: torch.device | None) -> torch.dtype:
    """Return double precision, as Python's numbers have; Apple's GPUs lack it."""
    return torch.float32 if device is not None and device.type == "mps" else torch.float64


class AverageMeter:
    """Current value and mean. `update` does not wait for the device of a tensor; reading ``val`` or ``avg`` does.

    Args:
        ema: use an exponential moving average (0.9) instead of the mean.
    """

    def __init__(self, ema: bool = False) -> None:
        self.ema = ema
        self.reset()

    def reset(self) -> None:
        """Forget all values."""
        self._val: float | Tensor = 0.0
        self._sum: float | Tensor = 0.0
        self._ema: float | Tensor = 0.0
        self.count = 0

    def update(self, val: float | Tensor, n: int = 1) -> None:
        """Add a value with weight ``n``."""
        if isinstance(val, Tensor):
            val = val.detach().to(_precision(val.device)).reshape(())
        self._val = val
        self._sum = self._sum + val * n
        self.count += n
        if self.ema:
            self._ema = self._ema * 0.9 + val * 0.1

    def raw(self) -> tuple[float | Tensor, float | Tensor]:
        """Return value and mean without a transfer from the device."""
        return self._val, self._ema if self.ema else self._sum / max(1, self.count)

    @property
    def val(self) -> float:
        """The last value."""
        return float(self.raw()[0])

    @property
    def avg(self) -> float:
        """The mean, or the moving average."""
        return float(self.raw()[1])

    @property
    def sum(self) -> float:
        """The sum of all values."""
        return float(self._sum)


class MetricMeter:
    """An `AverageMeter` per name; ``str()`` returns "loss 0.4321 (0.5432) acc 81.2500 (79.6875)"."""

    def __init__(self, delimiter: str = " ") -> None:
        self.meters: dict[str, AverageMeter] = defaultdict(AverageMeter)
        self.delimiter = delimiter

    def update(self, input_dict: Mapping[str, float | Tensor] | None, factor: float = 1.0) -> None:
        """Add a value per name, times a factor.

        Raises:
            TypeError: ``input_dict`` is neither a dict nor ``None``.
        """
        if input_dict is None:
            return
        if not isinstance(input_dict, Mapping):
            raise TypeError(f"a trainer's forward_backward must return a dict of numbers, got {type(input_dict)}")
        for name, value in input_dict.items():
            self.meters[name].update(value if factor == 1 else value * factor)

    def gather(self, reduce: Callable[[Tensor], Tensor] = lambda values: values) -> dict[str, tuple[float, float]]:
        """Return ``{name: (value, mean)}``, in one transfer from the device.

        Args:
            reduce: function of all numbers [2M] before the transfer, such as the mean over processes.
        """
        raw = [number for meter in self.meters.values() for number in meter.raw()]
        device = next((number.device for number in raw if isinstance(number, Tensor)), None)
        dtype = _precision(device)
        numbers = [torch.as_tensor(number, dtype=dtype, device=device) for number in raw]
        values = reduce(torch.stack(numbers)).tolist() if numbers else []
        return {name: (values[2 * i], values[2 * i + 1]) for i, name in enumerate(self.meters)}

    def format(self, values: Mapping[str, tuple[float, float]]) -> str:
        """Return the values of `gather` as text."""
        return self.delimiter.join(f"{name} {val:.4f} ({avg:.4f})" for name, (val, avg) in values.items())

    def __str__(self) -> str:
        return self.format(self.gather())
