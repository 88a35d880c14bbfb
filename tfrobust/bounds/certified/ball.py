"""The largest ball in which no margin can vanish, by linear bounds with residuals in l2.

Behind every kink that can matter in the ball a step is a line plus a residual; a residual costs at
most <weight, element's change>, and the changes are bounded one by one and together in l2. That is
tighter than bounding every element by its own worst case (as CROWN does in an l2 ball), and than
the product of norms, which it never falls below.

Rounding errors of the network are taken off margins. Those of the sums here are left a thousandth
of what the sums come to, which layers would have to cancel to exceed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfrobust import norms
from tfrobust.bounds.certified.network import Network
from tfrobust.bounds.graph import INPUT
from tfrobust.bounds.operations import UNIT_ROUNDOFF, Dense, Elementwise, Rows, over_margins

__all__ = ["MARGINS", "forward", "largest_ball", "rounding"]

# margins that are followed back at a time
MARGINS = 16
# of everything that is taken off a margin: covers single precision in these very sums
SLACK = 1e-3
# the tries of the search for the largest radius: what is left of the margin falls ever faster, so
# that its chord meets zero on the safe side; halves are for where it falls off a cliff
START, HALF, CHORD = 0, 1, 2
SEARCH = (START, HALF, HALF, HALF, HALF, CHORD)
CAREFUL = 0.999
# of what a linear network would have: the rest is for slack
ALMOST = 0.99
# rounds what an element may change by away from zero
AWAY = 1 + 1e-4


def forward(network: Network, x: tf.Tensor) -> list[tf.Tensor]:
    """In a graph: every step's value."""
    values: list[tf.Tensor] = []
    for step, operation in zip(network.steps, network.operations, strict=True):
        values.append(operation.apply([x if at == INPUT else values[at] for at in step.inputs]))
    return values


def rounding(
    network: Network, x: tf.Tensor, values: list[tf.Tensor], changes: Sequence[tf.Tensor]
) -> tf.Tensor:
    """In a graph: the logits' rounding errors at most (batch, classes), anywhere in a ball.

    Args:
        changes: how much an element of each step's value can change in the ball, and last, at
            `INPUT`, of the network's input; of shapes that broadcast.
    """
    errors: list[tf.Tensor] = []
    every = [*values, x]
    for number, (step, operation) in enumerate(zip(network.steps, network.operations, strict=True)):
        before = [tf.zeros_like(x) if at == INPUT else errors[at] for at in step.inputs]
        around = [changes[at] * tf.ones_like(every[at]) for at in step.inputs]
        found = operation.rounding(
            [every[at] for at in step.inputs], around, values[number], changes[number], before
        )
        errors.append(found * tf.ones_like(values[number]))
    # these sums are in single precision too
    return (1 + SLACK) * errors[-1]


def largest_ball(network: Network) -> Callable[[keras.Model], Callable[..., tf.Tensor]]:
    """A builder for `compiled`: see `run`."""

    def build(logits: keras.Model) -> Callable[..., tf.Tensor]:
        def run(
            x: tf.Tensor,
            start: tf.Tensor,
            errors: tf.Tensor,
            proved: tf.Tensor,
            predicted: tf.Tensor,
            steps: tf.Tensor,
            shortcuts: tf.Tensor,
            first: tf.Tensor,
        ) -> tf.Tensor:
            """The largest radius (batch,) found at which `MARGINS` margins stay positive.

            Args:
                x: (batch, *input).
                start: (batch,), radii known to be safe.
                errors: (batch, classes), of the logits at x.
                proved: (batch,), whether they are a bound, or else an estimate for the ball too.
                predicted: (batch,).
                steps, shortcuts: of `Constants`, float32, rounded up.
                first: the first of the margins, counted without the predicted class.
            """
            values = forward(network, x)
            margin, cotangent = _margins(values[-1], errors, predicted, first)
            doubts = (errors, proved)
            constants = (_overlaps(network), steps, shortcuts)
            given = (network, x, values, *constants, margin, cotangent, *doubts)
            state = (start, *(tf.zeros_like(start) for _ in range(4)))
            nowhere = tf.fill(tf.shape(start), -float("inf"))

            def next_try(step: tf.Tensor, best: tf.Tensor, *interval: tf.Tensor) -> Any:
                low, high, at_low, at_high = interval
                # nothing was unsafe yet: perhaps the network is linear all the way
                untried = tf.math.is_inf(at_high)
                chord = low + CAREFUL * (high - low) * at_low / (at_low - at_high)
                chord = tf.where(untried, ALMOST * high, chord)
                kind = tf.gather(SEARCH, step)
                middle = tf.where((kind == CHORD) & (at_low > 0), chord, tf.sqrt(low * high))
                radius = tf.where(kind == START, start, middle)
                slope, left = _worst(radius, *given)
                safe = left > 0
                best = tf.where(safe, tf.maximum(best, radius), best)
                # no ball is larger than a linear network's would be
                farthest = tf.reduce_min(tf.maximum(margin, 0.0) / tf.maximum(slope, 1e-30), axis=1)
                farthest = tf.maximum(farthest, start)
                # not from zero: the middle is a geometric mean
                first = (tf.maximum(start, 1e-6 * farthest), farthest, left, nowhere)
                later = (
                    tf.where(safe, radius, low),
                    tf.where(safe, high, radius),
                    tf.where(safe, left, at_low),
                    tf.where(safe, at_high, left),
                )
                begins = kind == START
                interval = (tf.where(begins, a, b) for a, b in zip(first, later, strict=True))
                return step + 1, best, *interval

            def goes_on(step: tf.Tensor, *_: tf.Tensor) -> tf.Tensor:
                return step < len(SEARCH)

            return tf.while_loop(goes_on, next_try, (tf.constant(0), *state))[1]

        return run

    return build


