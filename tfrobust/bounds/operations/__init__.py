"""What the certified bound knows of each kind of layer."""

from tfrobust.bounds.operations.activations import Elementwise, activation_of
from tfrobust.bounds.operations.affine import (
    Affine,
    Convolutional,
    Dense,
    Scaling,
    Separable,
    Shuffle,
    batch_normalisation_factors,
    rescaling_factors,
)
from tfrobust.bounds.operations.base import (
    UNIT_ROUNDOFF,
    Addition,
    Concatenation,
    Lipschitz,
    Operation,
    Rows,
    over_margins,
)
from tfrobust.bounds.operations.pooling import AveragePooling, MaxPooling, sliding_windows
from tfrobust.bounds.operations.response_normalization import ResponseNormalisation

__all__ = [
    "UNIT_ROUNDOFF",
    "Addition",
    "Affine",
    "AveragePooling",
    "Concatenation",
    "Convolutional",
    "Dense",
    "Elementwise",
    "Lipschitz",
    "MaxPooling",
    "Operation",
    "ResponseNormalisation",
    "Rows",
    "Scaling",
    "Separable",
    "Shuffle",
    "activation_of",
    "batch_normalisation_factors",
    "over_margins",
    "rescaling_factors",
    "sliding_windows",
]
