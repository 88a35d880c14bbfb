"""Minimal adversarial perturbations: our compiled attacks and Foolbox's, checked alike."""

from tfrobust.attacks.iterate import IteratedPerturbation, iterate
from tfrobust.attacks.minimal import minimal
from tfrobust.attacks.result import MinimalPerturbation

__all__ = ["IteratedPerturbation", "MinimalPerturbation", "iterate", "minimal"]
