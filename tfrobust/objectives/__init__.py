"""Training objectives: sums of terms."""

from tfrobust.objectives.base import (
    AlignmentPenalty,
    CrossEntropy,
    DoubleBackprop,
    ForwardPass,
    LastLayerRobustness,
    Objective,
    WeightDecay,
    _Term,
)

__all__ = [
    "AlignmentPenalty",
    "CrossEntropy",
    "DoubleBackprop",
    "ForwardPass",
    "LastLayerRobustness",
    "Objective",
    "WeightDecay",
    "_Term",
]
