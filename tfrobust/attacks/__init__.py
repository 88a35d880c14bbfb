"""Adversarial perturbations: the smallest one, and the worst one of a fixed radius; verified."""

from tfrobust.attacks.foolbox import FoolboxError
from tfrobust.attacks.iterate import IteratedPerturbation, iterate
from tfrobust.attacks.minimal import minimal
from tfrobust.attacks.projected_gradient import BoundedPerturbation, pgd
from tfrobust.attacks.registry import prepare
from tfrobust.attacks.result import MinimalPerturbation
from tfrobust.attacks.robust_accuracy import RobustAccuracy, robust_accuracy
from tfrobust.attacks.search import Stop, draws_of_batch, search, start_at
from tfrobust.attacks.threat_model import ThreatModel

__all__ = [
    "BoundedPerturbation",
    "FoolboxError",
    "IteratedPerturbation",
    "MinimalPerturbation",
    "RobustAccuracy",
    "Stop",
    "ThreatModel",
    "draws_of_batch",
    "iterate",
    "minimal",
    "pgd",
    "prepare",
    "robust_accuracy",
    "search",
    "start_at",
]
