"""UCF101: the middle frames of videos of 101 actions (Soomro et al. 2012), the first of its three splits."""

import re
from pathlib import Path

from yacs.config import CfgNode

from unskew.data.dataset import DATASET_REGISTRY, Datum
from unskew.data.names import check_used, distinct
from unskew.data.published import PublishedDataset, split_source, split_trainval
from unskew.data.splits import PREPARE_AGAIN, Splits, read_table
from unskew.download.sources import DatasetInfo, Source


@DATASET_REGISTRY.register("ucf101")
class UCF101(PublishedDataset):
    dataset_dir = "ucf101"
    image_dir = "UCF-101-midframes"
    split_file = "split_zhou_UCF101.json"
    template = "a photo of a person doing {}."
    info = DatasetInfo(101, 7639, 1898, 3783, "not stated", "none stated", "https://www.crcv.ucf.edu/data/UCF101.php")
    sources = (
        Source(
            "UCF-101-midframes.zip",
            ("drive:10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O",),
            makes={"UCF-101-midframes": "UCF-101-midframes"},
        ),
        split_source(
            split_file,
            "1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y",
            "d78cb834f7c5792ceaff2c5ee2d7c76a9e4086e48a3a6b01232989d29cbefdd8",
        ),
    )

    @classmethod
    def read(cls, cfg: CfgNode, root: Path) -> Splits:
        lists = root / "ucfTrainTestlist"
        path = lists / "classInd.txt"
        rows = read_table(path, columns=2)
        for number, _ in rows:
            if not number.isdecimal() or int(number) < 1:
                raise ValueError(f"'{path}': '{number}' is not the number of a class; {PREPARE_AGAIN}")
        distinct(f"'{path}'", [(int(number), action) for number, action in rows])
        numbers = distinct(f"'{path}'", [(action, int(number)) for number, action in rows])
        labels = {action: number - 1 for action, number in numbers.items()}

        def items(file: str, columns: int) -> list[Datum]:
            images = []
            for video, *_ in read_table(lists / file, columns):  # ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1
                action, _, name = video.partition("/")
                if action not in labels:
                    raise ValueError(f"'{lists / file}' names '{action}', not in classInd.txt; {PREPARE_AGAIN}")
                classname = "_".join(re.findall("[A-Z][^A-Z]*", action))
                frame = root / cls.image_dir / classname / name.replace(".avi", ".jpg")
                images.append(Datum(str(frame), labels[action], 0, classname))
            return images

        trainval, test = items("trainlist01.txt", 2), items("testlist01.txt", 1)
        check_used(path, sorted(labels, key=labels.__getitem__), trainval, test)
        return *split_trainval(trainval), test
