"""Saliency maps: how a classifier's output depends on the pixels of its input."""

from tfrobust.saliency.digests import architecture_sha256
from tfrobust.saliency.integrated import integrated_gradients
from tfrobust.saliency.maps import gradient, gradient_times_input, input_gradient, random_map
from tfrobust.saliency.smoothed import smoothgrad, vargrad
from tfrobust.saliency.stored import TargetMaps, target_maps
from tfrobust.saliency.targets import permute, threshold

__all__ = [
    "TargetMaps",
    "architecture_sha256",
    "gradient",
    "gradient_times_input",
    "input_gradient",
    "integrated_gradients",
    "permute",
    "random_map",
    "smoothgrad",
    "target_maps",
    "threshold",
    "vargrad",
]
