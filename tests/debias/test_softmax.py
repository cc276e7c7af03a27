"""Means of softmax from exponentials taken once: against softmax itself, and without copies of the logits."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from unskew.debias import _softmax
from unskew.debias._softmax import Exponentials, blocks
from unskew.debias.combination import fit_combination
from unskew.debias.prior import estimate_log_prior
from unskew.debias.temperature import fit_temperature


def sample(rows=70, classes=9, scale=3.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.randn(classes, generator=generator, dtype=torch.float64)


def check(found, logits, offset):
    scores = logits.double() + offset
    p = scores.softmax(1)
    torch.testing.assert_close(found.log_partition, scores.logsumexp(1).mean(), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(found.probabilities, p.mean(0), rtol=1e-12, atol=1e-15)
    if found.squares.any():
        torch.testing.assert_close(found.squares, p.square().mean(0), rtol=1e-12, atol=1e-15)
    return p


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.long])
@pytest.mark.parametrize("block", [9, 100, 10**6])
def test_means_and_product_are_those_of_softmax(monkeypatch, dtype, block):
    monkeypatch.setattr(_softmax, "BLOCK", block)
    logits, direction = sample(dtype=dtype)
    e = Exponentials(logits)
    for number, offset in enumerate((torch.zeros_like(direction), direction, 20 * direction)):
        p = check(e.at(offset, squares=True), logits, offset)
        expected = (p @ direction) @ p / len(p)
        torch.testing.assert_close(e.product(direction), expected, rtol=1e-12, atol=1e-15)
        assert e.passes == 2 * number + 2
    assert not e.at(direction).squares.any()


def test_rows_classes_and_a_temperature():
    logits, direction = sample()
    rows, classes = torch.arange(3, 70, 2), torch.tensor([0, 2, 3, 8])
    e = Exponentials(logits, rows, classes)
    check(e.at(direction[classes]), logits[rows][:, classes], direction[classes])
    e.soften(5.0)
    check(e.at(direction[classes]), logits[rows][:, classes] / 5, direction[classes])
    e.soften(1.0)
    check(e.at(direction[classes]), logits[rows][:, classes], direction[classes])


def test_an_offset_that_would_underflow_is_a_new_start():
    logits, direction = sample(scale=500.0)
    e = Exponentials(logits)
    e.at(torch.zeros_like(direction))
    for scale in (3000.0, -3000.0):
        found = e.at(scale * direction, squares=True)
        check(found, logits, scale * direction)
    assert e.passes > 3


def test_blocks_are_all_rows():
    tensor = torch.empty(7, 2**15)
    assert torch.cat([torch.arange(7)[part] for part in blocks(tensor)]).tolist() == list(range(7))
    assert len(list(blocks(tensor))) == 4
    assert len(list(blocks(torch.empty(3, 2**20)))) == 3


# --- memory ---------------------------------------------------------------------------------------------


class Allocations(TorchDispatchMode):
    """The bytes of the storages of at least ``least`` bytes that operations make."""

    def __init__(self, least: int):
        super().__init__()
        self.least, self.kept = least, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else [found]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes() >= self.least:
                storage = tensor.untyped_storage()
                self.kept[storage.data_ptr()] = storage  # kept, so that no address is used twice
        return found


def test_nothing_copies_float32_logits_to_float64_but_one_buffer(monkeypatch):
    monkeypatch.setattr(_softmax, "BLOCK", 4000)
    logits = sample(12000, 40)[0].float()
    labels, other = torch.arange(12000) % 40, sample(12000, 40, 1.0)[0].float()
    log_q = torch.zeros(40)

    def made(call):
        with Allocations(logits.nbytes // 2) as allocations:
            call()
        return sum(storage.nbytes() for storage in allocations.kept.values() if storage.data_ptr() not in given)

    given = {tensor.untyped_storage().data_ptr() for tensor in (logits, other)}
    assert made(lambda: estimate_log_prior(logits, labels)) == 2 * logits.nbytes
    assert made(lambda: estimate_log_prior(logits, method="em")) == 2 * logits.nbytes
    assert made(lambda: estimate_log_prior(logits, labels, method="eigen")) == 0
    assert made(lambda: fit_temperature(logits, labels)) == 0
    assert made(lambda: fit_temperature(logits, labels, method="nll")) == 0
    assert made(lambda: fit_combination(other, logits, labels, log_q)) == 2 * logits.nbytes
