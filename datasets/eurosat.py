"""EuroSAT: land use from Sentinel-2, 10 classes (Helber et al. 2019)."""

from pathlib import Path

from yacs.config import CfgNode

from unskew.data.dataset import DATASET_REGISTRY
from unskew.data.published import PublishedDataset, split_folders, split_source
from unskew.data.splits import Splits
from unskew.download.sources import DatasetInfo, Source

CLASSNAMES = {
    "AnnualCrop": "Annual Crop Land",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "SeaLake": "Sea or Lake",
}
_COPY = "https://huggingface.co/datasets/torchgeo/eurosat/resolve/c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip"


@DATASET_REGISTRY.register("eurosat")
class EuroSAT(PublishedDataset):
    dataset_dir = "eurosat"
    image_dir = "2750"
    split_file = "split_zhou_EuroSAT.json"
    template = "a centered satellite photo of {}."
    info = DatasetInfo(10, 13500, 5400, 8100, "0.1 GB", "MIT", "https://github.com/phelber/EuroSAT")
    sources = (
        Source(
            "EuroSAT.zip",
            ("https://madm.dfki.de/files/sentinel/EuroSAT.zip", _COPY),
            makes={"2750": "2750"},
            checksum="md5:c8fa014336c82ac7804f0398fcb19387",
        ),
        split_source(
            split_file,
            "1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o",
            "541503a77d0b26b735d85ec7a3e672804fe0aa466c2e5f07da772cc6c0af8ad2",
        ),
    )

    @classmethod
    def read(cls, cfg: CfgNode, root: Path) -> Splits:
        return split_folders(root / cls.image_dir, CLASSNAMES)
