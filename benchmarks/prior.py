"""Cost of the solvers for the label prior, the temperatures and GLA's combination at the size of ImageNet.

    OMP_NUM_THREADS=1 python benchmarks/prior.py --json prior.json
    python benchmarks/prior.py --samples 50000 --device cuda --only "convex, strength 1" map

On generated logits of a cosine classifier whose classes have a long-tailed prior. Beside each time stand the passes
over the logits (or what is kept of them), the floor, which is as many plain float32 softmaxes of the same logits, and
the straightforward way to the same numbers: L-BFGS by autograd, matrix powers and bisection, in float64 over the whole
array. What GLA fits on val after each epoch is timed on four images a class; of the combination, fine-tuned and
zero-shot logits both count as the logits.
"""

import argparse
import functools
import logging
from collections.abc import Callable
from contextlib import contextmanager

import measure
import torch
import torch.nn.functional as F
from torch import Tensor

from unskew.debias import _joint, _softmax, combination, prior, temperature
from unskew.debias.joint import DEVIATION, fit_joint

logging.getLogger("unskew").setLevel(logging.ERROR)

VAL_SHOTS = 4
COLUMNS = {
    "name": "",
    "samples": "images",
    "seconds": "seconds",
    "passes": "passes",
    "floor_seconds": "floor, seconds",
    "copies": "peak memory / logits",
    "reference_seconds": "plain, seconds",
    "ratio": "times faster",
    "difference": "greatest difference",
}


