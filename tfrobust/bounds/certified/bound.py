"""Sound lower bounds: margins over Lipschitz constants, then tightened in a ball about x."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust import norms
from tfrobust.bounds import registry
from tfrobust.bounds.certified.ball import MARGINS, forward, largest_ball, rounding
from tfrobust.bounds.certified.network import Constants, Network
from tfrobust.bounds.graph import UnsupportedLayerError, walk
from tfrobust.bounds.result import LayerKappa, RobustnessBound
from tfrobust.classifier import compiled, in_batches
from tfrobust.errors import InputError

__all__ = ["certified"]

# networks that are tightened unless the caller says otherwise
FEW_CLASSES, FEW_KINKS = 20, 16
# a proven rounding error may take this share of a margin; else the error is estimated
TOLERATED = 0.5
# numbers that tightening may hold at a time, in all
WORKING_SET = 2e8


def certified(
    model: keras.Model, x: np.ndarray, tighten: bool | None, batch_size: int
) -> RobustnessBound:
    """See `tfrobust.bounds.robustness`."""
    network = _network(model, x)
    constants = network.constants()
    evaluate = compiled(
        model, ("bounds", "forward", registry.changes()), _evaluate(network), x, rowwise=2
    )
    reach = tf.constant(_rounded_up(constants.reach))

    def at(x: Any, radius: np.ndarray, description: str | None = "margins") -> Any:
        """Logits of each example, and the errors of all in a ball about it."""
        return in_batches(
            lambda *rows: evaluate(*rows, reach),
            x,
            _rounded_up(radius),
            batch_size=batch_size,
            description=description,
        )

    logits, errors = at(x, np.zeros(len(x)))
    if not np.isfinite(logits).all():
        bad = int(np.flatnonzero(~np.isfinite(logits).all(axis=1))[0])
        raise InputError(f"the logits of example {bad} are not finite: no bound can be given")
    predicted = logits.argmax(axis=1).astype(np.int32)
    margins = _differences(logits, predicted)
    least = _without_own(margins, predicted).min(axis=1)
    # rounding at x; and where an attacker's image is evaluated, which is no farther than this
    farthest = _global(margins, _own_and_other(errors, predicted), predicted, constants, network)
    flat = np.isinf(farthest)
    if flat.any():
        farthest[flat] = _flat_enough(at, x[flat], margins[flat], errors[flat], predicted[flat])
    _, there = at(x, np.where(np.isinf(farthest), 0, farthest), "rounding errors")
    doubt = _own_and_other(errors + there, predicted)
    proved = _without_own(doubt, predicted).max(axis=1) <= TOLERATED * np.maximum(least, 1e-30)
    proved &= all(operation.rounding_is_proved for operation in network.operations)
    if not proved.all():
        nowhere = np.zeros_like(doubt)
        about = _global(margins, nowhere, predicted, constants, network)
        estimate = _estimated(at, x[~proved], about[~proved])
        errors[~proved] = estimate[:, None]
        doubt[~proved] = 4 * estimate[:, None]

    radius = _global(margins, doubt, predicted, constants, network)
    radius = np.where(proved | flat, np.minimum(radius, farthest), radius)
    kappas = tuple(
        LayerKappa(
            step.name,
            step.kind,
            operation.rule,
            _times(radius, max(constants.reach[source] for source in step.inputs)),
        )
        for step, operation in zip(network.steps, network.operations, strict=True)
    )
    kinks = sum(not operation.linear for operation in network.operations)
    if tighten is None:
        tighten = logits.shape[1] <= FEW_CLASSES and kinks <= FEW_KINKS
    bound = untightened = radius.astype(np.float32)
    if tighten and kinks:
        given = (bound, errors, proved, predicted)
        bound = _tightened(model, network, constants, x, *given, batch_size)
    return RobustnessBound(
        bound=_rounded_down(bound),
        predicted=predicted,
        margin=least.astype(np.float32),
        untightened=_rounded_down(untightened),
        layers=kappas,
        rounding=_without_own(doubt, predicted).max(axis=1).astype(np.float32),
        proved_in_float32=proved,
        rules="certified",
        tightened=bool(tighten),
    )


def _network(model: keras.Model, x: np.ndarray) -> Network:
    """The network's operations; ValueError where it does not compute in single precision."""
    if (
        tf.config.list_logical_devices("GPU")
        and tf.config.experimental.tensor_float_32_execution_enabled()
    ):
        raise InputError(
            "TensorFloat-32 is on: products on this GPU have 10 bits, and certified bounds account "
            "for single precision only. Call "
            "tf.config.experimental.enable_tensor_float_32_execution(False) first."
        )
    steps = walk(model, x)
    for step in steps:
        if getattr(step.layer, "quantization_mode", None):
            raise UnsupportedLayerError(
                f"layer {step.name!r} is quantized ({step.layer.quantization_mode}): it rounds "
                "what it is given, and no Lipschitz constant holds"
            )
        dtype = getattr(step.layer, "compute_dtype", "float32")
        if dtype != "float32":
            raise UnsupportedLayerError(
                f"layer {step.name!r} computes in {dtype}: certified bounds account for single "
                "precision only. Build the model under the policy float32, with the same weights."
            )
    # the compiled functions hold it; building again costs a walk only
    return Network(steps)


