"""One batch through a model, shared by all terms of an objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext

import keras
import tensorflow as tf

from tfrobust.classifier import exact_batch_statistics
from tfrobust.errors import InputError

__all__ = ["ForwardPass"]


class _Tensors(dict[str, tf.Tensor]):
    """Tensors by name; the error for a missing one lists the names."""

    def __missing__(self, name: str) -> tf.Tensor:
        raise InputError(
            f"a term of the objective reads the tensor {name!r}, but the data has only "
            f"{', '.join(self)}: add it to the data of fit under that name"
        )


class ForwardPass:
    """One batch through a model, with input gradients that can be differentiated again.

    Args:
        logits_model: returns logits (batch, classes).
        tensors: "images" (batch, *input) float32, "labels" (batch,) int32, and any others that
            the data has, one row per example.
        training: dropout and batch statistics on.
        input_gradients: watch the images; False where no term reads input gradients.
        gradient_scale: losses are multiplied by it and their input gradients divided by it, so that
            these do not underflow in half precision.
        seed: (2,) int32, of what terms draw; different in every step of training, equal on all
            devices. Zeros where None.

    Attributes:
        model: the logits model.
        tensors: all tensors of the batch by name.
        x: the images.
        labels: the labels.
        logits: (batch, classes), in the images' precision.
        losses: cross-entropy of each example, (batch,).
        seed: (2,) int32.
        training: whether dropout and batch statistics are on.
    """

    def __init__(
        self,
        logits_model: keras.Model,
        tensors: Mapping[str, tf.Tensor],
        *,
        training: bool,
        input_gradients: bool,
        gradient_scale: tf.Tensor | None = None,
        seed: tf.Tensor | None = None,
    ):
        self.seed = tf.zeros([2], tf.int32) if seed is None else seed
        self.model, self.training = logits_model, training
        self.tensors = _Tensors(tensors)
        self.x, self.labels = self.tensors["images"], self.tensors["labels"]
        self._scale = gradient_scale
        self._computed: dict[str, tf.Tensor] = {}
        self._tape = tf.GradientTape(persistent=True) if input_gradients else None
        if self._tape is None:
            self.logits = self._logits(training)
            self.losses = self._cross_entropy()
        else:
            statistics = exact_batch_statistics() if training else nullcontext()
            with statistics, self._tape:
                self._tape.watch(self.x)
                self.logits = self._logits(training)
                self.losses = self._cross_entropy()
                self._label_logits = tf.gather(self.logits, self.labels, batch_dims=1)

    def _logits(self, training: bool) -> tf.Tensor:
        # losses and penalties need the precision of the input also where layers compute in less
        return tf.cast(self.model(self.x, training=training), self.x.dtype)

    def _cross_entropy(self) -> tf.Tensor:
        return tf.nn.sparse_softmax_cross_entropy_with_logits(self.labels, self.logits)

    @property
    def targets(self) -> tf.Tensor:
        """The tensor "targets" of the data, in the images' precision: target saliency maps."""
        return tf.cast(self.tensors["targets"], self.x.dtype)

    @property
    def loss_gradients(self) -> tf.Tensor:
        """Gradient of each example's cross-entropy with respect to the example, (batch, *input)."""
        return self.once("loss", lambda: self._pull_back(self.losses))

    @property
    def logit_gradients(self) -> tf.Tensor:
        """Gradient of the label's logit with respect to the example, (batch, *input)."""
        return self.once("logit", lambda: self._pull_back(self._label_logits))

    def gradient_along(self, direction: tf.Tensor) -> tf.Tensor:
        """Gradient of each example's <v, logits> with respect to the example, (batch, *input).

        Args:
            direction: v, (batch, classes), taken as constant.
        """
        return self._pull_back(self.logits, direction)

    def once(self, name: str, compute: Callable[[], tf.Tensor]) -> tf.Tensor:
        """What `compute` returns, computed once per batch under this name."""
        # not functools.cached_property: in Python 3.11 it holds one lock for all replicas, which
        # have to wait for one another while the property is computed
        if name not in self._computed:
            self._computed[name] = compute()
        return self._computed[name]

    def _pull_back(self, values: tf.Tensor, cotangent: tf.Tensor | None = None) -> tf.Tensor:
        """Gradient of sum(cotangent * values); of the sum of the values where None."""
        if self._tape is None:
            raise RuntimeError("set input_gradients=True: a term needs input gradients")
        if self._scale is None:
            return self._tape.gradient(values, self.x, cotangent)
        scale = tf.cast(self._scale, values.dtype)
        scaled = tf.fill(tf.shape(values), scale) if cotangent is None else scale * cotangent
        return self._tape.gradient(values, self.x, scaled) / self._scale
