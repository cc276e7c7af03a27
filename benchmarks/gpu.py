"""Parts of gpu.sh: encoding, FineTune, and whole runs at ImageNet's size, on random weights and generated JPEGs.

    python benchmarks/gpu.py encode --data FOLDER --json encode.json

Each row is written as soon as it is measured, so that a time limit loses only the rest. `--small` has sizes for a CPU.
"""

import argparse
import itertools
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import photos
import torch
from epochs import EPOCHS, timed
from gpu_table import SWEPT
from measure import machine, median_seconds, mib, seconds, synchronize, write

import unskew
from unskew import config
from unskew.clip import features
from unskew.clip.backbones import load_backbone
from unskew.data.images import read_image
from unskew.data.transforms import build_transform
from unskew.engine.trainer import TRAINER_REGISTRY, build_trainer
from unskew.utils import row_store
from unskew.utils.seeds import set_random_seed

ENCODING: list[float] = []  # seconds of each call that encodes images, in the present run


@dataclass(frozen=True)
class Sizes:
    """The sizes of all parts; ``few`` and ``many`` are numbers of classes."""

    vit: str = "ViT-B-16@random"
    resnet: str = "RN50@random"
    few: int = 100
    many: int = 1000
    shots: int = 16
    val: int = 4  # images per class
    test: int = 10
    batch: int = 256  # images that a tower encodes at once
    finetune_batch: int = 128
    per_worker: int = 512  # images to decode
    repeats: int = 10

    @property
    def counts(self) -> dict[str, int]:
        """The images per class of each split."""
        return {"train": self.shots, "val": self.val, "test": self.test}


SMALL = Sizes("micro-vit", "micro", 4, 8, 2, 2, 2, 4, 4, 4, 2)


@dataclass(frozen=True)
class Setting:
    """The sizes, the device and the folder of the images."""

    sizes: Sizes
    device: str
    data: Path

    def root(self, classes: int) -> Path:
        """Return the image folders of a number of classes; write them first if they are missing."""
        return photos.write(self.data / f"{classes}-classes", classes, self.sizes.counts)

    def paths(self) -> list[str]:
        """Return the images of all splits in another order than by class."""
        found = sorted(map(str, self.root(self.sizes.many).rglob("*.jpg")))
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0)).tolist()
        return [found[index] for index in order]

    def config(self, trainer: str, classes: int, output: str | Path, **opts):
        """Return the config of a run; ``opts`` are keys with __ for a dot."""
        flags = {"DATASET.ROOT": str(self.root(classes)), "OUTPUT_DIR": str(output), "SEED": 1}
        flags |= {"DATASET.NUM_SHOTS": self.sizes.shots, "DATALOADER.NUM_WORKERS": cores()}
        flags |= {key.replace("__", "."): value for key, value in opts.items()}
        return config.load("folder", self.sizes.vit, trainer, [part for pair in flags.items() for part in pair])


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_counts(most: int) -> list[int]:
    """Return 1, 2, 4 .. and ``most``."""
    return sorted({most, *itertools.takewhile(lambda count: count < most, (2**n for n in itertools.count()))})


# --- images ---------------------------------------------------------------------------------------------


def decode(transform, paths: list[str]) -> list[torch.Tensor]:
    return [transform(read_image(path)) for path in paths]


def encode(setting: Setting) -> Iterator[dict]:
    """Yield images per second: a decoding process alone, a tower alone, and both with 1, 2, 4 .. processes."""
    sizes, paths = setting.sizes, setting.paths()
    features.WORKERS_FROM = 1
    for name in (sizes.vit, sizes.resnet):
        backbone = load_backbone(name, "bf16", setting.device)
        transform = build_transform(config.get_cfg_default(), backbone, train=False)
        row = {"backbone": name, "precision": "bf16"}
        pixels = (
            torch.stack(decode(transform, paths[: sizes.batch]))
            .to(setting.device)
            .contiguous(memory_format=torch.channels_last)
        )
        with torch.no_grad():
            backbone.encode_image(pixels)  # warm up
            spent = median_seconds(partial(backbone.encode_image, pixels), sizes.repeats)
        yield {**row, "name": "tower", "images_per_second": len(pixels) / spent}
        few = paths[: sizes.per_worker]
        spent = seconds(partial(decode, transform, few))
        yield {**row, "name": "decoding, one process", "images_per_second": len(few) / spent}
        for workers in worker_counts(cores()):
            some = paths[: sizes.per_worker * workers]
            spent = seconds(partial(features.extract, backbone, some, transform, keep=False, workers=workers))
            yield {**row, "name": "both", "workers": workers, "images_per_second": len(some) / spent}


# --- training on images ---------------------------------------------------------------------------------


