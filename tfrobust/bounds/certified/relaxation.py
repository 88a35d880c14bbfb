"""Backward linear relaxation about x: lower bounds of the margins in a ball.

Let m_j = z_c - z_j be the margin of the predicted class c over class j, ||d||_2 <= r, and D_s the
change of step s's value. Forwards through the network each step gets bounds |D_s| <= e_s and
||D_s|| <= l_s. Backwards from the cotangent a = e_c - e_j of the logits (unit vectors), each step
turns the cotangent of its output into cotangents of its inputs and a loss
(`Operation.relax_backward`). At every cut v of the graph, a value that all paths from the input to
the logits pass through,

    m_j(x + d) >= m_j(x) - (losses of the steps after v) - ||a_v|| l_v,

and the smallest such decrease over all cuts holds. At the logits it is a global Lipschitz bound, at
the input the full relaxation, ||a_input|| r plus all losses. A loss is the support function of the
intersection of a box and an l2 ball: tighter than the sum of the elements' worst cases, which CROWN
takes.

Logits are computed with errors of at most E(x) at x and E(r) anywhere in the ball, so that

    rest(r) = min_j m_j(x) - E_c(x) - E_j(x) - decrease_j(r) - E_c(r) - E_j(r) > 0

certifies the radius r. All of this is computed in single precision and rounded up, step by step:

- bounds of changes are sums and products of numbers >= 0, times 1 + gamma of their roundings, plus
  what may be lost to underflow;
- a step's cotangents are off by some t with ||t|| <= kappa_s ||a_s|| + phi_s (`Network.rounding`):
  instead of <A^T a, D> its relaxation holds for <A^T a + t, D>, and ||t|| l of its inputs is one
  more loss.

Where anything overflows, nothing is certified.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import tensorflow as tf

from tfrobust import norms
from tfrobust.bounds.certified.network import Network
from tfrobust.bounds.graph import INPUT
from tfrobust.bounds.operations import (
    SMALLEST,
    UNIT_ROUNDOFF,
    Dense,
    Elementwise,
    InputBounds,
    RowGram,
    gamma,
    over_margins,
    rounded_up,
    underflow,
    upper_norm,
)

__all__ = [
    "Problem",
    "certified_margin",
    "errors_of_margins",
    "forward",
    "rounding_errors",
    "row_grams",
]


class Problem(NamedTuple):
    """Margins at x, and all that the backward relaxation needs."""

    network: Network
    x: tf.Tensor
    values: list[tf.Tensor]
    """Every step's value at x."""
    grams: dict[int, tuple[tf.Tensor, tf.Tensor]]
    """See `row_grams`."""
    steps: tf.Tensor
    """Lipschitz constants of the steps, rounded up."""
    fused: tf.Tensor
    """Those of consecutive linear layers taken as one, rounded up."""
    rounding: tf.Tensor
    """(steps, 2), see `Network.rounding`."""
    margin: tf.Tensor
    """(batch, M), m_j(x) - E_c(x) - E_j(x); infinite past the last class."""
    cotangent: tf.Tensor
    """(batch, M, classes), e_c - e_j."""
    errors: tf.Tensor
    """(batch, classes), E(x) of the logits."""
    proved: tf.Tensor
    """(batch,), whether `errors` is a proven bound at x; if not, an estimate for the whole ball."""


class _BallBounds(NamedTuple):
    """Bounds of the changes D_s in a ball, by step."""

    inputs: list[InputBounds]
    """Of each step's inputs."""
    elementwise: dict[int, tf.Tensor]
    """e_s, of each step's value; at `INPUT`, of the network's input."""
    l2: dict[int, tf.Tensor]
    """l_s, likewise."""
    finite: tf.Tensor
    """(batch,), whether none of them has overflowed."""


def forward(network: Network, x: tf.Tensor) -> list[tf.Tensor]:
    """In a graph: every step's value."""
    values: list[tf.Tensor] = []
    for step, operation in zip(network.steps, network.operations, strict=True):
        values.append(
            operation.apply([x if source == INPUT else values[source] for source in step.inputs])
        )
    return values


