"""The thesis's rules on a Keras classifier: kappa from the logits back to the input.

The formulas are in `printed`; here is what each layer gives them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust.bounds.graph import Step, UnsupportedLayerError, is_plain, walk
from tfrobust.bounds.operator_norms import batch_normalisation_scale, check_channels_last
from tfrobust.bounds.printed import formulas as printed
from tfrobust.bounds.registry import built_in_rule, changes, find_rule, registered, unsupported
from tfrobust.bounds.result import LayerKappa, RobustnessBound
from tfrobust.classifier import compiled, in_batches
from tfrobust.errors import InputError
from tfrobust.layers import FrozenBatchNormalization, LocalResponseNormalization, LpPooling2D

__all__ = ["thesis"]

layers = keras.layers
_MAXIMA = (
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
)
_AVERAGES = (
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
)
_FUNCTIONS = {
    keras.activations.linear: "linear",
    keras.activations.sigmoid: "sigmoid",
    keras.activations.tanh: "tanh",
    keras.activations.relu: "relu",
}


def thesis(model: keras.Model, x: np.ndarray, batch_size: int) -> RobustnessBound:
    """See `tfrobust.bounds.robustness`."""
    steps = walk(model, x)
    for number, step in enumerate(steps):
        if step.inputs != (number - 1,):
            raise UnsupportedLayerError(
                f"layer {step.name!r} ({step.kind}) is not one of a chain: the thesis has rules "
                'for chains only; rules="certified" covers branches'
            )
    stages = _stages(steps)

    def build(logits: keras.Model) -> Callable[..., Any]:
        def run(rows: tf.Tensor) -> list[tf.Tensor]:
            values = [rows]
            for step in steps:
                values.append(step.function(values[-1]))
            return values

        return run

    evaluate = compiled(model, ("bounds", "thesis", changes()), build, x)

    def kappas(rows: tf.Tensor) -> tuple[np.ndarray, np.ndarray]:
        values = [np.asarray(value, np.float64) for value in evaluate(rows)]
        if not np.isfinite(values[-1]).all():
            raise InputError("the logits of an example are not finite: no bound can be given")
        found = [np.empty(0)] * len(steps)
        kappa = np.empty(0)
        for stage in reversed(stages):
            kappa = stage.rule(kappa, values)
            for at in range(stage.first, stage.last + 1):
                found[at] = kappa
        return np.stack(found, axis=1), values[-1]

    found, logits = in_batches(kappas, x, batch_size=batch_size, description="printed bounds")
    ordered = np.sort(logits, axis=1)
    count, bound = len(x), found[:, 0].astype(np.float32)
    rules = {at: stage.words for stage in stages for at in range(stage.first, stage.last + 1)}
    return RobustnessBound(
        bound=bound,
        predicted=logits.argmax(axis=1).astype(np.int32),
        margin=(ordered[:, -1] - ordered[:, -2]).astype(np.float32),
        untightened=bound,
        layers=tuple(
            LayerKappa(step.name, step.kind, rules[at], found[:, at].astype(np.float32))
            for at, step in enumerate(steps)
        ),
        rounding=np.zeros(count, np.float32),
        proved_in_float32=np.zeros(count, bool),
        rules="thesis",
        tightened=False,
    )


class _Stage:
    """Steps that one rule covers: `rule(kappa, values)`, values[i] being the input of step i."""

    def __init__(self, first: int, last: int, words: str, rule: Callable[..., np.ndarray]):
        self.first, self.last, self.words, self.rule = first, last, words, rule


def _stages(steps: Sequence[Step]) -> list[_Stage]:
    """The rules of a chain, from the input to the logits."""
    stages: list[_Stage] = []
    at = len(steps) - 1
    if is_plain(steps[at].layer, layers.Dense) and not registered(steps[at], "thesis"):
        stages.append(_last_stage(at, steps[at].layer))
        at -= 1
    else:  # softmax of the last layer's outputs themselves
        classes = steps[at].output_shape[-1]

        def of_logits(_: np.ndarray, values: list[np.ndarray]) -> np.ndarray:
            return printed.last_layer(values[-1], np.eye(classes), np.zeros(classes))

        stages.append(_Stage(len(steps), len(steps) - 1, "Theorem 3.6", of_logits))
    while at >= 0:
        stage = _stage(steps, at)
        stages.append(stage)
        at = stage.first - 1
    return stages[::-1]


def _last_stage(at: int, layer: Any) -> _Stage:
    def rule(_: np.ndarray, values: list[np.ndarray]) -> np.ndarray:
        kernel = np.asarray(layer.kernel, np.float64)
        bias = np.zeros(kernel.shape[1]) if layer.bias is None else np.asarray(layer.bias)
        return printed.last_layer(values[at], kernel, bias)

    return _Stage(at, at, "Theorem 3.6", rule)


def _hidden_layers(steps: Sequence[Step], last: int) -> int:
    """The first step of the dense layers, activations and dropouts that end in `last`.

    More than `last` where that is none of them.
    """
    first, at = last + 1, last
    while at >= 0 and not registered(steps[at], "thesis"):
        if is_plain(steps[at].layer, layers.Dense):
            first = at
        elif not _name(steps[at]) and not is_plain(steps[at].layer, layers.Dropout):
            break
        at -= 1
    return first


def _name(step: Step) -> str | None:
    """The activation's name in Table 4.1, or None where the step is none of them."""
    layer = step.layer
    if is_plain(layer, layers.Activation):
        layer = layer.activation
    if is_plain(layer, layers.ReLU):
        plain = not layer.negative_slope and layer.max_value is None and not layer.threshold
        return "relu" if plain else None
    return next((name for known, name in _FUNCTIONS.items() if known is layer), None)


