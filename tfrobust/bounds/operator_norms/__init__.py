"""Proven upper bounds of the operator norms of linear layers."""

from tfrobust.bounds.operator_norms.convolution import SLACK, largest_singular_value
from tfrobust.bounds.operator_norms.layers import (
    ISOMETRIES,
    batch_normalization_scale,
    cached_norm,
    check_channels_last,
    folded_norm,
    operator_norm_upper_bound,
    windows_over,
    zeros_around,
)

__all__ = [
    "ISOMETRIES",
    "SLACK",
    "batch_normalization_scale",
    "cached_norm",
    "check_channels_last",
    "folded_norm",
    "largest_singular_value",
    "operator_norm_upper_bound",
    "windows_over",
    "zeros_around",
]