def _evaluate(network: Network) -> Callable[[keras.Model], Callable[..., Any]]:
    def build(logits: keras.Model) -> Callable[..., Any]:
        def run(x: tf.Tensor, radius: tf.Tensor, reach: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            values = forward(network, x)
            changes = [
                norms.per_example(radius * reach[at], value)
                for at, value in enumerate([*values, x])
            ]
            return values[-1], rounding(network, x, values, changes)

        return run

    return build


def _differences(logits: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    own = np.take_along_axis(logits, predicted[:, None], 1)
    return own.astype(np.float64) - logits


def _own_and_other(errors: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Of the logits -> of the margins to every class."""
    return np.take_along_axis(errors, predicted[:, None], 1) + errors


def _without_own(values: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """(batch, classes) -> (batch, classes - 1)."""
    keep = np.arange(values.shape[1])[None] != predicted[:, None]
    return values[keep].reshape(len(values), -1)


def _global(
    margins: np.ndarray,
    doubt: np.ndarray,
    predicted: np.ndarray,
    constants: Constants,
    network: Network,
) -> np.ndarray:
    slopes = constants.pairs[predicted] * constants.reach[network.tail] * (1 + 1e-6)
    left = np.maximum(margins - doubt, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        radii = np.where(slopes > 0, left / slopes, np.where(left > 0, np.inf, 0.0))
    return _without_own(radii, predicted).min(axis=1)


def _times(radius: np.ndarray, reach: float) -> np.ndarray:
    # nothing can change the class behind a layer that passes nothing on
    return np.where(np.isinf(radius), np.inf, radius * reach).astype(np.float32)


def _flat_enough(
    at: Callable[..., Any],
    x: np.ndarray,
    margins: np.ndarray,
    errors: np.ndarray,
    predicted: np.ndarray,
) -> np.ndarray:
    """How far off (batch,) margins that never change still exceed the rounding errors there.

    Infinite where these do not change either.
    """
    found = np.zeros(len(x))
    least = _without_own(margins, predicted).min(axis=1)
    for power in range(-6, 16):
        _, there = at(x, np.full(len(x), 10.0**power), None)
        doubt = _without_own(_own_and_other(errors + there, predicted), predicted).max(axis=1)
        found = np.where(doubt <= TOLERATED * least, 10.0**power, found)
    return np.where((there == errors).all(axis=1), np.inf, found)


def _estimated(at: Callable[..., Any], x: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """What rounding does to the logits (batch,), seen by moving inputs by a rounding error.

    At x, and somewhere at the given distance from it.
    """
    rng = np.random.default_rng(0)
    largest, nothing = np.zeros(len(x)), np.zeros(len(x))
    away = rng.normal(size=x.shape)
    away /= np.linalg.norm(away.reshape(len(x), -1), axis=1).reshape(-1, *[1] * (x.ndim - 1))
    distance = np.where(np.isfinite(radius), radius, 0).reshape(-1, *[1] * (x.ndim - 1))
    for place in (x, (x + distance * away).astype(np.float32)):
        logits, _ = at(place, nothing, None)
        size = np.maximum(np.abs(place), np.abs(place).max() / 8 or 1)
        for _ in range(2):
            moved = place + np.float32(2.0**-23) * size * rng.choice(np.float32([-1, 1]), x.shape)
            other, _ = at(moved, nothing, None)
            largest = np.maximum(largest, np.abs(other - logits).max(axis=1))
        largest = np.maximum(largest, 2.0**-24 * np.abs(logits).max(axis=1))
    return 4 * largest


def _tightened(
    model: keras.Model,
    network: Network,
    constants: Constants,
    x: np.ndarray,
    radius: np.ndarray,
    errors: np.ndarray,
    proved: np.ndarray,
    predicted: np.ndarray,
    batch_size: int,
) -> np.ndarray:
    classes = errors.shape[1]
    key = ("bounds", "ball", registry.changes())
    run = compiled(model, key, largest_ball(network), x, rowwise=5)
    steps = tf.constant(_rounded_up(constants.steps))
    shortcuts = tf.constant(_rounded_up(constants.shortcuts))
    widest = max(int(np.prod(step.output_shape)) for step in network.steps)
    rows = int(max(1, min(batch_size, WORKING_SET / (widest * 8 * min(MARGINS, classes - 1)))))
    start = np.where(np.isfinite(radius), radius, 0).astype(np.float32)
    best = np.full(len(x), np.inf, np.float32)
    for first in range(0, classes - 1, MARGINS):
        found = in_batches(
            lambda *each, first=first: run(*each, steps, shortcuts, tf.constant(first)),
            x,
            start,
            errors.astype(np.float32),
            proved,
            predicted,
            batch_size=rows,
            description="tightening",
        )
        best = np.minimum(best, found)
    return np.where(np.isinf(radius), radius, np.maximum(best, start))


def _rounded_down(values: np.ndarray) -> np.ndarray:
    return np.where(np.isinf(values), values, np.nextafter(values, np.float32(0)))


def _rounded_up(values: np.ndarray) -> np.ndarray:
    return np.nextafter(values.astype(np.float32), np.float32(np.inf))
