"""Foolbox's attacks, with the interface of the built-in ones.

`bridge` prepares an attack of Foolbox for a model; `gradient_descent` gives its gradient descent
attacks compiled gradients and a radius per example; `smallest_radius` bisects the radius of attacks
with a fixed one.
"""

from tfrobust.attacks.foolbox.bridge import (
    ALIASES,
    FoolboxError,
    attack_class,
    attack_names,
    foolbox_attack,
    setting_names,
)

__all__ = [
    "ALIASES",
    "FoolboxError",
    "attack_class",
    "attack_names",
    "foolbox_attack",
    "setting_names",
]
