"""`dassl.engine.dg`: trainers for domain generalisation."""

from unskew.dassl.trainers.crossgrad import CrossGrad
from unskew.dassl.trainers.dael import DAELDG, Experts
from unskew.dassl.trainers.ddaig import DDAIG
from unskew.dassl.trainers.domainmix import DomainMix
from unskew.dassl.trainers.erm import Vanilla

__all__ = ["DAELDG", "DDAIG", "CrossGrad", "DomainMix", "Experts", "Vanilla"]
