"""Cost of the label prior on features on disk: seconds, passes and memory by the number of images, and at web scale.

    OMP_NUM_THREADS=2 python benchmarks/webscale.py --json webscale.json

Image features are written as clip-retrieval writes them: `img_emb_0.npy` and so on, normalised, float16, 100,000 rows
each. The classifier is another file. Its logits contain a long-tailed log q, and labels are drawn uniformly, so that
each estimate is compared with the true log q. Each fit runs in a process of its own with its own peak of memory, which
includes the libraries. A pass is a read of as many rows as the images. The reference computes all logits and fits them
in memory.

Above 5,000 classes a fit has only the diagonal of the Hessian and needs more passes, so the fits on the fewest images
run with `--wide` classes too. The last table is a calculation from these: flops of the products per pass, times the
passes, divided by the measured rate, for `--target-images` and `--target-classes`. The rate contains all other work of
a pass, which grows with the classes as the product does.
"""

import argparse
import itertools
import logging
import math
import multiprocessing
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from measure import _status_bytes, machine, mib, table, write
from scaling import exponent

import unskew
from unskew.debias.sources import FeatureLogits

SHARD = 100_000  # rows
NOISE = 0.26  # of the features around the classifier's row of their class; two answers in three are right
SCALE = 100.0
MACHINES = (1, 8, 64)
MOST_BYTES = 2e9
MEMORY = "map, in memory"

COLUMNS = {
    "name": "",
    "images": "images",
    "classes": "classes",
    "seconds": "seconds",
    "passes": "passes",
    "peak": "peak MiB",
    "exponent": "exponent",
    "correlation": "correlation with log q",
    "error": "RMS error, nats",
    "difference": "difference to memory",
}
PLAN = {
    "name": "",
    "machines": "machines",
    "hours": "hours",
    "exaflops": "exaflops, all machines",
    "terabytes": "TB read, each machine",
    "speed": "MB/s of disk, each machine",
}


# --- the data --------------------------------------------------------------------------------------------


def generate(folder: Path, classes: int, sizes: Sequence[int], arguments: argparse.Namespace) -> dict[int, list[str]]:
    """Write features, labels and classifiers; return the shards of each size."""
    folder.mkdir()
    width = arguments.width - 1
    rng = torch.Generator().manual_seed(0)
    log_q = (-0.8 * torch.randperm(classes, generator=rng).add(1).double().log()).log_softmax(0)
    heads = F.normalize(torch.randn(classes, width, generator=rng), dim=1)
    # Features have a common component m, as those of CLIP, so that a classifier can hold log q. The rest has the scale
    # of a calibrated classifier.
    m = math.sqrt(1 - min(0.99, calibrated_scale(width) / SCALE) ** 2)
    noise = F.normalize(torch.randn(classes, width, generator=rng), dim=1)
    for name, kept, rows in (("zs", 1.0, heads), ("ft", 0.4, F.normalize(heads + 0.5 * noise, dim=1))):
        bias = (kept * log_q / (SCALE * m)).float()
        np.save(folder / f"{name}.npy", torch.cat([rows, bias[:, None]], 1).numpy())
    np.save(folder / "log_q.npy", log_q.numpy())
    most = max(sizes)
    ends = sorted({*range(SHARD, most, SHARD), *sizes})
    labels = torch.randint(classes, (most,), generator=rng)
    np.save(folder / "labels.npy", labels.numpy())
    for number, (first, last) in enumerate(itertools.pairwise([0, *ends])):
        blocks = [features(heads[labels[rows]], m, rng) for rows in torch.arange(first, last).split(10_000)]
        np.save(folder / f"img_emb_{number}.npy", torch.cat(blocks).numpy().astype(arguments.dtype))
    return {size: [str(folder / f"img_emb_{number}.npy") for number in range(ends.index(size) + 1)] for size in sizes}


def calibrated_scale(width: int) -> float:
    """Return the scale at which the logits of normalised features are log-likelihoods."""
    return math.sqrt(1 + NOISE**2 * width) / NOISE**2


