"""`dassl.engine.da`: trainers for domain adaptation."""

from unskew.dassl.trainers.adabn import AdaBN
from unskew.dassl.trainers.adda import ADDA
from unskew.dassl.trainers.cdac import AAC, CDAC, custom_scheduler
from unskew.dassl.trainers.dael import DAEL, Experts
from unskew.dassl.trainers.dann import DANN
from unskew.dassl.trainers.erm import SourceOnly
from unskew.dassl.trainers.m3sda import M3SDA, PairClassifiers
from unskew.dassl.trainers.mcd import MCD
from unskew.dassl.trainers.mme import MME, Prototypes
from unskew.dassl.trainers.teachers import SE

__all__ = [
    "AAC",
    "ADDA",
    "CDAC",
    "DAEL",
    "DANN",
    "M3SDA",
    "MCD",
    "MME",
    "SE",
    "AdaBN",
    "Experts",
    "PairClassifiers",
    "Prototypes",
    "SourceOnly",
    "custom_scheduler",
]
