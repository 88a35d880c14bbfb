"""Saliency maps: how a classifier's output depends on the pixels of its input."""

from tfrobust.saliency.integrated import integrated_gradients
from tfrobust.saliency.maps import gradient, gradient_times_input, input_gradient, random_map

__all__ = [
    "gradient",
    "gradient_times_input",
    "input_gradient",
    "integrated_gradients",
    "random_map",
]
