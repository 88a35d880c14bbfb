"""ROAR and KAR: attribution methods judged by networks retrained on occluded images."""

from tfrobust.retraining.correlations import Correlation, correlation
from tfrobust.retraining.curves import RetrainingCurve, RetrainingScore
from tfrobust.retraining.finished import DamagedRetrainError
from tfrobust.retraining.occlusion import (
    mean_colour,
    occlude,
    occlude_at_random,
    occluded_pixels,
    pixel_attribution,
)
from tfrobust.retraining.retrain import FRACTIONS, kar, random_baseline, roar

__all__ = [
    "FRACTIONS",
    "Correlation",
    "DamagedRetrainError",
    "RetrainingCurve",
    "RetrainingScore",
    "correlation",
    "kar",
    "mean_colour",
    "occlude",
    "occlude_at_random",
    "occluded_pixels",
    "pixel_attribution",
    "random_baseline",
    "roar",
]
