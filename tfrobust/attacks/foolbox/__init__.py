"""Foolbox's attacks behind the interface of the built-in ones.

`bridge` makes an attack of Foolbox's ready for a model; `gradient_descent` gives its gradient
descents compiled gradients and a radius per example; `smallest_radius` bisects the radius of those
that take a fixed one.
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
