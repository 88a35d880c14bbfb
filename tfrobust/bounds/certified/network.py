"""A classifier as a graph of operations with Lipschitz constants, composed from input to logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust.bounds.certified.rules import operation_of
from tfrobust.bounds.graph import INPUT, Step
from tfrobust.bounds.operations import (
    Affine,
    Convolutional,
    Dense,
    Operation,
    Permutation,
    Scaling,
    gamma,
    underflow,
)
from tfrobust.bounds.operator_norms import SLACK, cached_norm, folded_norm, largest_singular_value

__all__ = ["LipschitzConstants", "Network"]

# entries of the matrix that consecutive linear layers are written out as, at most
LARGEST_MATRIX = 2_000_000
# entries of the matrix of the linear head, at most
LARGEST_HEAD = 20_000_000
# in place of a positive constant that double precision cannot represent
SMALLEST_CONSTANT = 1e-300


@dataclass(frozen=True)
class LipschitzConstants:
    """Proven upper bounds of l2 Lipschitz constants; they depend on the weights.

    Attributes:
        steps: of each step.
        fused: of each step's value as a function of an earlier one, where consecutive linear layers
            are taken as one; infinite elsewhere.
        from_input: of each step's value as a function of the network's input; the last entry, at
            `INPUT`, is 1.
        margins: (classes, classes), of each margin as a function of the linear head's input.
        rounding: (steps, 2), kappa and phi of each step: in single precision the cotangents that it
            passes on for a cotangent a are off by at most kappa ||a|| + phi in l2.
    """

    steps: np.ndarray
    fused: np.ndarray
    from_input: np.ndarray
    margins: np.ndarray
    rounding: np.ndarray


class Network:
    """The graph of a classifier's steps and their operations.

    Attributes:
        steps: in topological order.
        operations: of each step.
        fused_sources: for each step at which consecutive linear layers that are taken as one end,
            the earlier step whose value they take; None elsewhere.
        head_input: the step (or `INPUT`) whose value the linear head, the last layers, takes.
    """

    def __init__(self, steps: Sequence[Step]):
        self.steps = tuple(steps)
        self.operations: list[Operation] = [operation_of(step) for step in steps]
        consumers = [0] * (len(steps) + 1)  # the last is INPUT's
        for step in steps:
            for source in step.inputs:
                consumers[source] += 1
        self._consumers = consumers
        self._linear_runs = [self._linear_run(index) for index in range(len(steps))]
        self.fused_sources = [self._fused_source(run) for run in self._linear_runs]
        self.head_input = self._head_input()

    def _linear_run(self, index: int) -> list[int]:
        """The consecutive linear steps that end in this one, each consumed by the next alone."""
        run: list[int] = []
        while index != INPUT and isinstance(self.operations[index], Affine):
            run.insert(0, index)
            index = self.steps[index].inputs[0]
            if index == INPUT or self._consumers[index] != 1:
                break
        return run

    def _without_permutations(self, run: list[int]) -> list[int]:
        return [index for index in run if not isinstance(self.operations[index], Permutation)]

    def _fused_source(self, run: list[int]) -> int | None:
        """The input of the linear layers that are taken as one up to the end of a run, or None."""
        weighted = self._without_permutations(run)
        if len(weighted) < 2 or weighted[-1] != run[-1]:
            return None
        first, last = self.steps[run[0]], self.steps[run[-1]]
        if math.prod(first.input_shape) * math.prod(last.output_shape) <= LARGEST_MATRIX:
            return first.inputs[0]
        if self._foldable(run):
            return self.steps[run[-2]].inputs[0]
        return None

    def _foldable(self, run: list[int]) -> bool:
        """Whether a run ends in a layer with weights and its batch normalization."""
        last, previous = self.operations[run[-1]], self.operations[run[-2]]
        return (
            isinstance(last, Scaling)
            and isinstance(last.layer, keras.layers.BatchNormalization)
            and isinstance(previous, Dense | Convolutional)
        )

    def _head_input(self) -> int:
        run = self._linear_runs[-1]
        classes = self.steps[-1].output_shape[-1]
        for index in run:
            if classes * math.prod(self.steps[index].input_shape) <= LARGEST_HEAD:
                return self.steps[index].inputs[0]
        return len(self.steps) - 1

    def _head_steps(self) -> list[int]:
        run = self._linear_runs[-1]
        first = next(
            (index for index in run if self.steps[index].inputs[0] == self.head_input), None
        )
        return [] if first is None else run[run.index(first) :]

    def constants(self) -> LipschitzConstants:
        """Lipschitz constants for the current values of the weights, cached by these values.

        From the input to step s, with L_f of its operation f and L_i of its inputs: L_s =
        sum_i |w_i| L_i for a weighted sum, else L_f sqrt(sum_i L_i^2); at most L_fused L_source.

        Raises:
            UnsupportedLayerError, ValueError: see `operator_norm_upper_bound`.
        """
        count = len(self.steps)
        steps = np.array(
            [operation.lipschitz_constant() for operation in self.operations], np.float64
        )
        fused = np.full(count, np.inf)
        from_input = np.ones(count + 1)
        for index, step in enumerate(self.steps):
            incoming = [from_input[source] for source in step.inputs]
            from_input[index] = self.operations[index].l2_bound(incoming, steps[index])
            source = self.fused_sources[index]
            if source is not None:
                fused[index] = self._fused_norm(index)
                from_input[index] = min(from_input[index], fused[index] * from_input[source])
            if not from_input[index] and steps[index] and all(incoming):  # underflow
                from_input[index] = SMALLEST_CONSTANT
        # for one rounding per step
        from_input[:-1] *= 1 + SLACK
        return LipschitzConstants(
            steps, fused, from_input, self._margin_constants(), self._rounding()
        )

    def _rounding(self) -> np.ndarray:
        """kappa = gamma_n || |A| || and phi, for n products in the sum of one element of A^T a.

        Elements lose at most `underflow` of n times 1 + max |a| to underflow.
        """
        rounding = np.zeros((len(self.steps), 2))
        for index, (step, operation) in enumerate(zip(self.steps, self.operations, strict=True)):
            terms = operation.backward_terms
            if terms:
                inputs = sum(math.prod(shape) for shape in step.input_shapes)
                absolute = math.sqrt(inputs) * underflow(terms)
                relative = gamma(terms) * operation.absolute_norm()
                rounding[index] = relative + absolute, absolute
        return rounding

    def _fused_norm(self, index: int) -> float:
        """The operator norm of the consecutive linear layers that end in this step."""
        run = self._linear_runs[index]
        first = self.steps[run[0]]
        if self.fused_sources[index] != first.inputs[0] or (len(run) == 2 and self._foldable(run)):
            convolution, normalization = (self.operations[k].layer for k in run[-2:])
            return folded_norm(convolution, normalization, self.steps[run[-2]].input_shape)
        weights = [
            np.asarray(weight)
            for k in run
            for weight in getattr(self.operations[k].layer, "weights", [])
        ]
        described = tuple(
            (type(self.operations[k].layer).__name__, *self.steps[k].input_shape) for k in run
        )
        settings = tuple(repr(self._settings(k)) for k in run)
        return cached_norm(
            "linear run", weights, (described, settings), lambda *_: self._matrix_norm(run)
        )

    def _settings(self, index: int) -> Any:
        layer = self.operations[index].layer
        config = layer.get_config() if hasattr(layer, "get_config") else {}
        return {key: value for key, value in config.items() if key not in ("name", "dtype")}

    def _matrix_norm(self, run: list[int]) -> float:
        outputs = math.prod(self.steps[run[-1]].output_shape)
        identity = tf.eye(outputs, dtype=tf.float64)
        identity = tf.reshape(identity, (outputs, *self.steps[run[-1]].output_shape))
        matrix, errors = self._matrix(run, identity)
        return largest_singular_value(matrix) + float(np.linalg.norm(errors))

    def _matrix(self, run: list[int], rows: tf.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Rows R times the matrix A of these linear steps, float64, and bounds of rounding errors.

        Each row a becomes A^T a, one step after another from the last: (rows, inputs) twice.
        """
        errors = tf.zeros_like(rows)
        for index in reversed(run):
            rows, errors = self.operations[index].exact_adjoint(
                self.steps[index].input_shape, rows, errors
            )
        count = len(rows)
        return np.reshape(rows, (count, -1)), np.reshape(errors, (count, -1))

    def _margin_constants(self) -> np.ndarray:
        """||w_i - w_j|| of the rows w of the linear head, float64, rounding errors added.

        ||w_i - w_j||^2 = ||w_i||^2 + ||w_j||^2 - 2 <w_i, w_j>, from the Gram matrix of the rows,
        whose entries have errors of at most gamma_n ||w_i|| ||w_j||.
        """
        classes = self.steps[-1].output_shape[-1]
        head = self._head_steps()
        rows, errors = self._matrix(head, tf.eye(classes, dtype=tf.float64))
        scale = np.abs(rows).max() or 1.0
        rows = rows / scale
        gram = rows @ rows.T
        squares = np.diag(gram)
        sums = squares[:, None] + squares[None]
        error = gamma(rows.shape[1] + 8, 2.0**-53)
        distances = np.sqrt(np.maximum(sums - 2 * gram, 0) + 2 * error * sums)
        for first, second in np.argwhere(distances**2 < 1e6 * error * sums):  # lost to cancellation
            distances[first, second] = np.linalg.norm(rows[first] - rows[second])
        # the rows of a single layer are its weights, copied without rounding
        summed = len(self._without_permutations(head)) > 1
        error = np.linalg.norm(errors, axis=1) if summed else np.zeros(classes)
        return scale * distances * (1 + SLACK) + error[:, None] + error[None]
