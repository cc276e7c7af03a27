"""Oxford Flowers: 102 species (Nilsback and Zisserman 2008), divided 50 : 20 : 30 as CoOp does."""

import random
from pathlib import Path

from yacs.config import CfgNode

from unskew.data.dataset import DATASET_REGISTRY, Datum
from unskew.data.names import check_names, read_json_names
from unskew.data.published import PublishedDataset, split_source
from unskew.data.sampling import split_in_three
from unskew.data.splits import PREPARE_AGAIN, Splits, read_mat
from unskew.download.sources import DatasetInfo, Source

_HOME = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102"


@DATASET_REGISTRY.register("oxford_flowers")
class OxfordFlowers(PublishedDataset):
    dataset_dir = "oxford_flowers"
    image_dir = "jpg"
    split_file = "split_zhou_OxfordFlowers.json"
    template = "a photo of a {}, a type of flower."
    context_init = "a type of flower, a photo of a {}."
    info = DatasetInfo(102, 4093, 1633, 2463, "0.3 GB", "research; none stated", f"{_HOME}/")
    sources = (
        Source(
            "102flowers.tgz",
            (f"{_HOME}/102flowers.tgz",),
            makes={"jpg": "jpg"},
            checksum="md5:52808999861908f626f3c1f4e79d11fa",
        ),
        Source("imagelabels.mat", (f"{_HOME}/imagelabels.mat",), checksum="md5:e0620be6f572b9609742df49c70aed4d"),
        split_source(
            "cat_to_name.json",
            "1AkcxCXeK_RCGCEC_GvmWxjcjaNhu-at0",
            "0469f1ad7fe0072d98155c49aa58649d998edbbe3326229003aa5f7228525236",
        ),
        split_source(
            split_file,
            "1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT",
            "2f50c42fc1a17ca13c271cb4269b1347bdb43d2be672e34f74a4e4cbfbcca794",
        ),
    )

    @classmethod
    def read(cls, cfg: CfgNode, root: Path) -> Splits:
        path = root / "cat_to_name.json"
        labels = [int(label) for label in read_mat(root / "imagelabels.mat", "labels", cls.sources[1])[0]]
        names = read_json_names(path)
        if isinstance(names, list):
            raise ValueError(f"'{path}' must hold class names by label; {PREPARE_AGAIN}")
        check_names(f"'{path}'", names, [str(label) for label in sorted(set(labels))])
        items = [
            Datum(str(root / cls.image_dir / f"image_{number:05d}.jpg"), label - 1, 0, names[str(label)])
            for number, label in enumerate(labels, start=1)
        ]
        return split_in_three(items, random.Random(0))
