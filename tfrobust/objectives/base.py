"""What training minimises: the cross-entropy plus weighted penalties, added with `+`.

    objective = CrossEntropy() + DoubleBackprop(1e4, penalty_scale="batch_mean") + WeightDecay(1e-6)

A term is a scalar function of one batch's `ForwardPass`, which holds what terms share: logits,
losses and input gradients are computed once a batch however many terms ask for them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal

import keras
import tensorflow as tf

from tfrobust.distribution import replicas
from tfrobust.errors import InputError, InputTypeError
from tfrobust.layers import exact_batch_statistics
from tfrobust.norms import flatten, inner

__all__ = [
    "AlignmentPenalty",
    "CrossEntropy",
    "DoubleBackprop",
    "ForwardPass",
    "LastLayerRobustness",
    "Objective",
    "WeightDecay",
]


class ForwardPass:
    """One batch through a model, with input gradients that can be differentiated again.

    Args:
        logits_model: returns logits (batch, classes).
        x: (batch, *input) float32.
        labels: (batch,) int32.
        training: dropout and batch statistics on.
        input_gradients: watch x; without it no term may ask for a gradient.
        gradient_scale: input gradients are computed this many times as large and divided again, so
            that they do not underflow in half precision.
    """

    def __init__(
        self,
        logits_model: keras.Model,
        x: tf.Tensor,
        labels: tf.Tensor,
        *,
        training: bool,
        input_gradients: bool,
        gradient_scale: tf.Tensor | None = None,
    ):
        self.model = logits_model
        self._scale = gradient_scale
        self._made: dict[str, tf.Tensor] = {}
        self.x = x
        self.labels = labels
        self._tape = tf.GradientTape(persistent=True) if input_gradients else None
        if self._tape is None:
            self.logits = self._logits(training)
            self.losses = self._cross_entropy()
        else:
            statistics = exact_batch_statistics(logits_model) if training else nullcontext()
            with statistics, self._tape:
                self._tape.watch(x)
                self.logits = self._logits(training)
                self.losses = self._cross_entropy()
                self._label_logits = tf.gather(self.logits, labels, batch_dims=1)

    def _logits(self, training: bool) -> tf.Tensor:
        # losses and penalties need the input's precision, whatever the model computes in
        return tf.cast(self.model(self.x, training=training), self.x.dtype)

    def _cross_entropy(self) -> tf.Tensor:
        """Cross-entropy of each example, (batch,)."""
        return tf.nn.sparse_softmax_cross_entropy_with_logits(self.labels, self.logits)

    @property
    def loss_gradients(self) -> tf.Tensor:
        """Gradient of each example's cross-entropy with respect to the example, like x."""
        return self._once("loss", lambda: self._gradient(self.losses))

    @property
    def logit_gradients(self) -> tf.Tensor:
        """Gradient of the label's logit with respect to the example, like x."""
        return self._once("logit", lambda: self._gradient(self._label_logits))

    def _once(self, name: str, make: Callable[[], tf.Tensor]) -> tf.Tensor:
        # not functools.cached_property: Python 3.11's holds a lock that all replicas share, and
        # they wait for one another inside
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def _gradient(self, values: tf.Tensor) -> tf.Tensor:
        if self._tape is None:
            raise RuntimeError("set input_gradients=True: a term needs input gradients")
        if self._scale is None:
            return self._tape.gradient(values, self.x)
        scaled = tf.fill(tf.shape(values), tf.cast(self._scale, values.dtype))
        return self._tape.gradient(values, self.x, scaled) / self._scale


class _Term:
    """Base of all terms: makes them add up to an `Objective`."""

    needs_input_gradients = False
    weight: float

    @property
    def name(self) -> str:
        """Label of the term in progress bars, TensorBoard and results."""
        words = type(self).__name__
        return "".join(f"_{c.lower()}" if c.isupper() else c for c in words).lstrip("_")

    def __call__(self, batch: ForwardPass) -> tf.Tensor:
        raise InputTypeError(f"{type(self).__name__} must define its value")

    def __add__(self, other: _Term | Objective) -> Objective:
        return Objective((self,)) + other


@dataclasses.dataclass(frozen=True)
class Objective:
    """A sum of terms. `Objective.parts(batch)` gives each term's weighted value by name."""

    terms: tuple[_Term, ...]

    def __post_init__(self) -> None:
        names = [term.name for term in self.terms]
        if len(set(names)) != len(names):
            raise InputError(f"an objective takes each kind of term once, got {names}")

    def __add__(self, other: _Term | Objective) -> Objective:
        if isinstance(other, Objective):
            return Objective(self.terms + other.terms)
        if isinstance(other, _Term):
            return Objective((*self.terms, other))
        return NotImplemented

    @property
    def needs_input_gradients(self) -> bool:
        """Whether some term differentiates with respect to the input."""
        return any(term.needs_input_gradients for term in self.terms)

    def forward(
        self,
        logits_model: keras.Model,
        x: tf.Tensor,
        labels: tf.Tensor,
        *,
        training: bool,
        gradient_scale: tf.Tensor | None = None,
    ) -> ForwardPass:
        """The pass that this objective's terms need: x (batch, *input), labels (batch,)."""
        return ForwardPass(
            logits_model,
            x,
            labels,
            training=training,
            input_gradients=self.needs_input_gradients,
            gradient_scale=gradient_scale,
        )

    def parts(self, batch: ForwardPass) -> dict[str, tf.Tensor]:
        """Weighted value of each term; their sum is what training minimises."""
        return {term.name: term(batch) for term in self.terms}

    def describe(self) -> list[dict[str, Any]]:
        """Plain settings of all terms, for run folders and error messages."""
        return [{"term": term.name, **dataclasses.asdict(term)} for term in self.terms]


