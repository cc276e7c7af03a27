"""`dassl.data.datasets`: the datasets of Dassl 0.6.3, in its registry.

A class that a script registers under one of their names replaces Dassl's.
"""

from unskew.dassl.data import DATASET_REGISTRY, DatasetBase, Datum, build_dataset
from unskew.dassl.datasets.da import CIFARSTL, DomainNet, Office31, OfficeHome, VisDA17, miniDomainNet
from unskew.dassl.datasets.dg import CIFAR10C, CIFAR100C, PACS, VLCS, DigitsDG, OfficeHomeDG
from unskew.dassl.datasets.digit5 import Digit5
from unskew.dassl.datasets.digit_single import DigitSingle
from unskew.dassl.datasets.ssl import CIFAR10, CIFAR100, STL10, SVHN
from unskew.dassl.datasets.wilds import Camelyon17, FMoW, IWildCam

ADAPTATION = (Digit5, VisDA17, CIFARSTL, Office31, DomainNet, OfficeHome, miniDomainNet)
WILDS = (FMoW, IWildCam, Camelyon17)
GENERALISATION = (PACS, VLCS, *WILDS, CIFAR10C, CIFAR100C, DigitsDG, DigitSingle, OfficeHomeDG)
SEMI_SUPERVISED = (CIFAR10, CIFAR100, SVHN, STL10)

__all__ = [
    "CIFAR10",
    "CIFAR10C",
    "CIFAR100",
    "CIFAR100C",
    "CIFARSTL",
    "DATASET_REGISTRY",
    "PACS",
    "STL10",
    "SVHN",
    "VLCS",
    "Camelyon17",
    "DatasetBase",
    "Datum",
    "Digit5",
    "DigitSingle",
    "DigitsDG",
    "DomainNet",
    "FMoW",
    "IWildCam",
    "Office31",
    "OfficeHome",
    "OfficeHomeDG",
    "VisDA17",
    "build_dataset",
    "miniDomainNet",
]

for _dataset in (*ADAPTATION, *GENERALISATION, *SEMI_SUPERVISED):
    DATASET_REGISTRY.offer(_dataset)
