"""Backward linear relaxation about x: what is left of margins anywhere in a ball.

Let m_j = z_c - z_j be the margin of the predicted class c over class j, ||d||_2 <= r, and D_s the
change of step s's value. Forwards through the network each step gets bounds |D_s| <= e_s and
||D_s|| <= l_s. Backwards from the cotangent a = e_c - e_j of the logits (unit vectors), each step
turns the cotangent of its output into cotangents of its inputs and a loss
(`Operation.relax_backward`). At every cut v of the graph, a value that all paths from the input to
the logits pass through,

    m_j(x + d) >= m_j(x) - (losses of the steps behind v) - ||a_v|| l_v,

and the least decrease over all cuts counts. At the logits that is a global Lipschitz bound, at the
input the full relaxation, ||a_input|| r plus all losses. A loss is the support function of a box
and an l2 ball: tighter than each element's own worst case, as of CROWN in an l2 ball.

Logits are computed with errors of at most E(x) at x and E(r) anywhere in the ball, so that

    left(r) = m_j(x) - E_c(x) - E_j(x) - (1 + SLACK) decrease(r) - E_c(r) - E_j(r) > 0  for all j

certifies the radius r. SLACK is for rounding in the sums above themselves: a thousandth of what
they come to, which only layers that cancel could exceed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import tensorflow as tf

from tfrobust import norms
from tfrobust.bounds.certified.network import Network
from tfrobust.bounds.graph import INPUT
from tfrobust.bounds.operations import (
    UNIT_ROUNDOFF,
    Dense,
    Elementwise,
    InputBounds,
    RowGram,
    over_margins,
)

__all__ = [
    "Problem",
    "certified_margin",
    "errors_of_margins",
    "forward",
    "rounding_errors",
    "row_grams",
]

# of every decrease of a margin: covers single precision in these very sums
SLACK = 1e-3
# bounds of changes are rounded up by more than their computation rounds
ROUND_UP = 1 + 1e-4


class Problem(NamedTuple):
    """Margins at x, and what they are followed back with."""

    network: Network
    x: tf.Tensor
    values: list[tf.Tensor]
    """Every step's value at x."""
    grams: dict[int, tf.Tensor]
    """See `row_grams`."""
    steps: tf.Tensor
    """Lipschitz constants of the steps, rounded up."""
    fused: tf.Tensor
    """Those of linear layers in a row taken as one, rounded up."""
    margin: tf.Tensor
    """(batch, M), less rounding at x; infinite past the last class."""
    cotangent: tf.Tensor
    """(batch, M, classes), e_c - e_j."""
    errors: tf.Tensor
    """(batch, classes), of the logits at x."""
    proved: tf.Tensor
    """(batch,), whether `errors` is proven, or else an estimate for the whole ball."""


class _BallBounds(NamedTuple):
    """Bounds of every change in a ball, by step."""

    inputs: list[InputBounds]
    """Of each step's inputs."""
    elementwise: dict[int, tf.Tensor]
    """e, of each step's value, and at `INPUT` of the network's input."""
    l2: dict[int, tf.Tensor]
    """l, of the same."""


def forward(network: Network, x: tf.Tensor) -> list[tf.Tensor]:
    """In a graph: every step's value."""
    values: list[tf.Tensor] = []
    for step, operation in zip(network.steps, network.operations, strict=True):
        values.append(operation.apply([x if at == INPUT else values[at] for at in step.inputs]))
    return values


def rounding_errors(
    network: Network, x: tf.Tensor, values: list[tf.Tensor], elementwise: Mapping[int, tf.Tensor]
) -> tf.Tensor:
    """In a graph: the logits' rounding errors at most (batch, classes), anywhere in a ball.

    Args:
        elementwise: bounds of the change of each step's value in the ball, and at `INPUT` of the
            network's input; of shapes that broadcast.
    """
    errors: list[tf.Tensor] = []
    every = [*values, x]
    for number, (step, operation) in enumerate(zip(network.steps, network.operations, strict=True)):
        error = operation.rounding_error(
            [every[at] for at in step.inputs],
            [elementwise[at] * tf.ones_like(every[at]) for at in step.inputs],
            values[number],
            elementwise[number],
            [tf.zeros_like(x) if at == INPUT else errors[at] for at in step.inputs],
        )
        errors.append(error * tf.ones_like(values[number]))
    # these sums are in single precision too
    return (1 + SLACK) * errors[-1]


