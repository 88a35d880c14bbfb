"""What the certified bound knows of each kind of layer."""

from tfrobust.bounds.operations.activations import Elementwise
from tfrobust.bounds.operations.affine import (
    Affine,
    Convolutional,
    Dense,
    Permutation,
    Scaling,
    Separable,
    batch_normalization_factors,
    rescaling_factors,
)
from tfrobust.bounds.operations.base import (
    Addition,
    Concatenation,
    InputBounds,
    Lipschitz,
    Operation,
    over_margins,
)
from tfrobust.bounds.operations.pooling import AveragePooling, MaxPooling, sliding_windows
from tfrobust.bounds.operations.response_normalization import ResponseNormalization
from tfrobust.bounds.operations.rounding import (
    SMALLEST,
    UNIT_ROUNDOFF,
    gamma,
    rounded_up,
    underflow,
    upper_norm,
)
from tfrobust.bounds.operations.slopes import activation_of
from tfrobust.bounds.operations.support_function import RowGram

__all__ = [
    "SMALLEST",
    "UNIT_ROUNDOFF",
    "Addition",
    "Affine",
    "AveragePooling",
    "Concatenation",
    "Convolutional",
    "Dense",
    "Elementwise",
    "InputBounds",
    "Lipschitz",
    "MaxPooling",
    "Operation",
    "Permutation",
    "ResponseNormalization",
    "RowGram",
    "Scaling",
    "Separable",
    "activation_of",
    "batch_normalization_factors",
    "gamma",
    "over_margins",
    "rescaling_factors",
    "rounded_up",
    "sliding_windows",
    "underflow",
    "upper_norm",
]