def features(heads: torch.Tensor, m: float, rng: torch.Generator) -> torch.Tensor:
    rest = F.normalize(heads + NOISE * torch.randn(heads.shape, generator=rng), dim=1)
    return torch.cat([math.sqrt(1 - m**2) * rest, torch.full((len(rest), 1), m)], 1)


# --- the fits --------------------------------------------------------------------------------------------


class Counted(FeatureLogits):
    """Features that count the rows that are read."""

    rows = 0
    lock = threading.Lock()

    def _read(self, first: int, last: int) -> torch.Tensor:
        with Counted.lock:
            Counted.rows += last - first
        return super()._read(first, last)


def fit(name: str, folder: Path, shards: Sequence[str], size: int) -> dict:
    """Fit once; return the numbers and log q."""
    logging.getLogger("unskew").setLevel(logging.ERROR)
    labels = np.load(folder / "labels.npy", mmap_mode="r")[:size]
    y = torch.from_numpy(np.array(labels))
    start = time.perf_counter()
    zs = Counted(list(shards), str(folder / "zs.npy"), SCALE)
    if name == MEMORY:
        found = unskew.estimate_log_prior(zs[:], y, method="map")
    elif name == "map":
        found = unskew.estimate_log_prior(zs, y, method="map")
    elif name == "map, unlabelled":
        found = unskew.estimate_log_prior(zs, method="map")
    else:
        ft = Counted(list(shards), str(folder / "ft.npy"), SCALE)
        found = unskew.GLA().fit(zs, ft, y)
    seconds = time.perf_counter() - start
    return {
        "name": name,
        "images": size,
        "seconds": seconds,
        "passes": Counted.rows / size / (2 if name == "GLA.fit" else 1),
        "peak_bytes": (held := peak()),
        "peak": mib(held),
        "log_q": np.asarray(found.log_q_ if name == "GLA.fit" else found.log_q, np.float64),
    }


def peak() -> int | None:
    """Return the peak of the memory of this process, in bytes; None where Linux's /proc is missing."""
    status = Path("/proc/self/status")
    return _status_bytes(status, "VmHWM") if status.exists() else None


def measure(arguments: argparse.Namespace, folder: Path) -> list[dict]:
    """Run all fits, each in a new process; write the file of numbers after each."""
    few, rows = arguments.sizes[:1], []
    for classes, sizes in ((arguments.classes, arguments.sizes), (arguments.wide, few)):
        print(f"write {max(sizes):,} features of {classes:,} classes", file=sys.stderr, flush=True)
        shards = generate(folder / str(classes), classes, sizes, arguments)
        calls = [(name, size) for name in ("map", "map, unlabelled") for size in sizes]
        if classes == arguments.classes:
            calls += [(name, few[0]) for name in ("GLA.fit", MEMORY)]
        for name, size in calls:
            print(f"{name}, {size:,} images, {classes:,} classes", file=sys.stderr, flush=True)
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                row = pool.submit(fit, name, folder / str(classes), shards[size], size).result()
            rows.append(
                row | {"classes": classes} | quality(row["log_q"], np.load(folder / str(classes) / "log_q.npy"))
            )
            write(arguments.json, [shown(each) for each in rows])
    compare(rows)
    return rows


