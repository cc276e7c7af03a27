"""Stanford Cars: 196 car models with the year (Krause et al. 2013)."""

from pathlib import Path

from yacs.config import CfgNode

from unskew.data.dataset import DATASET_REGISTRY, Datum
from unskew.data.names import check_used
from unskew.data.published import PublishedDataset, split_source, split_trainval
from unskew.data.splits import PREPARE_AGAIN, Splits, read_mat
from unskew.download.sources import DatasetInfo, Source

_HOME = "https://ai.stanford.edu/~jkrause"
_PAGE = "https://github.com/pytorch/vision/issues/7545 (the university's links are dead)"


@DATASET_REGISTRY.register("stanford_cars")
class StanfordCars(PublishedDataset):
    dataset_dir = "stanford_cars"
    split_file = "split_zhou_StanfordCars.json"
    info = DatasetInfo(196, 6509, 1635, 8041, "1.9 GB", "non-commercial research", _PAGE)
    sources = (
        Source(
            "cars_train.tgz",
            (f"{_HOME}/car196/cars_train.tgz",),
            makes={"cars_train": "cars_train"},
            checksum="md5:065e5b463ae28d29e77c1b4b166cfe61",
            page=_PAGE,
        ),
        Source(
            "cars_test.tgz",
            (f"{_HOME}/car196/cars_test.tgz",),
            makes={"cars_test": "cars_test"},
            checksum="md5:4ce7ebf6a94d07f1952d94dd34c4d501",
            page=_PAGE,
        ),
        Source(
            "car_devkit.tgz",
            (f"{_HOME}/cars/car_devkit.tgz", "https://github.com/pytorch/vision/files/11644847/car_devkit.tgz"),
            makes={"devkit": "devkit"},
            checksum="md5:c3b158d763b6e2245038c8ad08e45376",
            page=_PAGE,
        ),
        Source(
            "cars_test_annos_withlabels.mat",
            (f"{_HOME}/car196/cars_test_annos_withlabels.mat",),
            checksum="md5:b0a2b23655a3edd16d84508592a98d10",
            page=_PAGE,
        ),
        split_source(
            split_file,
            "1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT",
            "40acee7aa65c8e4727a32d90e884b7c3f8960b523422317e163f7af65432959d",
        ),
    )

    @classmethod
    def read(cls, cfg: CfgNode, root: Path) -> Splits:
        models = [str(name[0]) for name in read_mat(root / "devkit" / "cars_meta.mat", "class_names")[0]]

        def items(folder: str, annotations: Path, source: Source | None = None) -> list[Datum]:
            rows = read_mat(annotations, "annotations", source)[0]
            images = []
            if not {"class", "fname"} <= set(rows.dtype.names or ()):
                raise ValueError(f"'{annotations}' has no classes: use the file with labels; {PREPARE_AGAIN}")
            for row in rows:
                label = int(row["class"][0, 0]) - 1
                if not 0 <= label < len(models):
                    raise ValueError(f"'{annotations}' has class {label + 1} of {len(models)}; {PREPARE_AGAIN}")
                model, _, year = models[label].rpartition(" ")
                images.append(Datum(str(root / folder / str(row["fname"][0])), label, 0, f"{year} {model}"))
            return images

        trainval = items("cars_train", root / "devkit" / "cars_train_annos.mat")
        test = items("cars_test", root / "cars_test_annos_withlabels.mat", cls.sources[3])
        check_used(root / "devkit" / "cars_meta.mat", models, trainval, test)
        return *split_trainval(trainval), test
