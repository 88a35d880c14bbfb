"""Minimal adversarial perturbations, by built-in attacks and Foolbox's; all are verified."""

from tfrobust.attacks.foolbox import FoolboxError
from tfrobust.attacks.iterate import IteratedPerturbation, iterate
from tfrobust.attacks.minimal import minimal
from tfrobust.attacks.registry import prepare
from tfrobust.attacks.result import MinimalPerturbation

__all__ = [
    "FoolboxError",
    "IteratedPerturbation",
    "MinimalPerturbation",
    "iterate",
    "minimal",
    "prepare",
]