def _check_weight(weight: float) -> None:
    if not 0 <= weight < float("inf"):
        raise InputError(f"weight must be finite and not negative, got {weight}")


@dataclasses.dataclass(frozen=True)
class CrossEntropy(_Term):
    """weight * mean over the batch of the cross-entropy L_i of logits and labels."""

    weight: float = 1.0

    def __post_init__(self) -> None:
        _check_weight(self.weight)

    def __call__(self, batch: ForwardPass) -> tf.Tensor:
        return self.weight * tf.reduce_mean(batch.losses)


@dataclasses.dataclass(frozen=True)
class DoubleBackprop(_Term):
    """Double backpropagation: the mean squared l2 norm of the cross-entropy's input gradient.

    Args:
        weight: lambda.
        penalty_scale: "per_example" is lambda * mean_i ||grad_x L_i||^2, as Etmann 2019 prints it.
            "batch_mean" is what the released code computes: it differentiates the batch
            mean of the loss, which makes the penalty smaller by N^2 for a mean over N examples.
            The lambdas that the paper quotes are the code's.
        examples_per_mean: N. The global batch where None, so that the same settings mean the same
            on any number of devices; the released code took the batch of one device (16 on
            ImageNet, half the global batch).

    Source: Drucker and LeCun 1992; Etmann 2019, section 5.
    """

    weight: float
    penalty_scale: Literal["per_example", "batch_mean"] = "per_example"
    examples_per_mean: int | None = None
    needs_input_gradients = True

    def __post_init__(self) -> None:
        _check_weight(self.weight)
        if self.penalty_scale not in ("per_example", "batch_mean"):
            raise InputError(
                f'penalty_scale must be "per_example" or "batch_mean", got {self.penalty_scale!r}'
            )
        if self.examples_per_mean is not None and self.examples_per_mean < 1:
            raise InputError(f"examples_per_mean must be at least 1, got {self.examples_per_mean}")

    def __call__(self, batch: ForwardPass) -> tf.Tensor:
        squares = tf.reduce_sum(tf.square(flatten(batch.loss_gradients)), axis=1)
        penalty = self.weight * tf.reduce_mean(squares)
        if self.penalty_scale == "batch_mean":
            count = self.examples_per_mean or tf.shape(batch.x)[0] * replicas()
            penalty /= tf.square(tf.cast(count, penalty.dtype))
        return penalty


@dataclasses.dataclass(frozen=True)
class WeightDecay(_Term):
    """weight * sum of squares of all trainable weights, biases included (Etmann 2019's code)."""

    weight: float

    def __post_init__(self) -> None:
        _check_weight(self.weight)

    def __call__(self, batch: ForwardPass) -> tf.Tensor:
        squares = [tf.reduce_sum(tf.square(v.value)) for v in batch.model.trainable_variables]
        return self.weight * tf.add_n(squares)


@dataclasses.dataclass(frozen=True)
class AlignmentPenalty(_Term):
    """lambda * mean_i (||x||^2 ||grad Psi||^2 - <x, grad Psi>^2), Psi the label's logit.

    Not negative by Cauchy-Schwarz, and zero where the saliency map is parallel to the input.

    Source: Etmann 2019, outlook.
    """

    weight: float
    needs_input_gradients = True

    def __post_init__(self) -> None:
        _check_weight(self.weight)

    def __call__(self, batch: ForwardPass) -> tf.Tensor:
        gradient = batch.logit_gradients
        products = inner(batch.x, batch.x) * inner(gradient, gradient)
        return self.weight * tf.reduce_mean(products - tf.square(inner(batch.x, gradient)))


@dataclasses.dataclass(frozen=True)
class LastLayerRobustness(_Term):
    """-weight * mean_i delta(h_i), the distance of the last hidden layer's output to a boundary.

    delta = min over j of (z_y - z_j) / ||w_y - w_j||, y the label and w the last layer's columns:
    negative where the example is misclassified. To minimise the term is to push delta up.

    Raises (when called):
        ValueError: the model does not end in a dense layer.

    Source: Peck 2017, Theorem 3.6 and section 4.5.
    """

    weight: float

    def __post_init__(self) -> None:
        _check_weight(self.weight)

    def __call__(self, batch: ForwardPass) -> tf.Tensor:
        last = batch.model.layers[-1] if getattr(batch.model, "layers", None) else None
        last = getattr(last, "layer", last)  # a softmax was left out
        if not isinstance(last, keras.layers.Dense):
            raise InputError(
                "the last layer's robustness needs a model that ends in a dense layer, got "
                f"{type(last).__name__}"
            )
        kernel = tf.transpose(tf.convert_to_tensor(last.kernel))
        squares = tf.reduce_sum(tf.square(kernel[:, None] - kernel[None]), axis=2)
        # a class's distance to itself is not used; a root has no derivative at zero
        distances = tf.sqrt(squares + tf.eye(kernel.shape[0], dtype=squares.dtype))
        own = tf.gather(batch.logits, batch.labels, batch_dims=1)[:, None]
        delta = (own - batch.logits) / tf.gather(distances, batch.labels)
        others = tf.one_hot(batch.labels, kernel.shape[0], on_value=False, off_value=True)
        delta = tf.where(others, delta, delta.dtype.max)
        return -self.weight * tf.reduce_mean(tf.reduce_min(delta, axis=1))
