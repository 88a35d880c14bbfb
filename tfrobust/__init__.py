"""Adversarial robustness and interpretable gradients in TensorFlow 2 / Keras 3."""

from tfrobust.alignment import Alignment, decompose, measure
from tfrobust.attacks import IteratedPerturbation, MinimalPerturbation, iterate, minimal
from tfrobust.bounds import RobustnessBound, robustness
from tfrobust.decomposition import Decomposition
from tfrobust.differentiate import (
    NotLogitsError,
    input_gradient,
    jacobian,
    jvp,
    logits_model,
    predict_logits,
    vjp,
)
from tfrobust.objectives import (
    AlignmentPenalty,
    CrossEntropy,
    DoubleBackprop,
    LastLayerRobustness,
    WeightDecay,
)
from tfrobust.sketch import GradientGaps, gradient_gaps
from tfrobust.training import evaluate, fit

__all__ = [
    "Alignment",
    "AlignmentPenalty",
    "CrossEntropy",
    "Decomposition",
    "DoubleBackprop",
    "GradientGaps",
    "IteratedPerturbation",
    "LastLayerRobustness",
    "MinimalPerturbation",
    "NotLogitsError",
    "RobustnessBound",
    "WeightDecay",
    "decompose",
    "evaluate",
    "fit",
    "gradient_gaps",
    "input_gradient",
    "iterate",
    "jacobian",
    "jvp",
    "logits_model",
    "measure",
    "minimal",
    "predict_logits",
    "robustness",
    "vjp",
]
