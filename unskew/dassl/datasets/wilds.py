"""Datasets of WILDS (Koh et al., ICML 2021); their first use needs the package wilds, which downloads them."""

import csv
import logging
import os
import pickle
from typing import Any

from yacs.config import CfgNode

from unskew.dassl.data import Datum
from unskew.dassl.datasets._base import PublishedDataset
from unskew.utils.files import write_atomically
from unskew.utils.safe_pickle import read_plain

__all__ = ["CATEGORIES", "Camelyon17", "FMoW", "IWildCam", "WILDSBase"]

logger = logging.getLogger("unskew")

# The classes of FMoW.
CATEGORIES = """
airport airport_hangar airport_terminal amusement_park aquaculture archaeological_site barn border_checkpoint
burial_site car_dealership construction_site crop_field dam debris_or_rubble educational_institution electric_substation
factory_or_powerplant fire_station flooded_road fountain gas_station golf_course ground_transportation_station helipad
hospital impoverished_settlement interchange lake_or_pond lighthouse military_facility multi-unit_residential
nuclear_powerplant office_building oil_or_gas_facility park parking_lot_or_garage place_of_worship police_station port
prison race_track railway_bridge recreational_facility road_bridge runway shipyard shopping_mall
single-unit_residential smokestack solar_farm space_facility stadium storage_tank surface_mine swimming_pool toll_booth
tower tunnel_opening waste_disposal water_treatment_facility wind_farm zoo
""".split()


class WILDSBase(PublishedDataset):
    """A dataset of WILDS with its published splits and domains; a subclass names its classes.

    The images are listed once, in the file ``zhou_preloaded.pkl`` in the dataset's folder, which Dassl reads and writes
    too. No code in the file is run. ``DATASET.NUM_SHOTS`` images are drawn per domain and class.

    Attributes:
        relabel_domain: whether the domains of each split are numbered from 0.
    """

    page = "https://wilds.stanford.edu"
    relabel_domain = True
    label_to_name: dict[int, str]

    def _read_splits(self, cfg: CfgNode) -> dict[str, list[Datum] | None]:
        self.preloaded = os.path.join(self.dataset_dir, "zhou_preloaded.pkl")
        splits = self._read_preloaded() if os.path.exists(self.preloaded) else self._read_metadata()
        train = splits["train"]
        if cfg.DATASET.NUM_SHOTS > 0:
            domains = self.split_dataset_by_domain(train).values()
            shots = [self.generate_fewshot_dataset(items, num_shots=cfg.DATASET.NUM_SHOTS) for items in domains]
            train = [item for items in shots for item in items]
        return {"train_x": train, "val": splits["val"], "test": splits["test"]}

    def _read_preloaded(self) -> dict[str, list[Datum]]:
        with open(self.preloaded, "rb") as file:
            splits = read_plain(file, Datum, "delete it")
        self.label_to_name = self.load_classnames()
        match splits:
            case {"train": list(), "val": list(), "test": list()}:
                pass
            case _:
                raise ValueError(f"'{self.preloaded}' must hold the lists train, val and test; delete it")
        first = next((item.impath for items in splits.values() for item in items), "")
        if first and not os.path.isfile(first):
            raise ValueError(f"'{self.preloaded}' lists images such as '{first}', which do not exist; delete it")
        return splits

    def _read_metadata(self) -> dict[str, list[Datum]]:
        """Read the dataset with the package wilds, which downloads a missing one, and write ``zhou_preloaded.pkl``."""
        root, folder = os.path.split(self.dataset_dir)
        try:
            from wilds import get_dataset

            dataset = get_dataset(dataset=folder.split("_")[0], root_dir=root, download=True)
        except ImportError as error:  # the package imports some of its requirements late
            advice = "run pip install pandas pytz; pip install --no-deps wilds"
            raise ValueError(f"{type(self).__name__} needs the package {error.name or error}: {advice}") from error
        self.label_to_name = self.load_classnames()
        splits = {split: self.read_data(dataset.get_subset(split)) for split in ("train", "val", "test")}
        try:
            write_atomically(self.preloaded, lambda file: pickle.dump(splits, file, pickle.HIGHEST_PROTOCOL))
        except OSError as error:
            logger.warning(f"the list of images is not kept for the next run: {error}")
        return splits

    def load_classnames(self) -> dict[int, str]:
        """Return ``{label: class name}``."""
        raise NotImplementedError(f"{type(self).__name__} must define load_classnames()")

    def get_image_path(self, dataset: Any, idx: int) -> str:
        """Return the path of the image ``idx`` of a dataset of the package wilds."""
        return os.path.join(self.dataset_dir, dataset._input_array[idx])

    def get_label(self, dataset: Any, idx: int) -> int:
        """Return the label of the image ``idx``."""
        return int(dataset.y_array[idx])

    def get_domain(self, dataset: Any, idx: int) -> int:
        """Return the domain of the image ``idx``, before `relabel_domain`."""
        return int(dataset.metadata_array[idx][0])

    def read_data(self, subset: Any) -> list[Datum]:
        """Return the images of a subset of the package wilds, which has ``indices`` and ``dataset``."""
        data, indices = subset.dataset, subset.indices
        paths = [self.get_image_path(data, idx) for idx in indices]
        labels = [self.get_label(data, idx) for idx in indices]
        domains = [self.get_domain(data, idx) for idx in indices]
        if self.relabel_domain:
            numbers = {domain: number for number, domain in enumerate(set(domains))}  # Dassl's order, that of a set
            domains = [numbers[domain] for domain in domains]
        names = [self.label_to_name[label] for label in labels]
        return [Datum(*values) for values in zip(paths, labels, domains, names, strict=True)]


class Camelyon17(WILDSBase):
    """Tumours in tissue of five hospitals (Bandi et al., IEEE TMI 2019); the domain is the hospital."""

    dataset_dir = "camelyon17_v1.0"

    def load_classnames(self) -> dict[int, str]:
        """Return the names of the two classes."""
        return {0: "healthy tissue", 1: "tumor tissue"}


class FMoW(WILDSBase):
    """Use of land in satellite images, 62 classes (Christie et al., CVPR 2018); domains are region x year."""

    dataset_dir = "fmow_v1.1"

    def get_image_path(self, dataset: Any, idx: int) -> str:
        """Return the path of the image, whose name has its number in the whole dataset."""
        return os.path.join(self.dataset_dir, "images", f"rgb_img_{dataset.full_idxs[idx]}.png")

    def get_domain(self, dataset: Any, idx: int) -> int:
        """Return ``16 * region + year``; there are 16 years."""
        region, year = (int(value) for value in dataset.metadata_array[idx][:2])
        return 16 * region + year

    def load_classnames(self) -> dict[int, str]:
        """Return `CATEGORIES` by label."""
        return dict(enumerate(CATEGORIES))


class IWildCam(WILDSBase):
    """Animals in photographs of camera traps, 182 species (Beery et al., 2021); the domain is the camera."""

    dataset_dir = "iwildcam_v2.0"

    def get_image_path(self, dataset: Any, idx: int) -> str:
        """Return the path of the image, below ``train`` for each split."""
        return os.path.join(self.dataset_dir, "train", dataset._input_array[idx])

    def load_classnames(self) -> dict[int, str]:
        """Return the column "name" of ``categories.csv``, by row."""
        with open(os.path.join(self.dataset_dir, "categories.csv"), encoding="utf-8", newline="") as file:
            return {label: row["name"] for label, row in enumerate(csv.DictReader(file))}
