"""Half precision: the dtype policy of layers, and the loss scale that float16 needs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal, get_args

import keras
import tensorflow as tf

from tfrobust.classifier import all_layers
from tfrobust.errors import InputError

__all__ = ["LossScale", "Precision", "computing_in", "needs_loss_scale"]

Precision = Literal["float32", "mixed_bfloat16", "mixed_float16"]
# the smallest loss scale: below it gradients are not finite at any scale
SMALLEST = 2.0**-10


@contextlib.contextmanager
def computing_in(precision: Precision) -> Iterator[None]:
    """Layers created in the block compute in this precision; weights are float32.

    Args:
        precision: "float32", "mixed_bfloat16" or "mixed_float16".

    Raises:
        ValueError: unknown precision.
    """
    if precision not in get_args(Precision):
        known = ", ".join(get_args(Precision))
        raise InputError(f"unknown precision {precision!r}; there are {known}")
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(previous)


def needs_loss_scale(model: keras.Model) -> bool:
    """Whether some layer computes in float16, whose small gradients underflow."""
    return any(layer.compute_dtype == "float16" for layer in all_layers(model))


class LossScale:
    """A dynamic loss scale: halved when a gradient overflows, doubled after `patience` good steps.

    Source: Micikevicius et al., Mixed Precision Training, 2018. Keras's LossScaleOptimizer checks
    for overflow on each device separately, before gradients are summed; here all devices skip a
    step if one overflows.

    Args:
        initial: the first scale.
        patience: finite steps after which it doubles.
    """

    def __init__(self, initial: float = 2.0**15, patience: int = 2000):
        self.value, self.good_steps, self.patience = initial, 0, patience

    def state(self) -> dict[str, float]:
        """Plain data for a checkpoint."""
        return {"value": self.value, "good_steps": self.good_steps}

    def restore(self, state: dict[str, float]) -> None:
        """Resume from what `state()` returned."""
        self.value, self.good_steps = float(state["value"]), int(state["good_steps"])

    def after(
        self, scale: tf.Tensor, good_steps: tf.Tensor, finite: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """In a graph: scale () float32 and finite steps () int32 after one more step."""
        good_steps = tf.where(finite, good_steps + 1, 0)
        grown = good_steps >= self.patience
        scale = tf.where(finite, tf.where(grown, scale * 2, scale), scale / 2)
        return scale, tf.where(grown, 0, good_steps)