def rounding_errors(
    network: Network, x: tf.Tensor, values: list[tf.Tensor], elementwise: Mapping[int, tf.Tensor]
) -> tf.Tensor:
    """In a graph: upper bounds of the logits' rounding errors anywhere in a ball, (batch, classes).

    Args:
        elementwise: e_s, bounds of the change of each step's value in the ball; at `INPUT`, of the
            network's input. Shapes that broadcast.
    """
    errors: list[tf.Tensor] = []
    values_and_input = [*values, x]
    for index, (step, operation) in enumerate(zip(network.steps, network.operations, strict=True)):
        error = operation.rounding_error(
            [values_and_input[source] for source in step.inputs],
            [
                elementwise[source] * tf.ones_like(values_and_input[source])
                for source in step.inputs
            ],
            values[index],
            elementwise[index],
            [tf.zeros_like(x) if source == INPUT else errors[source] for source in step.inputs],
        )
        errors.append(error * tf.ones_like(values[index]))
    return errors[-1]


def certified_margin(problem: Problem, radius: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """||a_input|| (batch, M), and rest(r), the minimum over these margins, (batch,)."""
    bounds = _ball_bounds(problem, radius)
    slope, decrease = _largest_decrease(problem, bounds)
    # the logits' rounding errors where the perturbed image is evaluated
    in_ball = rounding_errors(problem.network, problem.x, problem.values, bounds.elementwise)
    in_ball = tf.where(problem.proved[:, None], in_ball, problem.errors)
    in_ball = rounded_up(errors_of_margins(in_ball, problem.cotangent), 4)
    # a product that underflows loses at most 2^-126: a few per step
    lost = 16 * (len(problem.network.steps) + 1) * SMALLEST
    # two differences, and the factor itself
    rest = (1 - 8 * UNIT_ROUNDOFF) * problem.margin - rounded_up(decrease + in_ball + lost, 4)
    usable = bounds.finite & tf.reduce_all(tf.math.is_finite(slope), axis=1)
    return slope, tf.where(usable, tf.reduce_min(rest, axis=1), -float("inf"))


def _ball_bounds(problem: Problem, radius: tf.Tensor) -> _BallBounds:
    """Forwards, from e = l = r at the input, with the operation's own bounds e', l' of step s:

        l = min(l', L_fused l_source),  e_s = min(e', l),  l_s = min(l, ||e_s||_2),

    as |D[i]| <= ||D||_2 <= ||e||_2; L_fused of consecutive linear layers where they end in s.
    """
    network, x = problem.network, problem.x
    values_and_input = [*problem.values, x]
    elementwise = {INPUT: norms.per_example(radius, x) * tf.ones_like(x)}
    l2 = {INPUT: radius}
    inputs = []
    finite = tf.math.is_finite(radius)
    for index, (step, operation) in enumerate(zip(network.steps, network.operations, strict=True)):
        incoming = InputBounds(
            values=[values_and_input[source] for source in step.inputs],
            elementwise=[elementwise[source] for source in step.inputs],
            l2=[l2[source] for source in step.inputs],
            lipschitz=problem.steps[index],
        )
        inputs.append(incoming)
        length = operation.l2_bound(incoming.l2, incoming.lipschitz)
        source = network.fused_sources[index]
        if source is not None:
            length = tf.minimum(length, problem.fused[index] * l2[source])
        value = problem.values[index]
        bound = tf.minimum(
            operation.elementwise_bound(incoming) * tf.ones_like(value),
            norms.per_example(length, value),
        )
        lost = norms.per_example(underflow(operation.terms) * (1 + sum(incoming.l2)), bound)
        elementwise[index] = rounded_up(bound, operation.terms + 16) + lost
        largest = upper_norm(elementwise[index])
        l2[index] = tf.minimum(rounded_up(length, 16) + 4 * SMALLEST, largest)
        # comparisons may hide what is not a number, sums of squares do not
        finite &= tf.math.is_finite(largest)
    return _BallBounds(inputs, elementwise, l2, finite)


def _largest_decrease(problem: Problem, bounds: _BallBounds) -> tuple[tf.Tensor, tf.Tensor]:
    """Backwards: ||a_input||, and the smallest bound of each margin's decrease; (batch, M) twice.

    decrease = min over cuts v of (losses of the steps after v) + ||a_v||_2 l_v. A step's cotangent
    is the sum of those from its consumers; where a single cotangent remains, its step is a cut.
    """
    network = problem.network
    last = len(network.steps) - 1
    cotangents = {last: problem.cotangent}
    lengths = {last: over_margins(upper_norm, problem.cotangent)}  # ||a_s||
    losses = tf.zeros_like(problem.margin)
    decrease = tf.fill(tf.shape(problem.margin), tf.constant(float("inf")))
    for index in reversed(range(len(network.steps))):
        if index not in cotangents:
            continue
        step, operation = network.steps[index], network.operations[index]
        incoming, cotangent = bounds.inputs[index], cotangents.pop(index)
        length = lengths.pop(index)
        if index in problem.grams:
            dense = network.steps[step.inputs[0]]
            gram = RowGram(*problem.grams[index], bounds.l2[dense.inputs[0]])
            parts, loss = operation.relax_backward(incoming, cotangent, gram)
        else:
            parts, loss = operation.relax_backward(incoming, cotangent)
        # cotangents are off by t with ||t|| <= kappa ||a|| + phi, and so are sums of two of them
        relative, absolute = problem.rounding[index, 0], problem.rounding[index, 1]
        losses = losses + loss + (relative * length + absolute) * sum(incoming.l2)[:, None]
        for source, part in zip(step.inputs, parts, strict=True):
            merged = source in cotangents
            cotangents[source] = cotangents[source] + part if merged else part
            lengths[source] = over_margins(upper_norm, cotangents[source])
            if merged:
                losses += 2 * UNIT_ROUNDOFF * lengths[source] * bounds.l2[source][:, None]
        if len(cotangents) == 1:  # a cut
            cut = next(iter(cotangents))
            decrease = tf.minimum(decrease, losses + lengths[cut] * bounds.l2[cut][:, None])
    # a sum over the steps, two products and two sums in each; the last cut is the input
    return lengths[cut], rounded_up(decrease, 4 * len(network.steps) + 16)


def errors_of_margins(errors: tf.Tensor, cotangent: tf.Tensor) -> tf.Tensor:
    """Errors E_c + E_j of margins (batch, M), from those of logits (batch, classes)."""
    return tf.einsum("bmc,bc->bm", tf.abs(cotangent), errors)


def row_grams(network: Network) -> dict[int, tuple[tf.Tensor, tf.Tensor]]:
    """For activations directly after a dense layer: see `RowGram`, by the step's index."""
    grams = {}
    for index, (step, operation) in enumerate(zip(network.steps, network.operations, strict=True)):
        source = step.inputs[0]
        if source == INPUT or not isinstance(operation, Elementwise):
            continue
        if isinstance(network.operations[source], Dense) and len(step.input_shape) == 1:
            kernel = tf.convert_to_tensor(network.operations[source].layer.kernel)
            scale = norms.power_of_two(tf.reduce_max(tf.abs(kernel)))
            kernel = kernel / scale
            lengths = norms.root_of_squares(kernel, axis=0)
            # |<a_i, a_j>|, plus its rounding error: (n + 2) u ||a_i|| ||a_j||, and underflow
            terms = int(kernel.shape[0])
            error = 2 * gamma(terms + 2) * lengths[:, None] * lengths[None] + 4 * underflow(terms)
            gram = tf.abs(tf.linalg.matmul(kernel, kernel, transpose_a=True)) + error
            grams[index] = rounded_up(gram, 4), scale
    return grams