def _perceptron_stage(steps: Sequence[Step], first: int, last: int) -> _Stage:
    kernels, names, places = [], [], []
    for at in range(first, last + 1):
        if isinstance(steps[at].layer, layers.Dense):
            kernels.append(steps[at].layer)
            names.append("linear")
            places.append(at)
        elif _name(steps[at]) not in (None, "linear"):
            if names[-1] != "linear":
                raise UnsupportedLayerError(
                    f"two activations in a row at layer {steps[at].name!r}: Theorem 4.2 has one a "
                    "layer"
                )
            names[-1] = _name(steps[at])

    def rule(kappa: np.ndarray, values: list[np.ndarray]) -> np.ndarray:
        weights = [np.asarray(layer.kernel, np.float64) for layer in kernels]
        slopes = [_slope(name, values[at + 1]) for name, at in zip(names, places, strict=True)]
        jacobian = _jacobian_norms(weights, slopes)
        return printed.perceptron(
            kappa, jacobian, printed.hessian_bound(weights, names), weights[-1].shape[1]
        )

    return _Stage(first, last, "Theorem 4.2, Algorithm 4.1", rule)


def _slope(name: str, pre: np.ndarray) -> np.ndarray:
    """An activation's derivative at its input."""
    if name == "relu":
        return (pre > 0).astype(np.float64)
    if name == "tanh":
        return 1 - np.tanh(pre) ** 2
    if name == "sigmoid":
        value = 1 / (1 + np.exp(-pre))
        return value * (1 - value)
    return np.ones_like(pre)


def _jacobian_norms(weights: list[np.ndarray], slopes: list[np.ndarray]) -> np.ndarray:
    """Spectral norm of each example's Jacobian of dense layers, to about 1e-7: (batch,).

    By the power method on all examples at once, without writing Jacobians out; it goes on until
    no norm moves.
    """
    count = len(slopes[0])
    vectors = np.random.default_rng(0).random((count, weights[0].shape[0])) + 0.5
    norms = np.zeros(count)
    for _ in range(1000):
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-300)
        forward = vectors
        for kernel, slope in zip(weights, slopes, strict=True):
            forward = (forward @ kernel) * slope
        before, norms = norms, np.linalg.norm(forward, axis=1)
        if np.all(np.abs(norms - before) <= 1e-9 * norms):
            break
        vectors = forward
        for kernel, slope in zip(weights[::-1], slopes[::-1], strict=True):
            vectors = (vectors * slope) @ kernel.T
    return norms


