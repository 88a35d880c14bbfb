"""Foolbox's attacks behind the interface of our own."""

from tfrobust.attacks.foolbox.bridge import (
    ALIASES,
    FoolboxError,
    attack_class,
    attack_names,
    foolbox_attack,
    settings_of,
)

__all__ = [
    "ALIASES",
    "FoolboxError",
    "attack_class",
    "attack_names",
    "foolbox_attack",
    "settings_of",
]
