"""Saliency maps: what an input's pixels mean to a classifier."""

from tfrobust.saliency.maps import gradient, input_gradient

__all__ = ["gradient", "input_gradient"]
