"""What training minimises: a sum of terms, each a scalar function of one batch.

    objective = CrossEntropy() + DoubleBackprop(1e4, penalty_scale="batch_mean") + WeightDecay(1e-6)

All terms of an objective read the same `ForwardPass`: logits, losses and input gradients are
computed once per batch for any number of terms.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust.errors import InputError, InputTypeError
from tfrobust.objectives.forward_pass import ForwardPass

__all__ = ["Objective", "Term", "check_weight"]

_CLEAN = ("accuracy",)


class Term:
    """Base class of all terms of an objective; terms are added with `+`.

    A term is a frozen dataclass whose fields are its settings, plain data that is stored in
    checkpoints. Called with a `ForwardPass` it returns its weighted value, a scalar: a mean over
    the batch, on several devices over each device's part of it. It reads the logits, losses and
    input gradients of the pass, and any tensor of the data by its name; one that reads input
    gradients sets `needs_input_gradients = True`. A term may also replace tensors of the batch
    before the pass (`prepare`); one that does only that sets `has_value = False`.

    A custom term, with stored class probabilities as targets in addition to the labels:

        @dataclasses.dataclass(frozen=True)
        class Distillation(Term):
            weight: float = 1.0

            def __call__(self, batch):
                targets = batch.tensors["targets"]
                losses = tf.nn.softmax_cross_entropy_with_logits(targets, batch.logits)
                return self.weight * tf.reduce_mean(losses)

        data = {"images": images, "labels": labels, "targets": probabilities}
        objective = CrossEntropy(0.5) + Distillation(0.5)
        fit(model, data, objective, optimizer=keras.optimizers.SGD(0.1), epochs=1)
    """

    needs_input_gradients = False
    has_value = True

    @property
    def name(self) -> str:
        """Name of the term in records, progress bars and TensorBoard: the class in snake case."""
        class_name = type(self).__name__
        return "".join(f"_{c.lower()}" if c.isupper() else c for c in class_name).lstrip("_")

    def named(self, name: str) -> Term:
        """The same term under another name, so that an objective can have two terms of one class.

        Raises:
            ValueError: the name is not a Python identifier.
        """
        return _Named(self, name)

    def describe(self) -> dict[str, Any]:
        """Its name and settings, for run folders and error messages."""
        return {"term": self.name, **dataclasses.asdict(self)}

    @property
    def measured_names(self) -> tuple[str, ...]:
        """Names in records of what the term measures besides its value."""
        return ()

    def measured(self, batch: ForwardPass) -> dict[str, tf.Tensor]:
        """In a graph: a mean over the batch under each of `measured_names`; not minimised."""
        return {}

    @property
    def accuracy_names(self) -> tuple[str, ...]:
        """Names in records of accuracies on the batch; none where the term perturbs no images."""
        return ()

    def accuracies(self, batch: ForwardPass, hits: tf.Tensor) -> dict[str, tf.Tensor]:
        """In a graph: an accuracy under each of `accuracy_names`, whose mean over devices is right.

        Args:
            batch: the pass.
            hits: (batch,) float32, 1 for each image that is classified correctly.
        """
        return {}

    def check_images(self, images: np.ndarray) -> None:
        """Refuse images (count, *input) that the term cannot take; called before training.

        Raises:
            ValueError: says why.
        """

    def prepare(
        self, logits_model: keras.Model, tensors: Mapping[str, tf.Tensor], seed: tf.Tensor
    ) -> Mapping[str, tf.Tensor]:
        """In a graph: the batch that all terms read, by default unchanged.

        Args:
            logits_model: returns logits (batch, classes).
            tensors: of the batch, on several devices of this device's part of it.
            seed: (2,) int32, different in every step of training, equal on all devices.
        """
        return tensors

    def __call__(self, batch: ForwardPass) -> tf.Tensor:
        raise InputTypeError(f"{type(self).__name__} must define its value")

    def __add__(self, other: Term | Objective) -> Objective:
        return Objective((self,)) + other


@dataclasses.dataclass(frozen=True)
class _Named(Term):
    """A term under a name of the user's choice."""

    term: Term
    label: str

    def __post_init__(self) -> None:
        if not self.label.isidentifier():
            raise InputError(
                f"a term's name must be letters, digits and underscores, got {self.label!r}"
            )

    @property
    def name(self) -> str:
        return self.label

    @property
    def needs_input_gradients(self) -> bool:
        return self.term.needs_input_gradients

    def describe(self) -> dict[str, Any]:
        settings = self.term.describe()
        return {"term": self.label, "kind": settings.pop("term"), **settings}

    @property
    def has_value(self) -> bool:
        return self.term.has_value

    @property
    def measured_names(self) -> tuple[str, ...]:
        return tuple(f"{self.label}_{name}" for name in self.term.measured_names)

    def measured(self, batch: ForwardPass) -> dict[str, tf.Tensor]:
        found = self.term.measured(batch)
        return {f"{self.label}_{name}": value for name, value in found.items()}

    @property
    def accuracy_names(self) -> tuple[str, ...]:
        return self.term.accuracy_names

    def accuracies(self, batch: ForwardPass, hits: tf.Tensor) -> dict[str, tf.Tensor]:
        return self.term.accuracies(batch, hits)

    def check_images(self, images: np.ndarray) -> None:
        self.term.check_images(images)

    def prepare(
        self, logits_model: keras.Model, tensors: Mapping[str, tf.Tensor], seed: tf.Tensor
    ) -> Mapping[str, tf.Tensor]:
        return self.term.prepare(logits_model, tensors, seed)

    def __call__(self, batch: ForwardPass) -> tf.Tensor:
        return self.term(batch)