def _stage(steps: Sequence[Step], at: int) -> _Stage:
    """The rule that covers a step, and perhaps some before it."""
    step = steps[at]
    rule = find_rule(step, "thesis")
    if registered(step, "thesis"):
        return _registered_stage(at, step, rule)
    first = _hidden_layers(steps, at)
    if first <= at:
        return _perceptron_stage(steps, first, at)
    if rule is not None:
        return rule(step, at)
    if _name(step):
        return _Stage(at, at, "Theorem 5.1 (activation)", lambda kappa, _: kappa)
    raise unsupported(step, "thesis")


def _registered_stage(at: int, step: Step, own: Callable[..., Any]) -> _Stage:
    def rule(kappa: np.ndarray, _: list[np.ndarray]) -> np.ndarray:
        found = np.asarray(own(step.layer, step.input_shape, kappa))
        if found.shape != kappa.shape or found.dtype.kind not in "fi" or not (found >= 0).all():
            raise InputError(
                f"the thesis rule of layer {step.name!r} ({step.kind}) must return numbers of "
                f"shape {kappa.shape}, not negative, got {found!r:.200}"
            )
        return found.astype(np.float64)

    return _Stage(at, at, f"registered for {step.kind}", rule)


def _rule_of(*types: type) -> Callable[[Callable[..., _Stage]], Callable[..., _Stage]]:
    """Makes a function of (step, its number) the thesis's rule of layer types."""

    def register(function: Callable[..., _Stage]) -> Callable[..., _Stage]:
        for each in types:
            built_in_rule(each, rules="thesis")(function)
        return function

    return register


@_rule_of(layers.Flatten, layers.Reshape, layers.Dropout, layers.Identity)
def _unchanged(step: Step, at: int) -> _Stage:
    return _Stage(at, at, "unchanged", lambda kappa, _: kappa)


@_rule_of(layers.Conv1D, layers.Conv2D)
def _convolution(step: Step, at: int) -> _Stage:
    return _Stage(
        at,
        at,
        "Theorem 5.1",
        lambda kappa, _: printed.convolution(kappa, np.asarray(step.layer.kernel, np.float64)),
    )


@_rule_of(*_MAXIMA, *_AVERAGES, LpPooling2D)
def _pooling(step: Step, at: int) -> _Stage:
    layer = step.layer
    check_channels_last(layer)
    whole = not hasattr(layer, "pool_size")  # global pooling
    window = math.prod(step.input_shape[:-1] if whole else layer.pool_size) ** 0.5
    outputs = 1.0 if whole else math.prod(step.output_shape[:-1]) ** 0.5
    if isinstance(layer, _MAXIMA):
        kind: float | str = "max"
    else:
        kind = "average" if isinstance(layer, _AVERAGES) else float(layer.p)
    return _Stage(
        at,
        at,
        "Theorem 5.3, eq. (5.4)",
        lambda kappa, _: printed.pooling(kappa, outputs, window, kind),
    )


@_rule_of(layers.BatchNormalization, FrozenBatchNormalization)
def _batch_normalisation(step: Step, at: int) -> _Stage:
    def rule(kappa: np.ndarray, values: list[np.ndarray]) -> np.ndarray:
        scale = batch_normalisation_scale(step.layer)
        return printed.batch_normalisation(kappa, values[at + 1], scale)

    return _Stage(at, at, "Theorem 5.6", rule)


@_rule_of(LocalResponseNormalization)
def _response_normalisation(step: Step, at: int) -> _Stage:
    layer = step.layer
    return _Stage(
        at,
        at,
        "Theorem 5.9, Lemma 5.11",
        lambda kappa, values: printed.response_normalisation(
            kappa, values[at], values[at + 1], layer.bias, layer.beta
        ),
    )
