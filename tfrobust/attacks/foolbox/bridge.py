"""The bridge to Foolbox: any of its attacks by name, on compiled logits."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import foolbox
import numpy as np
import tensorflow as tf
from foolbox.attacks.base import FixedEpsilonAttack, FlexibleDistanceMinimizationAttack
from foolbox.attacks.gradient_descent_base import BaseGradientDescent

from tfrobust.arguments import as_count
from tfrobust.attacks.direction import AttackFunction, misclassified
from tfrobust.attacks.foolbox.gradient_descent import (
    Iterates,
    with_radius_per_example,
    without_underflow,
)
from tfrobust.attacks.foolbox.smallest_radius import smallest_radius
from tfrobust.attacks.foolbox.unit_range import UNIT, UnitRange
from tfrobust.errors import InputError, TfrobustError
from tfrobust.norms import flatten, per_example

# short names of Foolbox's attacks, with the settings of Etmann 2019, section 4
ALIASES: dict[str, tuple[str, dict[str, Any]]] = {
    # Foolbox 1.8: steps of .05 in a ball of .3; it kept the ratio when it bisected the radius, and
    # the smallest adversarial of all iterates
    "basic_iterative": (
        "L2BasicIterativeAttack",
        {"steps": 10, "rel_stepsize": 1 / 6, "keep": "smallest"},
    ),
    "carlini_wagner": (
        "L2CarliniWagnerAttack",
        {
            "binary_search_steps": 5,
            "steps": 1000,
            "stepsize": 5e-3,
            "initial_const": 1e-2,
            "confidence": 0,
            "abort_early": True,
        },
    ),
    "deepfool": ("L2DeepFoolAttack", {}),
}
BISECTION_STEPS = 10
# what Foolbox's attacks raise for invalid inputs or settings
_FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NotImplementedError,
    TypeError,
    ValueError,
)
# these return an all-zero image where they fail
_ZERO_IS_NONE = (foolbox.attacks.L2CarliniWagnerAttack, foolbox.attacks.EADAttack)


class FoolboxError(TfrobustError, RuntimeError):
    """An attack of Foolbox could not be created or run."""


def attack_names() -> list[str]:
    """Names of Foolbox's attacks, Foolbox's aliases among them."""
    return [name for name in dir(foolbox.attacks) if attack_class(name)]


def attack_class(name: str) -> type[foolbox.attacks.Attack] | None:
    """The attack of that name in `foolbox.attacks`; None where there is none."""
    cls = getattr(foolbox.attacks, name, None)
    is_attack = inspect.isclass(cls) and issubclass(cls, foolbox.attacks.Attack)
    return cls if is_attack and not inspect.isabstract(cls) else None


def setting_names(cls: type[foolbox.attacks.Attack]) -> list[str]:
    """Names of the settings that `foolbox_attack` takes for an attack."""
    names = list(inspect.signature(cls).parameters)
    if issubclass(cls, FixedEpsilonAttack):
        names.append("bisection_steps")
    return [*names, "keep"] if issubclass(cls, BaseGradientDescent) else names


def foolbox_attack(
    cls: type[foolbox.attacks.Attack],
    model: Any,
    x: np.ndarray,
    value_range: tuple[float, float],
    norm: float,
    **settings: Any,
) -> AttackFunction:
    """An attack of Foolbox, prepared for a model.

    It sees pixels in [0, 1], whatever the value range: its settings that are lengths are in units
    of the range's width. Attacks that minimise the perturbation run unchanged. For those with a
    fixed radius, the smallest successful radius, in the attack's norm, is bisected for each
    example.

    Args:
        cls: the attack's class.
        model: any classifier.
        x: (batch, *input), as `as_images` returns it.
        value_range: smallest and largest valid pixel.
        norm: p of the norm to minimise, for attacks that support several.
        settings: of the attack's constructor; `bisection_steps`, where the radius is searched;
            `keep` of gradient descent: the "last" iterate, as Foolbox does, or the "smallest"
            adversarial of all.

    Raises:
        FoolboxError: Foolbox refuses the settings, or, when run, the inputs.
        ValueError: `bisection_steps` is not a positive whole number, or `keep` is unknown.
    """
    steps = as_count("bisection_steps", settings.pop("bisection_steps", BISECTION_STEPS), 1)
    keep = settings.pop("keep", "last")
    if keep not in ("last", "smallest"):
        raise InputError(f'keep must be "last" or "smallest", got {keep!r}')
    if issubclass(cls, FlexibleDistanceMinimizationAttack):
        settings.setdefault("distance", foolbox.distances.LpDistance(norm))
    attack = _raising_foolbox_errors(cls, cls)(**settings)
    in_unit_range = UnitRange(model, x, value_range)
    # without a device Foolbox looks for a GPU by a deprecated function
    device = tf.constant(x[:1]).device
    wrapped = foolbox.TensorFlowModel(in_unit_range.logits, bounds=UNIT, device=device)
    iterates = None
    if isinstance(attack, BaseGradientDescent):
        iterates = without_underflow(attack, model, x, value_range)
    if isinstance(attack, FixedEpsilonAttack):
        kept = iterates if keep == "smallest" else None
        try_radius = _radius_trial(cls, attack, wrapped, in_unit_range.logits, kept)

        def search(rows: tf.Tensor, labels: tf.Tensor) -> tuple[Any, Any]:
            return smallest_radius(
                try_radius, rows, labels, attack.distance.p, UNIT, bisection_steps=steps
            )

    else:
        search = functools.partial(_minimised, cls, attack, wrapped)

    def run(rows: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        images, success = search(in_unit_range.unit(rows), labels)
        return in_unit_range.pixels(images, rows), success

    return run


def _raising_foolbox_errors(cls: type, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, with Foolbox's errors raised as FoolboxError."""

    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except _FAILURES as error:
            reason = f"{type(error).__name__}: {error}".rstrip(": ")
            raise FoolboxError(f"Foolbox's {cls.__name__} failed with {reason}") from error

    return run