def finetune(setting: Setting) -> Iterator[dict]:
    """Yield images per second of FineTune with AdaptFormer: steps on a batch on the device, and epochs on JPEGs."""
    sizes = setting.sizes
    for precision, from_files in (("amp", True), ("bf16", False), ("fp32", False)):
        with tempfile.TemporaryDirectory() as output:
            opts = {"TRAINER__FINETUNE__ADAPTER": "adaptformer", "TRAINER__PREC": precision, "TEST__NO_TEST": True}
            opts["DATALOADER__TRAIN_X__BATCH_SIZE"] = sizes.finetune_batch
            set_random_seed(1)
            trainer = build_trainer(setting.config("FineTune", sizes.few, output, **opts))
            trainer.max_epoch = 2
            trainer.epoch, trainer.batch_idx, trainer.num_batches = 0, 0, 1
            trainer.set_model_mode("train")
            batch = next(iter(trainer.train_loader_x))
            batch = {key: value.to(trainer.device) if torch.is_tensor(value) else value for key, value in batch.items()}
            row = {"backbone": sizes.vit, "precision": precision, "batch": len(batch["label"])}
            trainer.forward_backward(batch)  # warm up
            _reset_peak()
            spent = median_seconds(partial(trainer.forward_backward, batch), sizes.repeats)
            yield {**row, "name": "steps", "images_per_second": row["batch"] / spent, "peak_mib": _peak()}
            if from_files:
                images = len(trainer.train_loader_x) * row["batch"]
                spent = seconds(trainer.run_epoch)
                yield {**row, "name": "epoch", "images_per_second": images / spent, "workers": cores()}


# --- whole runs -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planned:
    """A run with few epochs: those before ``views`` encode a view, the others do not."""

    trainer: str
    classes: int
    shots: int
    views: int
    epochs: int


def plan(sizes: Sizes) -> list[Planned]:
    """Return the whole runs of CoOp and GLA at the larger size, then what the prediction of the sweep lacks.

    The first run finds an empty cache, the others the features of its images. At the larger size one shot suffices for
    the time of a step.
    """
    found = [Planned(name, sizes.many, sizes.shots, 2, 4) for name in ("CoOp", "GLA")]
    found += [Planned(name, sizes.few, sizes.shots, 1, 3) for name in SWEPT]
    return found + [Planned(name, sizes.many, 1, 1, 3) for name in SWEPT if name not in ("CoOp", "GLA")]


def runs(setting: Setting) -> Iterator[dict]:
    """Yield the times of the planned runs, with everything that `unskew.train` does, in bf16."""
    for name in {*SWEPT, "ResidualPrompt"}:
        TRAINER_REGISTRY.register(name, timed(TRAINER_REGISTRY.get(name)), force=True)
    encode_images = features._encode

    def timed_encode(*arguments):
        start = time.perf_counter()
        rows = encode_images(*arguments)
        ENCODING.append(time.perf_counter() - start)
        return rows

    features._encode = timed_encode
    with tempfile.TemporaryDirectory() as folder:
        os.environ["UNSKEW_CACHE"] = os.path.join(folder, "cache")
        row_store.open_folder.cache_clear()
        for number, planned in enumerate(plan(setting.sizes)):
            yield one_run(setting, planned, Path(folder, str(number)))


def one_run(setting: Setting, planned: Planned, output: Path) -> dict:
    """Train and test once; return the seconds of the run and of its epochs."""
    opts = {"TRAINER.PREC": "bf16", "OPTIM.MAX_EPOCH": planned.epochs, "INPUT.VIEWS": planned.views}
    opts |= {"DATALOADER.NUM_WORKERS": cores(), "USE_CUDA": setting.device != "cpu"}
    where = {"backbone": setting.sizes.vit, "root": str(setting.root(planned.classes)), "folder": output}
    EPOCHS.clear()
    ENCODING.clear()
    _reset_peak()
    synchronize()
    start = time.perf_counter()
    run = unskew.train("folder", planned.trainer, shots=planned.shots, seed=1, opts=opts, **where)
    synchronize()
    elapsed = time.perf_counter() - start
    late = [epoch for epoch in EPOCHS if epoch.number >= planned.views]
    # An epoch with all that belongs to it, also validation, lasts until the next one starts.
    period = late[1].start - late[0].start
    first = [epoch.seconds for epoch in EPOCHS if epoch.number < planned.views]
    view = max(0.0, first[-1] - statistics.median(epoch.seconds for epoch in late))
    batch = config.restore(output / "config.yaml").DATALOADER.TRAIN_X.BATCH_SIZE
    return {
        **vars(planned),
        "backbone": setting.sizes.vit,
        "seconds": elapsed,
        "period": period,
        "view_seconds": view,
        "encoding_seconds": sum(ENCODING),
        "once_seconds": max(0.0, elapsed - planned.epochs * period - sum(ENCODING)),
        "batch": batch,
        "steps": max(1, planned.classes * planned.shots // batch),
        "each_epoch": [epoch.seconds for epoch in EPOCHS],
        "images_encoded": run.metrics["images_encoded"],
        "peak_mib": _peak(),
    }


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _peak() -> float | None:
    """Return the peak of the GPU's memory in MiB, ``None`` without a GPU."""
    return mib(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else None


PARTS = {"encode": encode, "finetune": finetune, "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["data", *PARTS], help="data only writes the images")
    parser.add_argument("--data", type=Path, required=True, help="the folder of the generated images")
    parser.add_argument("--json", default="", help="write all numbers to this file")
    parser.add_argument("--small", action="store_true", help="small sizes and models, for a CPU")
    arguments = parser.parse_args()
    logging.getLogger("unskew").setLevel(logging.ERROR)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = SMALL if arguments.small else Sizes()
    setting = Setting(sizes, device, arguments.data.resolve())
    for classes in (sizes.many, sizes.few):
        setting.root(classes)
    if arguments.part == "data":
        return
    print(machine(), flush=True)
    rows: list[dict] = []
    for row in PARTS[arguments.part](setting):
        rows.append(row)
        print(row, flush=True)
        write(arguments.json, rows)


if __name__ == "__main__":
    main()