@dataclasses.dataclass(frozen=True)
class Objective:
    """A sum of terms with different names.

    Args:
        terms: two terms of one class need names: `CrossEntropy() + CrossEntropy().named("second")`.

    Raises:
        TypeError: a term is not a `Term` or not a dataclass.
        ValueError: two terms have the same name.
    """

    terms: tuple[Term, ...]

    def __post_init__(self) -> None:
        for term in self.terms:
            if not (isinstance(term, Term) and dataclasses.is_dataclass(term)):
                raise InputTypeError(
                    f"{type(term).__name__} is not a term: derive it from Term and make it a "
                    "dataclass, so that its settings can be written down"
                )
        if sum(bool(term.accuracy_names) for term in self.terms) > 1:
            raise InputError("an objective can have one term that perturbs images, not several")
        names = set()
        for term in self.terms:
            if term.name in names:
                raise InputError(
                    f"an objective has two terms named {term.name!r}: name one of them, as in "
                    f'{type(term).__name__}(...).named("second")'
                )
            names.add(term.name)
        for name in self.measured_names:
            if name in names:
                raise InputError(
                    f"records of this objective would have two columns {name!r}: give one of its "
                    'terms another name, as in term.named("second")'
                )
            names.add(name)

    def __add__(self, other: Term | Objective) -> Objective:
        if isinstance(other, Objective):
            return Objective(self.terms + other.terms)
        if isinstance(other, Term):
            return Objective((*self.terms, other))
        return NotImplemented

    @property
    def needs_input_gradients(self) -> bool:
        """Whether some term differentiates with respect to the input."""
        return any(term.needs_input_gradients for term in self.terms)

    def forward(
        self,
        logits_model: keras.Model,
        tensors: Mapping[str, tf.Tensor],
        *,
        training: bool,
        gradient_scale: tf.Tensor | None = None,
        seed: tf.Tensor | None = None,
    ) -> ForwardPass:
        """The pass that this objective's terms need, on the batch that they prepare.

        Args:
            seed: (2,) int32, for what terms draw; zeros where None.

        The other arguments are those of `ForwardPass`.
        """
        seed = tf.zeros([2], tf.int32) if seed is None else seed
        for term in self.terms:
            tensors = term.prepare(logits_model, tensors, seed)
        return ForwardPass(
            logits_model,
            tensors,
            training=training,
            input_gradients=self.needs_input_gradients,
            gradient_scale=gradient_scale,
            seed=seed,
        )

    def parts(self, batch: ForwardPass) -> dict[str, tf.Tensor]:
        """Weighted value of each term by name; training minimises their sum."""
        return {term.name: term(batch) for term in self.terms if term.has_value}

    @property
    def accuracy_names(self) -> tuple[str, ...]:
        """Accuracies on the batch: "accuracy", or those of the term that perturbs images."""
        return next((term.accuracy_names for term in self.terms if term.accuracy_names), _CLEAN)

    def accuracies(self, batch: ForwardPass) -> dict[str, tf.Tensor]:
        """Share of correctly classified images under each of `accuracy_names`."""
        hits = tf.argmax(batch.logits, axis=1, output_type=tf.int32) == batch.labels
        hits = tf.cast(hits, tf.float32)
        for term in self.terms:
            if term.accuracy_names:
                return term.accuracies(batch, hits)
        return {"accuracy": tf.reduce_mean(hits)}

    @property
    def measured_names(self) -> tuple[str, ...]:
        """Names in records of what terms measure besides their values."""
        return tuple(name for term in self.terms for name in term.measured_names)

    def measured(self, batch: ForwardPass) -> dict[str, tf.Tensor]:
        """Means over the batch under each of `measured_names`."""
        return {name: value for term in self.terms for name, value in term.measured(batch).items()}

    @property
    def names(self) -> list[str]:
        """Names of the terms that have a value."""
        return [term.name for term in self.terms if term.has_value]

    def describe(self) -> list[dict[str, Any]]:
        """Plain settings of all terms, for run folders and error messages."""
        return [term.describe() for term in self.terms]


def check_weight(weight: float) -> None:
    """Refuse a weight that is negative or not finite."""
    if not 0 <= weight < float("inf"):
        raise InputError(f"weight must be finite and not negative, got {weight}")