def _margins(
    logits: tf.Tensor, errors: tf.Tensor, predicted: tf.Tensor, first: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Margins (batch, M) less rounding at x, infinite past the last class; their cotangents."""
    classes = logits.shape[1]
    count = min(MARGINS, classes - 1)
    place = first + tf.range(count)[None]
    other = place + tf.cast(place >= predicted[:, None], tf.int32)
    own = tf.one_hot(predicted, classes)
    others = tf.one_hot(other, classes)
    cotangent = own[:, None] - others
    margin = tf.einsum("bmc,bc->bm", cotangent, logits) - _own_and_other(errors, cotangent)
    return tf.where(place < classes - 1, margin, tf.constant(float("inf"))), cotangent


def _own_and_other(errors: tf.Tensor, cotangent: tf.Tensor) -> tf.Tensor:
    """(batch, classes) -> (batch, M)."""
    return tf.einsum("bmc,bc->bm", tf.abs(cotangent), errors)


def _overlaps(network: Network) -> dict[int, tf.Tensor]:
    """For activations right behind a dense layer: |A A^T| of that layer, by the step's number."""
    found = {}
    for number, (step, operation) in enumerate(zip(network.steps, network.operations, strict=True)):
        before = step.inputs[0]
        if before == INPUT or not isinstance(operation, Elementwise):
            continue
        if isinstance(network.operations[before], Dense) and len(step.input_shape) == 1:
            kernel = tf.convert_to_tensor(network.operations[before].layer.kernel)
            lengths = norms.norm(tf.transpose(kernel))
            lost = (kernel.shape[0] + 2) * UNIT_ROUNDOFF * lengths[:, None] * lengths[None]
            found[number] = tf.abs(tf.linalg.matmul(kernel, kernel, transpose_a=True)) + lost
    return found


def _worst(
    radius: tf.Tensor,
    network: Network,
    x: tf.Tensor,
    values: list[tf.Tensor],
    overlaps: dict[int, tf.Tensor],
    steps: tf.Tensor,
    shortcuts: tf.Tensor,
    margin: tf.Tensor,
    cotangent: tf.Tensor,
    errors: tf.Tensor,
    proved: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """How fast margins fall linearly (batch, M), and the least of them that is left (batch,)."""
    reaches, changes = [], []

    def at(results: list[tf.Tensor], of_input: tf.Tensor, index: int) -> tf.Tensor:
        return of_input if index == INPUT else results[index]

    every = norms.per_example(radius, x) * tf.ones_like(x)
    inputs = []
    for number, (step, operation) in enumerate(zip(network.steps, network.operations, strict=True)):
        given = (
            [at(values, x, k) for k in step.inputs],
            [at(changes, every, k) for k in step.inputs],
            [at(reaches, radius, k) for k in step.inputs],
            steps[number],
        )
        inputs.append(given)
        reach = operation.reach(given[2], steps[number])
        if network.sources[number] is not None:
            source = at(reaches, radius, network.sources[number])
            reach = tf.minimum(reach, shortcuts[number] * source)
        change = tf.minimum(
            operation.spread(*given) * tf.ones_like(values[number]),
            norms.per_example(reach, values[number]),
        )
        changes.append(AWAY * change)
        reaches.append(AWAY * tf.minimum(reach, norms.norm(change)))

    waiting = {len(network.steps) - 1: cotangent}
    lost = tf.zeros_like(margin)
    least = tf.fill(tf.shape(margin), tf.constant(float("inf")))
    for number in reversed(range(len(network.steps))):
        if number not in waiting:
            continue
        known = {}
        if number in overlaps:
            dense = network.steps[network.steps[number].inputs[0]]
            known["rows"] = Rows(overlaps[number], at(reaches, radius, dense.inputs[0]))
        pulled, cost = network.operations[number].pull(
            *inputs[number], waiting.pop(number), **known
        )
        lost = lost + cost
        for source, part in zip(network.steps[number].inputs, pulled, strict=True):
            waiting[source] = waiting[source] + part if source in waiting else part
        if len(waiting) == 1:  # everything passes through here: stop, or go on
            place, gradient = next(iter(waiting.items()))
            length = over_margins(norms.norm, gradient)
            total = lost + length * at(reaches, radius, place)[:, None]
            least = tf.minimum(least, total)
    # where the attacker's image is evaluated there are rounding errors too
    there = tf.where(proved[:, None], rounding(network, x, values, [*changes, every]), errors)
    left = margin - (1 + SLACK) * least - _own_and_other(there, cotangent)
    # the last place is the input, whose gradient is the linear part
    return length, tf.reduce_min(left, axis=1)
