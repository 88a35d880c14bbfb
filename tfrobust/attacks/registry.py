"""Attacks by name: built-in ones, and Foolbox's."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from tfrobust.attacks.direction import AttackFunction
from tfrobust.attacks.fast_gradient import fast_gradient_sign, fast_gradient_value
from tfrobust.attacks.foolbox import (
    ALIASES,
    attack_class,
    attack_names,
    foolbox_attack,
    setting_names,
)
from tfrobust.attacks.gradient import gradient_attack
from tfrobust.attacks.hot_cold import hot_cold
from tfrobust.attacks.lbfgs import lbfgs
from tfrobust.attacks.super_deepfool import super_deepfool
from tfrobust.errors import InputError, InputTypeError

__all__ = ["BUILT_IN", "prepare"]

# from model, x, value_range and keyword settings to an attack prepared for the model
BUILT_IN: dict[str, Callable[..., AttackFunction]] = {
    "gradient": gradient_attack,
    "fast_gradient_sign": fast_gradient_sign,
    "fast_gradient_value": fast_gradient_value,
    "hot_cold": hot_cold,
    "lbfgs": lbfgs,
    "super_deepfool": super_deepfool,
}


def prepare(
    attack: str,
    model: Any,
    x: np.ndarray,
    *,
    value_range: tuple[float, float],
    norm: float,
    settings: dict[str, Any],
) -> AttackFunction:
    """The attack of a name, prepared for a model.

    Raises:
        ValueError: no attack has that name, or a setting has an invalid value.
        TypeError: the attack has no setting of that name.
        FoolboxError: Foolbox refuses the settings.
    """
    if attack in BUILT_IN:
        parameters = inspect.signature(BUILT_IN[attack]).parameters.values()
        names = [p.name for p in parameters if p.kind == p.KEYWORD_ONLY]
        minimises = {"norm": norm} if "norm" in names else {}
        _check_settings(attack, settings, [name for name in names if name != "norm"])
        return BUILT_IN[attack](model, x, value_range, **minimises, **settings)
    name, defaults = ALIASES.get(attack, (attack, {}))
    cls = attack_class(str(name))
    if cls is None:
        raise InputError(_unknown_attack(attack))
    _check_settings(attack, settings, setting_names(cls))
    return foolbox_attack(cls, model, x, value_range, norm, **{**defaults, **settings})


def _check_settings(attack: str, settings: dict[str, Any], accepted: list[str]) -> None:
    unknown = sorted(set(settings) - set(accepted))
    if unknown:
        supported = f"it takes {', '.join(sorted(accepted))}" if accepted else "it takes none"
        raise InputTypeError(f"attack {attack!r} has no setting {', '.join(unknown)}; {supported}")


def _unknown_attack(attack: Any) -> str:
    names = [*BUILT_IN, *ALIASES, *attack_names()]
    close = difflib.get_close_matches(str(attack), names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    known = ", ".join(map(repr, [*BUILT_IN, *ALIASES]))
    return (
        f"unknown attack {attack!r}.{hint} Known are {known}, and "
        "every class of foolbox.attacks by its name, for instance 'LinfPGD' or 'L2FMNAttack'."
    )
