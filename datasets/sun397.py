"""SUN397: scenes (Xiao et al. 2010), the first of its ten partitions."""

from pathlib import Path

from yacs.config import CfgNode

from unskew.data.dataset import DATASET_REGISTRY, Datum
from unskew.data.names import check_used, read_classes
from unskew.data.published import PublishedDataset, split_source, split_trainval
from unskew.data.splits import PREPARE_AGAIN, Splits, read_lines
from unskew.download.sources import DatasetInfo, Source

_PAGE = "https://vision.princeton.edu/projects/2010/SUN/"


@DATASET_REGISTRY.register("sun397")
class SUN397(PublishedDataset):
    dataset_dir = "sun397"
    image_dir = "SUN397"
    split_file = "split_zhou_SUN397.json"
    imagenet_templates = True
    info = DatasetInfo(397, 15880, 3970, 19850, "39 GB", "research; the images are their owners'", _PAGE)
    sources = (
        Source(
            "SUN397.tar.gz",
            (f"{_PAGE}SUN397.tar.gz",),
            makes={"SUN397": "SUN397"},
            checksum="md5:8ca2778205c41d23104230ba66911c7a",
            page=_PAGE,
        ),
        Source(
            "Partitions.zip",
            (f"{_PAGE}download/Partitions.zip",),
            makes={name: name for name in ("ClassName.txt", "Training_01.txt", "Testing_01.txt")},
            page=_PAGE,
        ),
        split_source(split_file, "1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq"),
    )

    @classmethod
    def read(cls, cfg: CfgNode, root: Path) -> Splits:
        labels = read_classes(root / "ClassName.txt")

        def items(file: str) -> list[Datum]:
            images = []
            for line in read_lines(root / file):  # /a/apartment_building/outdoor/sun_aakoovhmcdulqvur.jpg
                scene = line.rpartition("/")[0]
                if scene not in labels:
                    raise ValueError(f"'{root / file}' names '{scene}', which is not in ClassName.txt; {PREPARE_AGAIN}")
                name = " ".join(reversed(scene.split("/")[2:]))  # "outdoor apartment_building"
                images.append(Datum(f"{root / cls.image_dir}{line}", labels[scene], 0, name))
            return images

        trainval, test = items("Training_01.txt"), items("Testing_01.txt")
        check_used(root / "ClassName.txt", list(labels), trainval, test)
        return *split_trainval(trainval), test
