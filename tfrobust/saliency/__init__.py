"""Saliency maps: what an input's pixels mean to a classifier."""

from tfrobust.saliency.gradient import gradient

__all__ = ["gradient"]
