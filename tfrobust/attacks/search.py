"""In a graph: projected gradient ascent inside a ball and a value range, one compiled loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import keras
import tensorflow as tf

from tfrobust.attacks.direction import (
    all_finite,
    label_lead,
    loss_cotangent,
    rounding_of,
    unit_direction,
)
from tfrobust.attacks.threat_model import ThreatModel
from tfrobust.classifier import gradients_at, layers_behind, softmax
from tfrobust.distribution import place_in_batch
from tfrobust.norms import clip_to_range, norm, per_example, project_ball

__all__ = [
    "Stop",
    "build_search",
    "draws_of_batch",
    "draws_per_example",
    "search",
    "start_at",
]

Stop = Literal["success", "last"]
# rounding of logits relative to the largest, by the precision in which layers compute
_ROUNDING = {"float16": 2.0**-8, "bfloat16": 2.0**-6}
# step length relative to epsilon / steps (Madry et al. 2018)
_REACH = 2.5


def build_search(
    logits: keras.Model, threat: ThreatModel, stop: Stop, targeted: bool, record_loss: bool
) -> Callable[..., Any]:
    """Build: a search from images, classes, radii and seeds, one row per example each."""

    def run(x: tf.Tensor, y: tf.Tensor, epsilon: tf.Tensor, seeds: tf.Tensor) -> Any:
        start = start_at(threat, x, epsilon, *draws_per_example(threat, x, seeds))
        return search(
            logits,
            threat,
            x,
            y,
            epsilon,
            start,
            stop=stop,
            targeted=targeted,
            record_loss=record_loss,
        )

    return run


def draws_per_example(
    threat: ThreatModel, x: tf.Tensor, seeds: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Random numbers for `start_at` that depend on each example's seed only.

    Args:
        threat: its random start.
        x: (batch, *input).
        seeds: (batch, 2) int32.

    Returns:
        (batch, *input), and (batch,) uniform in [0, 1).
    """
    if threat.random_start is None:
        return tf.zeros_like(x), tf.zeros(tf.shape(x)[:1], x.dtype)
    shape = tf.shape(x)[1:]
    draw = tf.random.stateless_normal if _is_l2_ball(threat) else tf.random.stateless_uniform

    def of_one(seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        second = tf.stack([seed[0], seed[1] + 1])
        return draw(shape, seed, dtype=x.dtype), tf.random.stateless_uniform([], second)

    signature = tf.TensorSpec(x.shape[1:], x.dtype), tf.TensorSpec([], tf.float32)
    return tf.map_fn(of_one, seeds, fn_output_signature=signature)


def draws_of_batch(
    threat: ThreatModel, x: tf.Tensor, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Random numbers for `start_at`, those of this device's part of a global batch.

    They do not depend on the number of devices.

    Args:
        threat: its random start.
        x: (batch, *input), this device's part.
        seed: (2,) int32, equal on all devices.

    Returns:
        (batch, *input), and (batch,) uniform in [0, 1).
    """
    if threat.random_start is None:
        return tf.zeros_like(x), tf.zeros(tf.shape(x)[:1], x.dtype)
    rows, shape = tf.shape(x)[0], tf.shape(x)[1:]
    first, count = place_in_batch(rows)
    draw = tf.random.stateless_normal if _is_l2_ball(threat) else tf.random.stateless_uniform
    field = draw(tf.concat([[count], shape], 0), seed, dtype=x.dtype)
    other_seed = tf.stack([seed[0] + (1 << 30), seed[1]])
    fraction = tf.random.stateless_uniform([count], other_seed, dtype=x.dtype)
    field, fraction = field[first : first + rows], fraction[first : first + rows]
    return tf.ensure_shape(field, x.shape), fraction


def start_at(
    threat: ThreatModel, x: tf.Tensor, epsilon: tf.Tensor, field: tf.Tensor, fraction: tf.Tensor
) -> tf.Tensor:
    """The first perturbation, (batch, *input), inside ball and value range.

    Args:
        threat: its random start, norm and value range.
        x: (batch, *input), inside the value range.
        epsilon: (batch,) radii.
        field: (batch, *input), normal for the l2 ball, else uniform in [0, 1).
        fraction: (batch,) uniform in [0, 1).
    """
    low, high = threat.value_range
    if threat.random_start is None:
        return tf.zeros_like(x)
    if threat.random_start == "image":
        return project_ball(low + (high - low) * field - x, epsilon, threat.norm)
    if threat.norm == math.inf:
        change = per_example(epsilon, x) * (2 * field - 1)
    else:
        # uniform in the ball: a uniform direction, and a radius with density r^(n-1)
        inputs = tf.cast(tf.size(x[0]), x.dtype)
        radius = epsilon * tf.pow(fraction, 1 / inputs)
        change = unit_direction(field) * per_example(radius, x)
    return clip_to_range(x + change, threat.value_range) - x


def search(
    logits: keras.Model,
    threat: ThreatModel,
    x: tf.Tensor,
    y: tf.Tensor,
    epsilon: tf.Tensor,
    start: tf.Tensor,
    *,
    stop: Stop,
    targeted: bool = False,
    training: bool = False,
    record_loss: bool = False,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """`threat.steps` steps of projected gradient ascent.

    Args:
        logits: returns logits (batch, classes).
        threat: its settings; its epsilon is not read.
        x: (batch, *input), inside the value range.
        y: (batch,) classes to leave, or to reach if `targeted`.
        epsilon: (batch,) radii.
        start: (batch, *input), the first perturbation.
        stop: "success": an example keeps its first perturbation that changes the class;
            "last": all steps are taken.
        targeted: y is the class to reach.
        training: layers are in training mode.
        record_loss: return the objective along the search.

    Returns:
        perturbations (batch, *input); whether the gradient was zero, or not finite, at some step
        before the example's class had changed (batch,);
        the objective at each iterate (batch, steps + 1), or (batch, 0) unless `record_loss`.
    """
    steps, batch = threat.steps, tf.shape(x)[0]
    if threat.step_size is None:
        length = _REACH * epsilon / steps
    else:
        length = tf.fill([batch], tf.cast(threat.step_size, x.dtype))
    rounding = max(_ROUNDING.get(layer.compute_dtype, 0.0) for layer in layers_behind(logits))
    tolerance = (rounding,) if rounding else ()
    sign = -1.0 if targeted else 1.0

    def constrained(change: tf.Tensor) -> tf.Tensor:
        if threat.order == "project_then_clip":
            change = project_ball(change, epsilon, threat.norm)
            return clip_to_range(x + change, threat.value_range) - x
        change = clip_to_range(x + change, threat.value_range) - x
        return project_ball(change, epsilon, threat.norm)

    def step(
        count: tf.Tensor, change: tf.Tensor, fooled: tf.Tensor, stalled: tf.Tensor, losses: Any
    ) -> tuple[Any, ...]:
        image = clip_to_range(x + change, threat.value_range)
        values, pull_back = gradients_at(logits, image, training=training)
        if record_loss:
            losses = losses.write(count, _objective(threat, values, y, targeted))
        lead = sign * label_lead(values, y)
        fooled |= -lead > rounding_of(values, *tolerance)
        gradient = pull_back(sign * _cotangent(threat, values, y, targeted))
        gradient = tf.where(per_example(all_finite(gradient), x), gradient, tf.zeros_like(x))
        stalled |= (norm(gradient, math.inf) == 0) & ~fooled
        moved = constrained(change + per_example(length, x) * _direction(threat, gradient))
        if stop == "success":
            moved = tf.where(per_example(fooled, x), change, moved)
        return count + 1, moved, fooled, stalled, losses

    def unfinished(
        count: tf.Tensor, change: tf.Tensor, fooled: tf.Tensor, stalled: tf.Tensor, losses: Any
    ) -> tf.Tensor:
        if stop == "success" and not record_loss:
            return (count < steps) & ~tf.reduce_all(fooled)
        return count < steps

    nobody = tf.fill([batch], False)
    losses = tf.TensorArray(x.dtype, steps + 1 if record_loss else 0, clear_after_read=True)
    state = tf.constant(0), start, nobody, nobody, losses
    _, change, _, stalled, losses = tf.while_loop(unfinished, step, state, maximum_iterations=steps)
    change = tf.stop_gradient(change)
    if not record_loss:
        return change, stalled, tf.zeros([batch, 0], x.dtype)
    image = clip_to_range(x + change, threat.value_range)
    values = tf.cast(logits(image, training=training), x.dtype)
    losses = losses.write(steps, _objective(threat, values, y, targeted))
    return change, stalled, tf.transpose(losses.stack())


def _is_l2_ball(threat: ThreatModel) -> bool:
    return threat.random_start == "ball" and threat.norm == 2


def _cotangent(threat: ThreatModel, values: tf.Tensor, y: tf.Tensor, targeted: bool) -> tf.Tensor:
    """Gradient of the objective with respect to the logits, up to a positive factor."""
    if threat.objective == "carlini_wagner":
        one_hot = tf.one_hot(y, values.shape[1], dtype=values.dtype)
        rivals = _rivals(threat, values, one_hot)
        rival = tf.one_hot(tf.argmax(rivals, axis=1), values.shape[1], dtype=values.dtype)
        if threat.rival == "not_below_zero":  # where the maximum is the label's own, constant zero
            rival *= 1 - one_hot
        # d/dz -relu(z_y - z_j + kappa): zero once the other class leads by kappa
        active = _lead(values, one_hot, rivals, targeted) + threat.kappa > 0
        return tf.where(active[:, None], rival - one_hot, tf.zeros_like(values))
    if threat.floor > 0:  # d/dz (logsumexp(z) - z_y), which underflows
        return softmax(values) - tf.one_hot(y, values.shape[1], dtype=values.dtype)
    return loss_cotangent(values, y)


def _rivals(threat: ThreatModel, values: tf.Tensor, one_hot: tf.Tensor) -> tf.Tensor:
    """Logits, with the label's replaced by what the largest other one is compared with."""
    if threat.rival == "not_below_zero":
        return values * (1 - one_hot)
    return tf.where(one_hot > 0, values.dtype.min, values)


def _lead(values: tf.Tensor, one_hot: tf.Tensor, rivals: tf.Tensor, targeted: bool) -> tf.Tensor:
    """z_y - max_j z_j, (batch,); its negative if targeted."""
    lead = tf.reduce_sum(values * one_hot, axis=1) - tf.reduce_max(rivals, axis=1)
    return -lead if targeted else lead


def _objective(threat: ThreatModel, values: tf.Tensor, y: tf.Tensor, targeted: bool) -> tf.Tensor:
    """The objective itself, (batch,): cross-entropy of y, or -relu(z_y - max_j z_j + kappa)."""
    if threat.objective == "carlini_wagner":
        one_hot = tf.one_hot(y, values.shape[1], dtype=values.dtype)
        lead = _lead(values, one_hot, _rivals(threat, values, one_hot), targeted)
        return -tf.nn.relu(lead + threat.kappa)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(y, values)


def _direction(threat: ThreatModel, gradient: tf.Tensor) -> tf.Tensor:
    """The step of length 1 in the norm of the ball; shorter below the floor."""
    if threat.norm == math.inf:
        return tf.sign(gradient)
    if threat.floor > 0:
        lengths = tf.maximum(norm(gradient), threat.floor)
        return gradient / per_example(lengths, gradient)
    return unit_direction(gradient)
