"""iNaturalist 2018 (Van Horn et al. 2018): 8,142 species, long-tailed; tested on its val."""

from pathlib import Path

from yacs.config import CfgNode

from unskew.data.dataset import DATASET_REGISTRY
from unskew.data.imagenet import lift_source
from unskew.data.names import check_names, check_used, distinct
from unskew.data.published import PublishedDataset
from unskew.data.splits import PREPARE_AGAIN, Splits, read_list
from unskew.download.sources import DatasetInfo, Source
from unskew.utils.files import read_json

_PAGE = "https://github.com/visipedia/inat_comp/tree/master/2018"


@DATASET_REGISTRY.register("inat2018")
class INaturalist2018(PublishedDataset):
    dataset_dir = "inat2018"
    info = DatasetInfo(8142, 437513, 0, 24426, "120 GB", "non-commercial research and education", _PAGE)
    sources = (
        lift_source("iNaturalist18/iNaturalist18_train.txt"),
        lift_source(
            "iNaturalist18/iNaturalist18_val.txt", "efaeff65f80641b60864470e6f255aa69453406ef5717eec8c6681748f3a61f3"
        ),
        lift_source(
            "iNaturalist18/categories.json", "9c7adca5cafad83bc015e21dc773580769ef641543c412708a08fd81ea99ceb0"
        ),
        # No URL, because 120 GB should not be downloaded by surprise.
        Source(
            "train_val2018.tar.gz",
            (),
            makes={"train_val2018": "train_val2018"},
            checksum="md5:b1c6952ce38f31868cc50ea72d066cc3",
            page="https://ml-inat-competition-datasets.s3.amazonaws.com/2018/train_val2018.tar.gz (120 GB)",
        ),
    )

    @classmethod
    def read(cls, cfg: CfgNode, root: Path) -> Splits:
        path = root / "categories.json"
        try:
            pairs = [(int(category["id"]), str(category["name"])) for category in read_json(path)]
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"'{path}' is not a list of categories with id and name; {PREPARE_AGAIN}") from error
        by_id = distinct(f"'{path}'", pairs)
        check_names(f"'{path}'", by_id, range(max(by_id, default=0) + 1))
        names = [by_id[label] for label in range(len(by_id))]
        train, test = (read_list(root / f"iNaturalist18_{split}.txt", root, names) for split in ("train", "val"))
        check_used(path, names, train, test)
        return train, [], test