def certified_margin(problem: Problem, radius: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """||a_input|| (batch, M), and the least left(r) over these margins (batch,)."""
    bounds = _ball_bounds(problem, radius)
    slope, decrease = _largest_decrease(problem, bounds)
    # the logits' rounding errors where the perturbed image is evaluated
    in_ball = rounding_errors(problem.network, problem.x, problem.values, bounds.elementwise)
    in_ball = tf.where(problem.proved[:, None], in_ball, problem.errors)
    left = problem.margin - (1 + SLACK) * decrease - errors_of_margins(in_ball, problem.cotangent)
    return slope, tf.reduce_min(left, axis=1)


def _ball_bounds(problem: Problem, radius: tf.Tensor) -> _BallBounds:
    """Forwards: e_s, at most l_s for every element, and l_s, at most ||e_s||."""
    network, x = problem.network, problem.x
    every = [*problem.values, x]
    elementwise = {INPUT: norms.per_example(radius, x) * tf.ones_like(x)}
    l2 = {INPUT: radius}
    inputs = []
    for number, (step, operation) in enumerate(zip(network.steps, network.operations, strict=True)):
        incoming = InputBounds(
            values=[every[at] for at in step.inputs],
            elementwise=[elementwise[at] for at in step.inputs],
            l2=[l2[at] for at in step.inputs],
            lipschitz=problem.steps[number],
        )
        inputs.append(incoming)
        length = operation.l2_bound(incoming.l2, incoming.lipschitz)
        source = network.fused_sources[number]
        if source is not None:
            length = tf.minimum(length, problem.fused[number] * l2[source])
        value = problem.values[number]
        bound = tf.minimum(
            operation.elementwise_bound(incoming) * tf.ones_like(value),
            norms.per_example(length, value),
        )
        elementwise[number] = ROUND_UP * bound
        l2[number] = ROUND_UP * tf.minimum(length, norms.norm(bound))
    return _BallBounds(inputs, elementwise, l2)


def _largest_decrease(problem: Problem, bounds: _BallBounds) -> tuple[tf.Tensor, tf.Tensor]:
    """Backwards: ||a_input|| and the least bound of the margins' decrease, (batch, M) each."""
    network = problem.network
    cotangents = {len(network.steps) - 1: problem.cotangent}
    losses = tf.zeros_like(problem.margin)
    decrease = tf.fill(tf.shape(problem.margin), tf.constant(float("inf")))
    for number in reversed(range(len(network.steps))):
        if number not in cotangents:
            continue
        step, operation = network.steps[number], network.operations[number]
        incoming, cotangent = bounds.inputs[number], cotangents.pop(number)
        if number in problem.grams:
            dense = network.steps[step.inputs[0]]
            gram = RowGram(problem.grams[number], bounds.l2[dense.inputs[0]])
            parts, loss = operation.relax_backward(incoming, cotangent, gram)
        else:
            parts, loss = operation.relax_backward(incoming, cotangent)
        losses = losses + loss
        for source, part in zip(step.inputs, parts, strict=True):
            cotangents[source] = cotangents[source] + part if source in cotangents else part
        if len(cotangents) == 1:  # a cut
            cut, gradient = next(iter(cotangents.items()))
            length = over_margins(norms.norm, gradient)
            decrease = tf.minimum(decrease, losses + length * bounds.l2[cut][:, None])
    # the last cut is the input
    return length, decrease


def errors_of_margins(errors: tf.Tensor, cotangent: tf.Tensor) -> tf.Tensor:
    """Errors of logits (batch, classes) to those of margins (batch, M), E_c + E_j."""
    return tf.einsum("bmc,bc->bm", tf.abs(cotangent), errors)


def row_grams(network: Network) -> dict[int, tf.Tensor]:
    """For activations right behind a dense layer: |A A^T| of that layer, by the step's number."""
    grams = {}
    for number, (step, operation) in enumerate(zip(network.steps, network.operations, strict=True)):
        before = step.inputs[0]
        if before == INPUT or not isinstance(operation, Elementwise):
            continue
        if isinstance(network.operations[before], Dense) and len(step.input_shape) == 1:
            kernel = tf.convert_to_tensor(network.operations[before].layer.kernel)
            lengths = norms.norm(tf.transpose(kernel))
            # what the product errs by: n + 2 roundings of ||a_i|| ||a_j||
            error = (kernel.shape[0] + 2) * UNIT_ROUNDOFF * lengths[:, None] * lengths[None]
            grams[number] = tf.abs(tf.linalg.matmul(kernel, kernel, transpose_a=True)) + error
    return grams
