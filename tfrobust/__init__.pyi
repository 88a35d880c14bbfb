"""Adversarial robustness and interpretable gradients in TensorFlow 2 / Keras 3."""

from . import (
    alignment,
    attacks,
    bounds,
    classifier,
    data,
    distribution,
    objectives,
    report,
    saliency,
    training,
)
from .alignment import (
    Alignment,
    Decomposition,
    GradientGaps,
    decompose,
    gradient_gaps,
    measure,
)
from .attacks import IteratedPerturbation, MinimalPerturbation, iterate, minimal
from .bounds import RobustnessBound, robustness
from .classifier import (
    NotLogitsError,
    jacobian,
    jvp,
    logits_model,
    predict_logits,
    vjp,
)
from .data import imagenet
from .evaluation import Benchmark, benchmark
from .objectives import (
    AlignmentPenalty,
    CrossEntropy,
    DoubleBackprop,
    LastLayerRobustness,
    WeightDecay,
)
from .report import figures
from .saliency import input_gradient
from .training import evaluate, fit

__all__ = [
    "Alignment",
    "AlignmentPenalty",
    "Benchmark",
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
    "benchmark",
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
    "saliency",
    "training",
    "vjp",
]