def world(samples: int, classes: int, imbalance: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Zero-shot and fine-tuned logits ``[N, C]``, labels ``[N]``, log q ``[C]``; two answers in three are right."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(samples) % classes
    if imbalance > 1:
        tail = torch.logspace(0, -torch.tensor(imbalance).log10().item(), classes)
        drawn = torch.multinomial(tail, max(0, samples - classes), True, generator=rng)
        labels = torch.cat([torch.arange(classes), drawn])[:samples]
    width, noise = 512, 0.26
    log_q = (-0.8 * torch.randperm(classes, generator=rng).add(1).double().log()).log_softmax(0)
    heads = F.normalize(torch.randn(classes, width, generator=rng), dim=1)

    def logits(kept: float) -> Tensor:
        images = F.normalize(heads[labels] + noise * torch.randn(samples, width, generator=rng), dim=1)
        return (1 + noise**2 * width) ** 0.5 / noise**2 * images @ heads.T + kept * log_q.float()

    return logits(1.0), logits(0.4), labels, log_q


# --- the plain way --------------------------------------------------------------------------------------


def minimise(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    x = start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [x], max_iter=500, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure():
        optimiser.zero_grad()
        value = loss(x)
        value.backward()
        return value

    optimiser.step(closure)
    return x.detach()


def plain_prior(logits: Tensor, labels: Tensor, strength: float) -> Tensor:
    """log q of least ``CE(logits - log q + log pi, y) + strength / N KL(u || q)``; needs every class."""
    logits, (samples, classes) = logits.double(), logits.shape
    log_pi = (labels.bincount(minlength=classes).double() / samples).log()

    def loss(bias: Tensor) -> Tensor:
        return F.cross_entropy(logits - bias + log_pi, labels) - strength / samples * bias.log_softmax(0).mean()

    return minimise(loss, torch.zeros_like(log_pi)).log_softmax(0)


def plain_eigen(logits: Tensor, labels: Tensor, strength: float) -> Tensor:
    """log q of ``q = P q``, strength / C pseudo-samples in each column."""
    probabilities, classes = logits.double().softmax(1), logits.shape[1]
    columns = [probabilities[labels == k] for k in range(classes)]
    extra = strength / classes
    transitions = torch.stack([(p.sum(0) + extra / classes) / (len(p) + extra) for p in columns], 1)
    q, last = torch.full((classes,), 1 / classes, dtype=torch.float64), torch.zeros(classes)
    while (q - last).abs().max() > 1e-14:
        q, last = transitions @ q, q
    return (q / q.sum()).log()


def plain_temperature(logits: Tensor, labels: Tensor, method: str) -> float:
    """By bisection of log T."""
    logits = logits.double()
    accuracy = (logits.argmax(1) == labels).double().mean()
    own = logits.gather(1, labels[:, None]).mean()
    low, high = (torch.tensor(end, dtype=torch.float64).log() for end in (0.01, 100.0))
    while high - low > 1e-9:
        middle = (low + high) / 2
        p = (logits / middle.exp()).softmax(1)
        above = p.amax(1).mean() > accuracy if method == "confidence" else (p * logits).sum(1).mean() > own
        low, high = (middle, high) if above else (low, middle)
    return float(low.exp())


def plain_joint(logits: Tensor, labels: Tensor) -> Tensor:
    """The bias b of the joint fit, and log s, by L-BFGS; without the average over "no bias"."""
    logits = logits.double()
    counts = labels.bincount(minlength=logits.shape[1]).double()
    seen, samples = counts > 0, len(labels)
    variances = DEVIATION**2 - 1 / counts[seen]
    log_pi = torch.full_like(counts, -torch.inf).masked_scatter(seen, (counts[seen] / samples).log())

    def loss(x: Tensor) -> Tensor:
        s, b = x[0].exp(), torch.zeros_like(counts).masked_scatter(seen, x[1:])
        prior_terms = s - 1 - x[0] + 0.5 * (x[1:].square() / variances).sum()
        return F.cross_entropy(s * logits - b + log_pi, labels) + prior_terms / samples

    x = minimise(loss, torch.zeros(1 + int(seen.sum()), dtype=torch.float64))
    beta = torch.zeros_like(counts).masked_scatter(seen, x[1:] * DEVIATION**2 / variances)
    return beta.log_softmax(0)


def plain_combination(zs: Tensor, ft: Tensor, labels: Tensor, log_q: Tensor) -> Tensor:
    """rho, then both weights; the bounds are left out, as they do not bind here."""
    ft, zs = ft.double(), zs.double()
    log_pi = (labels.bincount(minlength=len(log_q)).double() / len(labels)).log()
    half = torch.full((1,), 0.5, dtype=torch.float64)
    rho = minimise(lambda x: F.cross_entropy(ft - x * log_q + log_pi, labels), half)
    ft, zs = ft - rho * log_q, zs - log_q

    def loss(w: Tensor) -> Tensor:
        return F.cross_entropy(w[0] * ft + w[1] * zs + log_pi, labels) + 2 / len(labels) * (w - 0.5).square().sum()

    return torch.cat([rho, minimise(loss, half.repeat(2))])


# --- what is measured -----------------------------------------------------------------------------------


def calls(
    samples: int, classes: int, imbalance: float, device: str = "cpu"
) -> dict[str, tuple[Callable[[], object], Callable | None]]:
    """By name: the library's call, and the plain way; None where that would take minutes."""
    zs, ft, labels, log_q = (tensor.to(device) for tensor in world(samples, classes, imbalance))
    few = min(samples, VAL_SHOTS * classes)
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(1))[:few].to(device)
    val = zs[order], ft[order], labels[order], log_q

    def estimate(labels=labels, **options) -> Tensor:
        return prior.estimate_log_prior(zs, labels, **options).log_q

    def temperatures(method: str) -> tuple[Callable, Callable]:
        at = 2 * val[1], val[2]
        return lambda: temperature.fit_temperature(*at, method=method), lambda: plain_temperature(*at, method)

    balanced = len(torch.bincount(labels, minlength=classes).unique()) == 1
    exact = lambda: plain_prior(zs, labels, 1.0)  # noqa: E731, the same function three times is called once
    found = {
        "convex, strength 0": (lambda: estimate(strength=0.0), lambda: plain_prior(zs, labels, 0.0)),
        "convex, strength 1": (estimate, exact),
        "convex, strength cv": (lambda: estimate(strength="cv"), None),
        "em, no labels": (lambda: estimate(None, method="em"), exact if balanced else None),
        "em": (lambda: estimate(method="em"), exact),
        "map": (lambda: fit_joint(zs, labels).log_q, None),
        "map, classes independent": (
            lambda: fit_joint(zs, labels, no_bias=0.0, shared=(0.0,)).log_q,
            lambda: plain_joint(zs, labels),
        ),
        "eigen": (lambda: estimate(method="eigen"), lambda: plain_eigen(zs, labels, 1.0)),
        "temperature, confidence": temperatures("confidence"),
        "temperature, nll": temperatures("nll"),
        "combination": (lambda: combination.fit_combination(*val)[:3], lambda: plain_combination(*val)),
        "combination, map": (lambda: combination.fit_combination(*val, method="map").offset, None),
    }
    if bool((torch.bincount(labels, minlength=classes) == 0).any()):
        del found["convex, strength 0"]
    return found


def one_call(name: str, *size) -> Callable[[], object]:
    return calls(*size)[name][0]


@contextmanager
def counted_passes(samples: int):
    """The library walks over logits by `_softmax.blocks` alone."""
    counted, blocks = [], _softmax.blocks

    def counting(tensor: Tensor):
        counted.append(len(tensor) / samples)
        return blocks(tensor)

    modules = [_softmax, _joint, prior, temperature, combination]
    for module in modules:
        module.blocks = counting
    try:
        yield counted
    finally:
        for module in modules:
            module.blocks = blocks


def softmax_seconds(samples: int, classes: int, repeats: int, device: str) -> float:
    logits = torch.randn(samples, classes, device=device)
    out = torch.empty_like(logits)
    torch.softmax(logits, 1, out=out)
    return measure.median_seconds(lambda: torch.softmax(logits, 1, out=out), repeats)


@functools.cache
def timed(plain: Callable) -> tuple[object, float]:
    results: list = []
    return results, measure.seconds(lambda: results.append(plain()))


def row(name: str, call: Callable, plain: Callable | None, size: tuple, repeats: int) -> dict:
    samples, classes, _, device = size
    if name.startswith(("temperature", "combination")):
        samples = min(samples, VAL_SHOTS * classes)
    with counted_passes(samples) as passes:
        found = call()
    seconds = measure.median_seconds(call, 1 if "cv" in name else repeats)
    reference = difference = None
    if plain is not None:
        (expected,), reference = timed(plain)
        pair = [torch.as_tensor(result, dtype=torch.float64).cpu() for result in (found, expected)]
        difference = float((pair[0] - pair[1]).abs().max())
    peak, _ = measure.peak_bytes(one_call, name, *size)
    return {
        "name": name,
        "samples": samples,
        "classes": classes,
        "seconds": seconds,
        "passes": round(sum(passes), 1),
        "floor_seconds": sum(passes) * softmax_seconds(samples, classes, repeats, device),
        "peak_bytes": peak,
        "copies": None if peak is None else peak / (4 * samples * classes * (1 + name.startswith("combination"))),
        "reference_seconds": reference,
        "ratio": None if reference is None else reference / seconds,
        "difference": difference,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--imbalance", type=float, default=1.0, help="of the labels: the most frequent over the rarest")
    parser.add_argument("--repeats", type=int, default=3, help="the median counts; cv and the plain way run once")
    parser.add_argument("--device", default="cpu", help="the device of the logits; the plain way runs on the CPU only")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="the rows to measure, by their names in the table")
    parser.add_argument("--json", default="", help="write every number there")
    arguments = parser.parse_args()
    size = arguments.samples, arguments.classes, arguments.imbalance, arguments.device
    found = calls(*size)
    if unknown := set(arguments.only or ()) - set(found):
        parser.error(f"unknown rows {', '.join(sorted(unknown))}; choose from: {'; '.join(found)}")

    rows: list[dict] = []
    for name in arguments.only or found:
        call, plain = found[name]
        rows.append(row(name, call, plain if arguments.device == "cpu" else None, size, arguments.repeats))
        measure.write(arguments.json, rows)
    print(f"{measure.machine()}; {arguments.classes} classes\n")
    rounded = [{k: float(f"{v:.3g}") if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    print(measure.table(rounded, COLUMNS))


if __name__ == "__main__":
    main()
