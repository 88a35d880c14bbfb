"""Adversarial robustness and interpretable gradients in TensorFlow 2 / Keras 3."""

from tfrobust import (
    alignment,
    attacks,
    bounds,
    classifier,
    data,
    distribution,
    objectives,
    report,
    training,
)
from tfrobust.alignment import (
    Alignment,
    Decomposition,
    GradientGaps,
    decompose,
    gradient_gaps,
    measure,
)
from tfrobust.attacks import IteratedPerturbation, MinimalPerturbation, iterate, minimal
from tfrobust.bounds import RobustnessBound, robustness
from tfrobust.classifier import (
    NotLogitsError,
    input_gradient,
    jacobian,
    jvp,
    logits_model,
    predict_logits,
    vjp,
)
from tfrobust.data import imagenet
from tfrobust.objectives import (
    AlignmentPenalty,
    CrossEntropy,
    DoubleBackprop,
    LastLayerRobustness,
    WeightDecay,
)
from tfrobust.report import figures
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
    "alignment",
    "attacks",
    "bounds",
    "classifier",
    "data",
    "decompose",
    "distribution",
    "evaluate",
    "figures",
    "fit",
    "gradient_gaps",
    "imagenet",
    "input_gradient",
    "iterate",
    "jacobian",
    "jvp",
    "logits_model",
    "measure",
    "minimal",
    "objectives",
    "predict_logits",
    "report",
    "robustness",
    "training",
    "vjp",
]
