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
from tfrobust.bounds.operations import Affine, Convolutional, Dense, Operation, Scaling, Shuffle
from tfrobust.bounds.operator_norms import SLACK, cached_norm, folded_norm, largest_singular_value

__all__ = ["Constants", "Network"]

# entries of a matrix that is written out for several linear layers at once
MATRIX = 2_000_000
# and of the logits' rows, pulled back through the last linear layers
TAIL = 20_000_000


@dataclass(frozen=True)
class Constants:
    """Numbers that depend on the weights, proven upper bounds all.

    Attributes:
        steps: the Lipschitz constant of each step.
        shortcuts: of each step's result as a function of an earlier one: linear layers in a row,
            taken as one; infinite where there is none.
        reach: of each step's result as a function of the input; the last entry, at `INPUT`, is 1.
        pairs: (classes, classes), of each margin as a function of the last linear layers' input.
    """

    steps: np.ndarray
    shortcuts: np.ndarray
    reach: np.ndarray
    pairs: np.ndarray


class Network:
    """The steps of a classifier, their operations, and how they hang together.

    Attributes:
        sources: for each step the earlier step that its shortcut starts from, or None.
        tail: the last linear layers are the steps behind this one.
    """

    def __init__(self, steps: Sequence[Step]):
        self.steps = tuple(steps)
        self.operations: list[Operation] = [operation_of(step) for step in steps]
        uses = [0] * (len(steps) + 1)  # the last is INPUT's
        for step in steps:
            for source in step.inputs:
                uses[source] += 1
        self.uses = uses
        self.runs = [self._run_to(at) for at in range(len(steps))]
        self.sources = [self._source(run) for run in self.runs]
        self.tail = self._tail()

    def _run_to(self, at: int) -> list[int]:
        """The linear steps in a row that end in this one, of which nothing else is used."""
        run: list[int] = []
        while at != INPUT and isinstance(self.operations[at], Affine):
            run.insert(0, at)
            at = self.steps[at].inputs[0]
            if at == INPUT or self.uses[at] != 1:
                break
        return run

    def _matters(self, run: list[int]) -> list[int]:
        return [at for at in run if not isinstance(self.operations[at], Shuffle)]

    def _source(self, run: list[int]) -> int | None:
        """Where the shortcut to the end of a run starts, if it has one."""
        matters = self._matters(run)
        if len(matters) < 2 or matters[-1] != run[-1]:
            return None
        first = self.steps[run[0]]
        small = math.prod(first.input_shape) * math.prod(self.steps[run[-1]].output_shape) <= MATRIX
        if small:
            return first.inputs[0]
        if self._foldable(run):
            return self.steps[run[-2]].inputs[0]
        return None

    def _foldable(self, run: list[int]) -> bool:
        last, before = self.operations[run[-1]], self.operations[run[-2]]
        return (
            isinstance(last, Scaling)
            and isinstance(last.layer, keras.layers.BatchNormalization)
            and isinstance(before, Dense | Convolutional)
        )

    def _tail(self) -> int:
        run = self.runs[-1]
        classes = self.steps[-1].output_shape[-1]
        for at in run:
            if classes * math.prod(self.steps[at].input_shape) <= TAIL:
                return self.steps[at].inputs[0]
        return len(self.steps) - 1

    @property
    def tail_steps(self) -> list[int]:
        run = self.runs[-1]
        first = next((at for at in run if self.steps[at].inputs[0] == self.tail), None)
        return [] if first is None else run[run.index(first) :]

    def constants(self) -> Constants:
        """Norms of the weights as they are now; what was computed for the same weights is kept.

        Raises:
            UnsupportedLayerError, ValueError: see `operator_norm_upper_bound`.
        """
        count = len(self.steps)
        each = np.array([operation.constant() for operation in self.operations], np.float64)
        shortcuts = np.full(count, np.inf)
        reach = np.ones(count + 1)
        for at, step in enumerate(self.steps):
            incoming = [reach[source] for source in step.inputs]
            reach[at] = self.operations[at].reach(incoming, each[at])
            if self.sources[at] is not None:
                shortcuts[at] = self._shortcut(at)
                reach[at] = min(reach[at], shortcuts[at] * reach[self.sources[at]])
        # one rounding a step
        reach[:-1] *= 1 + SLACK
        return Constants(each, shortcuts, reach, self._pairs())

    def _shortcut(self, at: int) -> float:
        run = self.runs[at]
        first = self.steps[run[0]]
        if self.sources[at] != first.inputs[0] or (len(run) == 2 and self._foldable(run)):
            convolution, normalisation = (self.operations[k].layer for k in run[-2:])
            return folded_norm(convolution, normalisation, self.steps[run[-2]].input_shape)
        weights = [
            np.asarray(weight)
            for k in run
            for weight in getattr(self.operations[k].layer, "weights", [])
        ]
        described = tuple(
            (type(self.operations[k].layer).__name__, *self.steps[k].input_shape) for k in run
        )
        settings = tuple(repr(self._settings(k)) for k in run)
        return cached_norm("run", weights, (described, settings), lambda *_: self._written_out(run))

    def _settings(self, at: int) -> Any:
        layer = self.operations[at].layer
        config = layer.get_config() if hasattr(layer, "get_config") else {}
        return {key: value for key, value in config.items() if key not in ("name", "dtype")}

    def _written_out(self, run: list[int]) -> float:
        outputs = math.prod(self.steps[run[-1]].output_shape)
        rows = tf.reshape(tf.eye(outputs), (outputs, *self.steps[run[-1]].output_shape))
        matrix, errors = self._pulled_back(run, rows)
        return largest_singular_value(matrix) + float(np.linalg.norm(errors))

    def _pulled_back(self, run: list[int], rows: tf.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Rows before these linear steps, float64, and what single precision may have lost."""
        errors = tf.zeros_like(rows)
        for at in reversed(run):
            like = tf.zeros((1, *self.steps[at].input_shape))
            if at in self._matters(run):
                errors = self.operations[at].adjoint_error(like, rows, errors)
            else:
                errors = self.operations[at].adjoint(like, errors)
            rows = self.operations[at].adjoint(like, rows)
        count = len(rows)
        return tuple(np.reshape(each, (count, -1)).astype(np.float64) for each in (rows, errors))

    def _pairs(self) -> np.ndarray:
        classes = self.steps[-1].output_shape[-1]
        tail = self.tail_steps
        rows, errors = self._pulled_back(tail, tf.eye(classes))
        gram = rows @ rows.T
        squares = np.diag(gram)
        both = squares[:, None] + squares[None]
        distances = np.sqrt(np.maximum(both - 2 * gram, 0))
        for first, second in np.argwhere(distances**2 < 1e-6 * both):  # lost to cancellation
            distances[first, second] = np.linalg.norm(rows[first] - rows[second])
        # one layer's rows are copied, not summed
        lost = np.linalg.norm(errors, axis=1) if len(self._matters(tail)) > 1 else np.zeros(classes)
        return distances * (1 + 1e-9) + lost[:, None] + lost[None]
