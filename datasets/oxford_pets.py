"""Oxford-IIIT Pets: 37 breeds (Parkhi et al. 2012)."""

from pathlib import Path

from yacs.config import CfgNode

from unskew.data.dataset import DATASET_REGISTRY, Datum
from unskew.data.published import PublishedDataset, split_source, split_trainval
from unskew.data.splits import PREPARE_AGAIN, Splits, read_table
from unskew.download.sources import DatasetInfo, Source

_HOME = "https://www.robots.ox.ac.uk/~vgg/data/pets/data"


@DATASET_REGISTRY.register("oxford_pets")
class OxfordPets(PublishedDataset):
    dataset_dir = "oxford_pets"
    image_dir = "images"
    split_file = "split_zhou_OxfordPets.json"
    template = "a photo of a {}, a type of pet."
    context_init = "a type of pet, a photo of a {}."
    info = DatasetInfo(37, 2944, 736, 3669, "0.8 GB", "CC BY-SA 4.0", "https://www.robots.ox.ac.uk/~vgg/data/pets/")
    sources = (
        Source(
            "images.tar.gz",
            (f"{_HOME}/images.tar.gz",),
            makes={"images": "images"},
            checksum="md5:5c4f3ee8e5d25df40f4fd59a7f44e54c",
        ),
        Source(
            "annotations.tar.gz",
            (f"{_HOME}/annotations.tar.gz",),
            makes={"annotations": "annotations"},
            checksum="md5:95a8c909bbe2e81eed6a22bccdf3f68f",
        ),
        split_source(
            split_file,
            "1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs",
            "d7f3ffe65b3919f95132e51422894ae18686b83c331fd8c0adcdc3dc2de6301e",
        ),
    )

    @classmethod
    def read(cls, cfg: CfgNode, root: Path) -> Splits:
        def items(file: str) -> list[Datum]:
            path = root / "annotations" / file
            images = []
            for name, label, *_ in read_table(path, columns=4):
                if not label.isdecimal() or int(label) < 1:
                    raise ValueError(f"'{path}': '{name}' has class '{label}', not a number from 1 on; {PREPARE_AGAIN}")
                breed = name.rpartition("_")[0].lower()
                images.append(Datum(f"{root / cls.image_dir / name}.jpg", int(label) - 1, 0, breed))
            return images

        train, val = split_trainval(items("trainval.txt"))
        return train, val, items("test.txt")
