"""Etmann 2019: alignment, linearized robustness and the homogeneous decomposition."""

from tfrobust.alignment.decomposition import Decomposition, decompose, describe_inexactness
from tfrobust.alignment.measure import Alignment, measure
from tfrobust.alignment.sketch import GradientGaps, check_sketch, gradient_gaps

__all__ = [
    "Alignment",
    "Decomposition",
    "GradientGaps",
    "check_sketch",
    "decompose",
    "describe_inexactness",
    "gradient_gaps",
    "measure",
]
