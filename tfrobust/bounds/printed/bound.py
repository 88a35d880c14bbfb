"""The thesis's rules on a Keras classifier: kappa from the logits back to the input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust.bounds.graph import Step, UnsupportedLayerError, graph_steps, is_plain
from tfrobust.bounds.printed import formulas
from tfrobust.bounds.printed.rules import stage_of
from tfrobust.bounds.printed.stage import Stage
from tfrobust.bounds.registry import is_user_rule, registrations
from tfrobust.bounds.result import LayerKappa, RobustnessBound
from tfrobust.classifier import Classifier, in_batches
from tfrobust.errors import InputError

__all__ = ["thesis"]

layers = keras.layers
# without a rule of the thesis
LOGITS = "no rule printed: Theorem 3.6 on the logits themselves"


def thesis(model: keras.Model, x: np.ndarray, *, batch_size: int) -> RobustnessBound:
    """See `tfrobust.bounds.robustness`."""
    steps = graph_steps(model, x)
    for index, step in enumerate(steps):
        if step.inputs != (index - 1,):
            raise UnsupportedLayerError(
                f"layer {step.name!r} ({step.kind}) is not part of a chain: the thesis has rules "
                'for chains only; use rules="certified", which covers branches'
            )
    stages = _stages(steps)

    evaluate = Classifier.of(model, x).compiled(_values_of_steps, registrations())

    def kappas(rows: tf.Tensor) -> tuple[np.ndarray, np.ndarray]:
        values = [np.asarray(value, np.float64) for value in evaluate(rows)]
        if not np.isfinite(values[-1]).all():
            raise InputError("the logits of an example are not finite: no bound can be given")
        by_step = [np.empty(0)] * len(steps)
        kappa = np.empty(0)
        for stage in reversed(stages):
            kappa = stage.rule(kappa, values)
            for index in range(stage.first, stage.last + 1):
                by_step[index] = kappa
        return np.stack(by_step, axis=1), values[-1]

    kappa, logits = in_batches(kappas, x, batch_size=batch_size, description="printed bounds")
    ordered = np.sort(logits, axis=1)
    count, bound = len(x), kappa[:, 0].astype(np.float32)
    rules = {
        index: stage.description for stage in stages for index in range(stage.first, stage.last + 1)
    }
    return RobustnessBound(
        bound=bound,
        predicted=logits.argmax(axis=1).astype(np.int32),
        margin=(ordered[:, -1] - ordered[:, -2]).astype(np.float32),
        untightened=bound,
        layers=tuple(
            LayerKappa(step.name, step.kind, rules[index], kappa[:, index].astype(np.float32))
            for index, step in enumerate(steps)
        ),
        rounding=np.zeros(count, np.float32),
        proved_in_float32=np.zeros(count, bool),
        rules="thesis",
        tightened=False,
    )


def _values_of_steps(logits: keras.Model, _: int) -> Callable[..., list[tf.Tensor]]:
    """Build: the input and the output of each step. Rebuilt after a rule has been registered."""
    steps = graph_steps(logits)

    def run(rows: tf.Tensor) -> list[tf.Tensor]:
        values = [rows]
        for step in steps:
            values.append(step.function(values[-1]))
        return values

    return run


def _stages(steps: Sequence[Step]) -> list[Stage]:
    """The rules of a chain, from the input to the logits."""
    stages: list[Stage] = []
    index = len(steps) - 1
    if is_plain(steps[index].layer, layers.Dense) and not is_user_rule(steps[index], "thesis"):
        stages.append(_last_stage(index, steps[index].layer))
        index -= 1
    else:  # the thesis's networks end in a dense layer: Theorem 3.6 with identity weights
        classes = steps[index].output_shape[-1]

        def logit_distance(_: np.ndarray, values: list[np.ndarray]) -> np.ndarray:
            return formulas.last_layer(values[-1], np.eye(classes), np.zeros(classes))

        stages.append(Stage(len(steps), len(steps) - 1, LOGITS, logit_distance))
    while index >= 0:
        stage = stage_of(steps, index)
        stages.append(stage)
        index = stage.first - 1
    return stages[::-1]


def _last_stage(index: int, layer: Any) -> Stage:
    def rule(_: np.ndarray, values: list[np.ndarray]) -> np.ndarray:
        kernel = np.asarray(layer.kernel, np.float64)
        bias = np.zeros(kernel.shape[1]) if layer.bias is None else np.asarray(layer.bias)
        return formulas.last_layer(values[index], kernel, bias)

    return Stage(index, index, "Theorem 3.6", rule)
