"""The thesis's rules by layer type: the arguments that each layer passes to the formulas."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from tfrobust.bounds.graph import Step, UnsupportedLayerError
from tfrobust.bounds.operator_norms import batch_normalization_scale, check_channels_last
from tfrobust.bounds.printed import formulas
from tfrobust.bounds.printed.mlp import activation_name, hidden_layers, mlp_stage
from tfrobust.bounds.printed.stage import Stage
from tfrobust.bounds.registry import built_in_rule, find_rule, is_user_rule, unsupported
from tfrobust.errors import InputError
from tfrobust.layers import FrozenBatchNormalization, LocalResponseNormalization, LpPooling2D

__all__ = ["stage_of"]

# without a rule of the thesis
ACTIVATION = "no rule printed: activation that increases no norm"
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


def stage_of(steps: Sequence[Step], index: int) -> Stage:
    """The rule that covers a step, possibly with steps before it."""
    step = steps[index]
    rule = find_rule(step, "thesis")
    if is_user_rule(step, "thesis"):
        return _user_stage(index, step, rule)
    first = hidden_layers(steps, index)
    if first <= index:
        return mlp_stage(steps, first, index)
    if rule is not None:
        return rule(step, index)
    if activation_name(step):
        # Theorem 5.1 covers ReLU behind its convolution; the others increase no norm either
        rule = "Theorem 5.1 (ReLU)" if activation_name(step) == "relu" else ACTIVATION
        return Stage(index, index, rule, lambda kappa, _: kappa)
    raise unsupported(step, "thesis")


def _user_stage(index: int, step: Step, user_rule: Callable[..., Any]) -> Stage:
    def rule(kappa: np.ndarray, _: list[np.ndarray]) -> np.ndarray:
        result = np.asarray(user_rule(step.layer, step.input_shape, kappa))
        if result.shape != kappa.shape or result.dtype.kind not in "fi" or not (result >= 0).all():
            raise InputError(
                f"the thesis rule of layer {step.name!r} ({step.kind}) must return numbers of "
                f"shape {kappa.shape}, not negative, got {result!r:.200}"
            )
        return result.astype(np.float64)

    return Stage(index, index, f"registered for {step.kind}", rule)


def _rule_of(*types: type) -> Callable[[Callable[..., Stage]], Callable[..., Stage]]:
    """Decorator: register a function of (step, its index) as the thesis's rule of layer types."""

    def register(function: Callable[..., Stage]) -> Callable[..., Stage]:
        for layer_type in types:
            built_in_rule(layer_type, rules="thesis")(function)
        return function

    return register


@_rule_of(layers.Flatten, layers.Reshape, layers.Dropout, layers.Identity)
def _unchanged(step: Step, index: int) -> Stage:
    return Stage(index, index, "unchanged", lambda kappa, _: kappa)


@_rule_of(layers.Conv1D, layers.Conv2D)
def _convolution(step: Step, index: int) -> Stage:
    return Stage(
        index,
        index,
        "Theorem 5.1",
        lambda kappa, _: formulas.convolution(kappa, np.asarray(step.layer.kernel, np.float64)),
    )


@_rule_of(*_MAXIMA, *_AVERAGES, LpPooling2D)
def _pooling(step: Step, index: int) -> Stage:
    layer = step.layer
    check_channels_last(layer)
    is_global = not hasattr(layer, "pool_size")
    window = math.prod(step.input_shape[:-1] if is_global else layer.pool_size) ** 0.5
    outputs = 1.0 if is_global else math.prod(step.output_shape[:-1]) ** 0.5
    if isinstance(layer, _MAXIMA):
        kind: float | str = "max"
    else:
        kind = "average" if isinstance(layer, _AVERAGES) else float(layer.p)
    return Stage(
        index,
        index,
        "Theorem 5.3",
        lambda kappa, _: formulas.pooling(kappa, outputs, window, kind),
    )


@_rule_of(layers.BatchNormalization, FrozenBatchNormalization)
def _batch_normalization(step: Step, index: int) -> Stage:
    def rule(kappa: np.ndarray, values: list[np.ndarray]) -> np.ndarray:
        scale = batch_normalization_scale(step.layer)
        return formulas.batch_normalization(kappa, values[index + 1], scale)

    return Stage(index, index, "Theorem 5.6", rule)


@_rule_of(LocalResponseNormalization)
def _response_normalization(step: Step, index: int) -> Stage:
    layer = step.layer
    settings = {name: getattr(layer, name) for name in ("depth_radius", "bias", "alpha", "beta")}
    if not (layer.alpha > 0 and 0 < layer.beta < 1 and layer.bias > 0):
        raise UnsupportedLayerError(
            f"layer {step.name!r} ({step.kind}): Theorem 5.9 is for alpha > 0, 0 < beta < 1 and "
            f"bias > 0 (Assumption 5.10), got {settings}"
        )
    return Stage(
        index,
        index,
        "Theorem 5.9, Lemma 5.11",
        lambda kappa, values: formulas.response_normalization(kappa, values[index], **settings),
    )