def quality(log_q: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Return the correlation of an estimate with the true log q, and its error without the mean over the classes."""
    return {"correlation": float(np.corrcoef(log_q, true)[0, 1]), "error": float(np.std(log_q - true))}


def compare(rows: Sequence[dict]) -> None:
    """Add the difference to the fit in memory, and the exponents."""
    whole = next(row for row in rows if row["name"] == MEMORY)
    for row in rows:
        alike = [each for each in rows if (each["name"], each["classes"]) == (row["name"], row["classes"])]
        times = {each["images"]: each["seconds"] for each in alike}
        row["exponent"] = exponent([*times], [*times.values()]) if len(times) > 1 else None
        same = row["name"] == "map" and all(row[key] == whole[key] for key in ("images", "classes"))
        row["difference"] = float(np.abs(row["log_q"] - whole["log_q"]).max()) if same else None


def shown(row: dict) -> dict:
    return {key: value for key, value in row.items() if key != "log_q"}


# --- on paper --------------------------------------------------------------------------------------------


def flops(images: int, width: int, classes: int) -> float:
    """Return the operations of the products of a pass; a multiply-add counts as 2."""
    return 2.0 * images * width * classes


def plan(rows: Sequence[dict], arguments: argparse.Namespace) -> list[dict]:
    """Return the cost at the target size on several machines like this one, from the fits with the most classes."""
    images, classes, width = arguments.target_images, arguments.target_classes, arguments.width
    item = np.dtype(arguments.dtype).itemsize
    found = []
    for name in ("map", "map, unlabelled"):
        row = max((row for row in rows if row["name"] == name), key=lambda row: row["classes"])
        rate = row["passes"] * flops(row["images"], width, row["classes"]) / row["seconds"]
        total = row["passes"] * flops(images, width, classes)
        read = row["passes"] * images * width * item
        for machines in MACHINES:
            seconds = total / rate / machines
            found.append(
                {
                    "name": name,
                    "machines": machines,
                    "hours": seconds / 3600,
                    "exaflops": total / 1e18,
                    "terabytes": read / machines / 1e12,
                    "speed": read / machines / seconds / 1e6,
                    "gigaflops_per_second": rate / 1e9,
                }
            )
    return found


def cells(rows: Sequence[dict]) -> list[dict]:
    """Return the rows with texts for numbers that may be missing."""
    digits = {"exponent": ".2f", "difference": ".1e"}
    texts = [{key: "" if row[key] is None else f"{row[key]:{form}}" for key, form in digits.items()} for row in rows]
    return [{**row, "images": f"{row['images']:,}", **text} for row, text in zip(rows, texts, strict=True)]


def report(rows: Sequence[dict], planned: Sequence[dict], arguments: argparse.Namespace) -> str:
    peaks = [row["peak_bytes"] for row in rows if row["name"] != MEMORY]
    lines = [
        f"{machine()}",
        f"features [N, {arguments.width}] in {arguments.dtype}",
        "",
        table(cells(rows), COLUMNS),
        "",
    ]
    if all(peaks):
        state = "all are under 2 GB" if max(peaks) < MOST_BYTES else "NOT all are under 2 GB"
        lines.append(f"largest peak of the fits on files: {max(peaks) / 1e9:.2f} GB; {state}")
    rate = statistics.mean(row["gigaflops_per_second"] for row in planned)
    lines += [
        f"{arguments.target_images:,} images, {arguments.target_classes:,} classes, on machines like this one "
        f"({rate:.3g} gigaflops per second), calculated:",
        "",
        table(planned, PLAN),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 300_000, 1_000_000], help="images")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--wide", type=int, default=6000, help="classes of the fits that the calculation is based on")
    parser.add_argument("--width", type=int, default=512, help="of the features")
    parser.add_argument("--dtype", default="float16", choices=("float16", "float32"), help="of the features")
    parser.add_argument(
        "--target-images", type=int, default=400_000_000, help="of the calculation; default: LAION-400M"
    )
    parser.add_argument("--target-classes", type=int, default=21_841, help="default: ImageNet-21k")
    parser.add_argument("--data", default=None, help="folder of the temporary files, which need 2 bytes per number")
    parser.add_argument("--json", default="", help="write all numbers to this file")
    arguments = parser.parse_args()
    arguments.sizes = sorted(set(arguments.sizes))
    with tempfile.TemporaryDirectory(dir=arguments.data) as name:
        rows = measure(arguments, Path(name))
    planned = plan(rows, arguments)
    print(report(rows, planned, arguments))
    write(arguments.json, [shown(row) for row in rows] + planned)


if __name__ == "__main__":
    main()