def _criterion(labels: tf.Tensor) -> foolbox.Misclassification:
    # Foolbox's own dtype of class indices: under NumPy 2 it cannot compare different ones
    return foolbox.Misclassification(tf.cast(labels, tf.int64))


def _minimised(
    cls: type[foolbox.attacks.Attack],
    attack: foolbox.attacks.Attack,
    wrapped: foolbox.TensorFlowModel,
    rows: tf.Tensor,
    labels: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    _, images, success = _raising_foolbox_errors(cls, attack)(
        wrapped, rows, _criterion(labels), epsilons=None
    )
    if cls in _ZERO_IS_NONE:
        success = success & tf.reduce_any(flatten(images) != 0, axis=1)
    return images, success


def _radius_trial(
    cls: type[FixedEpsilonAttack],
    attack: FixedEpsilonAttack,
    wrapped: foolbox.TensorFlowModel,
    logits: Callable[[tf.Tensor], tf.Tensor],
    iterates: Iterates | None = None,
) -> Callable[[tf.Tensor, tf.Tensor, np.ndarray], tuple[tf.Tensor, tf.Tensor]]:
    """A function from images, labels and radii (batch,) to candidates and their success.

    With `iterates` the smallest adversarial of all iterates is the candidate.
    """
    if isinstance(attack, BaseGradientDescent) and with_radius_per_example(attack):

        def all_radii(
            rows: tf.Tensor, labels: tf.Tensor, radius: np.ndarray
        ) -> tuple[tf.Tensor, tf.Tensor]:
            epsilon = per_example(tf.constant(radius, rows.dtype), rows)
            run = _raising_foolbox_errors(cls, attack.run)
            if iterates is not None:
                iterates.begin(rows, attack.distance.p)
            images = run(wrapped, rows, _criterion(labels), epsilon=epsilon)
            success = misclassified(logits(images), labels)
            if iterates is None:
                return images, success
            iterates.seen(images, success)
            return iterates.smallest, iterates.found

        return all_radii

    def one_radius_at_a_time(
        rows: tf.Tensor, labels: tf.Tensor, radius: np.ndarray
    ) -> tuple[tf.Tensor, tf.Tensor]:
        images, success = rows.numpy(), np.zeros(len(rows), bool)
        for epsilon in np.unique(radius):
            indices = np.flatnonzero(radius == epsilon)
            run = _raising_foolbox_errors(cls, attack)
            at_radius, criterion = tf.gather(rows, indices), _criterion(tf.gather(labels, indices))
            _, clipped, _ = run(wrapped, at_radius, criterion, epsilons=float(epsilon))
            images[indices] = clipped.numpy()
            success[indices] = misclassified(logits(clipped), tf.gather(labels, indices)).numpy()
        return tf.constant(images), tf.constant(success)

    return one_radius_at_a_time
