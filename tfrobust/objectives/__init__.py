"""Training objectives: sums of terms."""

from tfrobust.objectives.adversarial import AdversarialTraining
from tfrobust.objectives.base import Objective, Term
from tfrobust.objectives.contractive import ContractivePenalty
from tfrobust.objectives.cross_entropy import CrossEntropy, WeightDecay
from tfrobust.objectives.fast_gradient import FastGradientSignLoss
from tfrobust.objectives.forward_pass import ForwardPass
from tfrobust.objectives.input_gradients import AlignmentPenalty, DoubleBackprop
from tfrobust.objectives.interpretation import InterpretationRegularization
from tfrobust.objectives.jacobian import JacobianRegularization
from tfrobust.objectives.last_layer import LastLayerRobustness

__all__ = [
    "AdversarialTraining",
    "AlignmentPenalty",
    "ContractivePenalty",
    "CrossEntropy",
    "DoubleBackprop",
    "FastGradientSignLoss",
    "ForwardPass",
    "InterpretationRegularization",
    "JacobianRegularization",
    "LastLayerRobustness",
    "Objective",
    "Term",
    "WeightDecay",
]
