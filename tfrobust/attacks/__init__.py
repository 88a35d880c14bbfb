"""Minimal adversarial perturbations: our compiled attacks and Foolbox's, checked alike."""

from tfrobust.attacks.minimal import minimal
from tfrobust.attacks.result import MinimalPerturbation

__all__ = ["MinimalPerturbation", "minimal"]
