"""`dassl.engine.ssl`: trainers for semi-supervised learning."""

from unskew.dassl.trainers.entmin import EntMin
from unskew.dassl.trainers.erm import SupBaseline
from unskew.dassl.trainers.fixmatch import FixMatch
from unskew.dassl.trainers.mixmatch import MixMatch
from unskew.dassl.trainers.teachers import MeanTeacher

__all__ = ["EntMin", "FixMatch", "MeanTeacher", "MixMatch", "SupBaseline"]
