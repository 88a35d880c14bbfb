"""Adversarial robustness and interpretable gradients in TensorFlow 2 / Keras 3."""

from . import (
    alignment,
    attacks,
    bounds,
    classifier,
    data,
    distribution,
    manifold,
    objectives,
    report,
    retraining,
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
from .attacks import (
    BoundedPerturbation,
    IteratedPerturbation,
    MinimalPerturbation,
    RobustAccuracy,
    ThreatModel,
    iterate,
    minimal,
    pgd,
    robust_accuracy,
)
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
    AdversarialTraining,
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
    "AdversarialTraining",
    "Alignment",
    "AlignmentPenalty",
    "Benchmark",
    "BoundedPerturbation",
    "CrossEntropy",
    "Decomposition",
    "DoubleBackprop",
    "GradientGaps",
    "IteratedPerturbation",
    "LastLayerRobustness",
    "MinimalPerturbation",
    "NotLogitsError",
    "RobustAccuracy",
    "RobustnessBound",
    "ThreatModel",
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
    "manifold",
    "measure",
    "minimal",
    "objectives",
    "pgd",
    "predict_logits",
    "report",
    "retraining",
    "robust_accuracy",
    "robustness",
    "saliency",
    "training",
    "vjp",
]
