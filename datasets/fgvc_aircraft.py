"""FGVC-Aircraft: 100 variants, with the splits of its authors (Maji et al. 2013)."""

from pathlib import Path

from yacs.config import CfgNode

from unskew.data.dataset import DATASET_REGISTRY, Datum
from unskew.data.names import check_used, read_classes
from unskew.data.published import PublishedDataset
from unskew.data.splits import PREPARE_AGAIN, SPLITS, Splits, read_lines
from unskew.download.sources import DatasetInfo, Source

_HOME = "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft"
_LISTS = ("variants.txt", *(f"images_variant_{split}.txt" for split in SPLITS))


@DATASET_REGISTRY.register("fgvc_aircraft")
class FGVCAircraft(PublishedDataset):
    dataset_dir = "fgvc_aircraft"
    template = "a photo of a {}, a type of aircraft."
    context_init = "a type of aircraft, a photo of a {}."
    info = DatasetInfo(100, 3334, 3333, 3333, "2.6 GB", "non-commercial research", f"{_HOME}/")
    sources = (
        Source(
            "fgvc-aircraft-2013b.tar.gz",
            (f"{_HOME}/archives/fgvc-aircraft-2013b.tar.gz",),
            makes={f"fgvc-aircraft-2013b/data/{name}": name for name in ("images", *_LISTS)},
            checksum="md5:d4acdd33327262359767eeaa97a4f732",
        ),
    )

    @classmethod
    def read(cls, cfg: CfgNode, root: Path) -> Splits:
        labels = read_classes(root / "variants.txt")

        def items(split: str) -> list[Datum]:
            path = root / f"images_variant_{split}.txt"
            images = []
            for line in read_lines(path):
                image, _, variant = line.partition(" ")
                if variant not in labels:
                    raise ValueError(f"'{path}' names '{variant}', which is not in variants.txt; {PREPARE_AGAIN}")
                images.append(Datum(str(root / "images" / f"{image}.jpg"), labels[variant], 0, variant))
            return images

        train, val, test = (items(split) for split in SPLITS)
        check_used(root / "variants.txt", list(labels), train, val, test)
        return train, val, test
