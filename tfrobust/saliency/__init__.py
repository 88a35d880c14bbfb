"""Saliency maps: how a classifier's output depends on the pixels of its input."""

from tfrobust.saliency.maps import gradient, input_gradient

__all__ = ["gradient", "input_gradient"]
