"""How much larger a change can become from layer to layer: by the rules, and measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from experiments.peck2017.comparison import AS_PRINTED, FGS, printed_bound
from tfrobust import attacks, bounds, evaluate
from tfrobust.bounds import Step, graph_steps
from tfrobust.norms import norm, unit

__all__ = ["increases", "kappas", "measured", "scaling"]

# of the measured increase: examples that it starts from, iterations at most
STARTS, ITERATIONS = 4, 100


def scaling(
    model: keras.Model, x: np.ndarray, labels: np.ndarray, scale: float, max_epsilon: float
) -> pd.DataFrame:
    """One row per number n of scaled kernels, 0 to all convolutions; the model stays as it was.

    Columns: kernels, scale; ratio, by how much kappa of the input over kappa behind the
    convolutions and pools has grown, by the printed rules on the scaled network (medians); bound,
    the whole network's median; FGS, the median norm; accuracy.
    """
    convolutions = [each for each in model.layers if isinstance(each, keras.layers.Conv2D)]
    kernels = [layer.kernel.numpy() for layer in convolutions]
    rows = []
    try:
        for count in range(len(convolutions) + 1):
            if count:
                convolutions[count - 1].kernel.assign(scale * kernels[count - 1])
            printed = printed_bound(model, x)
            behind = next(k for k in printed.layers if k.kind in ("Flatten", "Dense"))
            attack = attacks.minimal(model, x, FGS, max_epsilon=max_epsilon, **AS_PRINTED)
            rows.append(
                {
                    "kernels": count,
                    "scale": scale,
                    "ratio": float(np.median(printed.layers[0].kappa / behind.kappa)),
                    "bound": printed.median(),
                    "FGS": attack.median(),
                    "accuracy": evaluate(model, x, labels)["accuracy"],
                }
            )
    finally:
        for layer, kernel in zip(convolutions, kernels, strict=True):
            layer.kernel.assign(kernel)
    frame = pd.DataFrame(rows)
    frame["ratio"] /= frame["ratio"][0]
    return frame


def kappas(model: keras.Model, x: np.ndarray) -> pd.DataFrame:
    """kappa of each convolution and pool by the printed rules, from the input on: one row each.

    Columns: layer, kind, kappa (the mean over examples), and inverse, the mean of 1 / kappa.
    """
    rows = [
        {
            "layer": layer.name,
            "kind": layer.kind,
            "kappa": float(layer.kappa.mean(dtype=np.float64)),
            "inverse": float((1 / layer.kappa.astype(np.float64)).mean()),
        }
        for layer in printed_bound(model, x).layers
        if layer.kind in ("Conv2D", "MaxPooling2D")
    ]
    return pd.DataFrame(rows)


def _ratio(layers: Sequence[bounds.LayerKappa], behind: int, before: int) -> float:
    """Median of kappa at one layer over kappa at the next, from the back: before / behind."""
    return float(np.median(layers[before].kappa / layers[behind].kappa))


def increases(model: keras.Model, x: np.ndarray) -> pd.DataFrame:
    """One row per layer that changes kappa: kappa behind over kappa before it, and measured."""
    printed, certified = printed_bound(model, x), bounds.robustness(model, x, tighten=False)
    steps = graph_steps(model, x[:1])
    largest = measured(steps, x)
    rows = []
    for at, (first, step) in enumerate(zip(printed.layers[:-1], steps, strict=False)):
        row = {
            "layer": first.name if first.kind != "relu" else f"{first.name} relu",
            "rule": first.rule,
            "printed": 1 / _ratio(printed.layers, at + 1, at),
            "certified": 1 / _ratio(certified.layers, at + 1, at),
            # of the layer alone: kappas count linear layers in a row as one
            "proven": proven_norm(step),
            "measured": largest[at],
        }
        row["linear"] = not np.isnan(row["proven"])
        if not row["linear"]:
            row["proven"] = row["certified"]
        # the printed rule is this layer's alone, so that it can be held against what is measured
        row["alone"] = isinstance(step.layer, keras.layers.Conv2D | keras.layers.MaxPooling2D)
        if row["printed"] != 1 or row["certified"] != 1:
            rows.append(row)
    return pd.DataFrame(rows)


def proven_norm(step: Step) -> float:
    """The proven norm of a linear layer, NaN for what is none."""
    if not isinstance(step.layer, keras.layers.Layer):
        return float("nan")
    try:
        return bounds.operator_norm_upper_bound(step.layer, step.input_shape)
    except bounds.UnsupportedLayerError:
        return float("nan")


def measured(steps: Sequence[Step], x: np.ndarray, only: int | None = None) -> list[float]:
    """The largest ||step(h + d) - step(h)|| / ||d|| found for each step, or for one.

    h are the step's inputs for the first few examples, d is the direction in which power iteration
    on the step's derivative ends. Every figure is one that was seen, so that no Lipschitz constant
    may be smaller, but for single precision.

    Args:
        steps: of a chain.
        x: (batch, *input).
        only: the index of one step.
    """
    result, values = [], tf.constant(x[:STARTS])
    for at, step in enumerate(steps):
        if only in (None, at):
            result.append(_largest_increase(step.function, values))
        if at == only:
            break
        values = step.function(values)
    return result


def _largest_increase(function: Callable[[tf.Tensor], tf.Tensor], h: tf.Tensor) -> float:
    rng = np.random.default_rng(0)
    vectors = unit(tf.constant(rng.normal(size=h.shape), h.dtype))
    before = 0.0

    @tf.function
    def power_step(vectors: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """J'J v of each example, and the norms of J v."""
        with tf.autodiff.ForwardAccumulator(h, vectors) as forward, tf.GradientTape() as tape:
            tape.watch(h)
            values = function(h)
        tangents = forward.jvp(values)
        return tape.gradient(values, h, tangents), norm(tangents)

    for _ in range(ITERATIONS):
        following, lengths = power_step(vectors)
        longest = float(tf.reduce_max(lengths))
        if longest <= before * (1 + 1e-5):
            break
        before, vectors = longest, unit(following)
    # as far as a hundredth of the input, where rounding is small beside the change
    step = 1e-2 * tf.maximum(norm(h), 1e-6)
    changed = h + vectors * tf.reshape(step, (-1,) + (1,) * (len(h.shape) - 1))
    ratios = norm(function(changed) - function(h)) / tf.maximum(norm(changed - h), 1e-30)
    return float(tf.reduce_max(ratios))
