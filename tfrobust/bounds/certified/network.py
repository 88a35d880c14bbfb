"""A classifier as operations with their Lipschitz constants, composed from input to logits."""

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
)
from tfrobust.bounds.operator_norms import SLACK, cached_norm, folded_norm, largest_singular_value

__all__ = ["LipschitzConstants", "Network"]

# entries of the matrix that linear layers in a row are written out as
LARGEST_MATRIX = 2_000_000
# and of the logits' rows, followed back through the linear head
LARGEST_HEAD = 20_000_000


@dataclass(frozen=True)
class LipschitzConstants:
    """Proven upper bounds of l2 Lipschitz constants; they depend on the weights.

    Attributes:
        steps: of each step.
        fused: of each step's value as a function of an earlier one, linear layers in a row being
            taken as one; infinite where there are none.
        from_input: of each step's value as a function of the network's input; the last entry, at
            `INPUT`, is 1.
        margins: (classes, classes), of each margin as a function of the linear head's input.
    """

    steps: np.ndarray
    fused: np.ndarray
    from_input: np.ndarray
    margins: np.ndarray


class Network:
    """The graph of a classifier's steps and their operations.

    Attributes:
        steps: in topological order.
        operations: of each step.
        fused_sources: for each step the earlier step from which on linear layers in a row, up to
            this one, are taken as one, or None.
        head_input: the step (or `INPUT`) whose value the linear head takes: the last linear layers.
    """

    def __init__(self, steps: Sequence[Step]):
        self.steps = tuple(steps)
        self.operations: list[Operation] = [operation_of(step) for step in steps]
        consumers = [0] * (len(steps) + 1)  # the last is INPUT's
        for step in steps:
            for source in step.inputs:
                consumers[source] += 1
        self._consumers = consumers
        self._linear_runs = [self._linear_run(at) for at in range(len(steps))]
        self.fused_sources = [self._fused_source(run) for run in self._linear_runs]
        self.head_input = self._head_input()

    def _linear_run(self, at: int) -> list[int]:
        """The linear steps in a row that end in this one, of which nothing else is used."""
        run: list[int] = []
        while at != INPUT and isinstance(self.operations[at], Affine):
            run.insert(0, at)
            at = self.steps[at].inputs[0]
            if at == INPUT or self._consumers[at] != 1:
                break
        return run

    def _without_permutations(self, run: list[int]) -> list[int]:
        return [at for at in run if not isinstance(self.operations[at], Permutation)]

    def _fused_source(self, run: list[int]) -> int | None:
        """Where the linear layers start that are taken as one up to the end of a run."""
        changing = self._without_permutations(run)
        if len(changing) < 2 or changing[-1] != run[-1]:
            return None
        first, last = self.steps[run[0]], self.steps[run[-1]]
        if math.prod(first.input_shape) * math.prod(last.output_shape) <= LARGEST_MATRIX:
            return first.inputs[0]
        if self._foldable(run):
            return self.steps[run[-2]].inputs[0]
        return None

    def _foldable(self, run: list[int]) -> bool:
        """Whether a run ends in a layer with weights and its batch normalization."""
        last, before = self.operations[run[-1]], self.operations[run[-2]]
        return (
            isinstance(last, Scaling)
            and isinstance(last.layer, keras.layers.BatchNormalization)
            and isinstance(before, Dense | Convolutional)
        )

    def _head_input(self) -> int:
        run = self._linear_runs[-1]
        classes = self.steps[-1].output_shape[-1]
        for at in run:
            if classes * math.prod(self.steps[at].input_shape) <= LARGEST_HEAD:
                return self.steps[at].inputs[0]
        return len(self.steps) - 1

    def _head_steps(self) -> list[int]:
        run = self._linear_runs[-1]
        first = next((at for at in run if self.steps[at].inputs[0] == self.head_input), None)
        return [] if first is None else run[run.index(first) :]

    def constants(self) -> LipschitzConstants:
        """Norms of the weights as they are now; what was computed for the same weights is kept.

        Raises:
            UnsupportedLayerError, ValueError: see `operator_norm_upper_bound`.
        """
        count = len(self.steps)
        each = np.array([each.lipschitz_constant() for each in self.operations], np.float64)
        fused = np.full(count, np.inf)
        from_input = np.ones(count + 1)
        for at, step in enumerate(self.steps):
            incoming = [from_input[source] for source in step.inputs]
            from_input[at] = self.operations[at].l2_bound(incoming, each[at])
            source = self.fused_sources[at]
            if source is not None:
                fused[at] = self._fused_norm(at)
                from_input[at] = min(from_input[at], fused[at] * from_input[source])
        # one rounding per step
        from_input[:-1] *= 1 + SLACK
        return LipschitzConstants(each, fused, from_input, self._margin_constants())

    def _fused_norm(self, at: int) -> float:
        """The operator norm of the linear layers in a row that end in this step."""
        run = self._linear_runs[at]
        first = self.steps[run[0]]
        if self.fused_sources[at] != first.inputs[0] or (len(run) == 2 and self._foldable(run)):
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

    def _settings(self, at: int) -> Any:
        layer = self.operations[at].layer
        config = layer.get_config() if hasattr(layer, "get_config") else {}
        return {key: value for key, value in config.items() if key not in ("name", "dtype")}

    def _matrix_norm(self, run: list[int]) -> float:
        outputs = math.prod(self.steps[run[-1]].output_shape)
        identity = tf.reshape(tf.eye(outputs), (outputs, *self.steps[run[-1]].output_shape))
        matrix, errors = self._matrix(run, identity)
        return largest_singular_value(matrix) + float(np.linalg.norm(errors))

    def _matrix(self, run: list[int], rows: tf.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Rows times the matrix of these linear steps, float64, and bounds of rounding errors."""
        errors = tf.zeros_like(rows)
        for at in reversed(run):
            like = tf.zeros((1, *self.steps[at].input_shape))
            if at in self._without_permutations(run):
                errors = self.operations[at].adjoint_error(like, rows, errors)
            else:
                errors = self.operations[at].adjoint(like, errors)
            rows = self.operations[at].adjoint(like, rows)
        count = len(rows)
        return tuple(np.reshape(each, (count, -1)).astype(np.float64) for each in (rows, errors))

    def _margin_constants(self) -> np.ndarray:
        """||w_i - w_j|| of the rows w of the linear head, from their Gram matrix."""
        classes = self.steps[-1].output_shape[-1]
        head = self._head_steps()
        rows, errors = self._matrix(head, tf.eye(classes))
        gram = rows @ rows.T
        squares = np.diag(gram)
        sums = squares[:, None] + squares[None]
        distances = np.sqrt(np.maximum(sums - 2 * gram, 0))
        for first, second in np.argwhere(distances**2 < 1e-6 * sums):  # lost to cancellation
            distances[first, second] = np.linalg.norm(rows[first] - rows[second])
        # one layer's rows are copied, not summed
        summed = len(self._without_permutations(head)) > 1
        error = np.linalg.norm(errors, axis=1) if summed else np.zeros(classes)
        return distances * (1 + 1e-9) + error[:, None] + error[None]
