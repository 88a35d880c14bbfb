"""Sound rules: no smaller perturbation changes the class."""

from tfrobust.bounds.certified.bound import certified

__all__ = ["certified"]
