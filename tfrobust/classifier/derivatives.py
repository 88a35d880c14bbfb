"""Input gradients, Jacobians, Jacobian-vector and vector-Jacobian products of any classifier.

All of them differentiate logits in inference mode, run compiled in batches, and are built once
for a model: later calls neither retrace nor rebuild.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from tfrobust.classifier.inputs import as_images, as_labels, in_batches
from tfrobust.classifier.keras_internals import all_layers
from tfrobust.classifier.logits import NotLogitsError, logits_model
from tfrobust.distribution import is_spread, spread
from tfrobust.errors import InputError

__all__ = [
    "NotLogitsError",
    "class_gradients",
    "classes_of",
    "compiled",
    "gradients_at",
    "input_gradient",
    "jacobian",
    "jvp",
    "logits_model",
    "predict_logits",
    "push_forward",
    "vjp",
]

_ADAPTED = (keras.layers.Normalization, keras.layers.Rescaling)
# backward passes that share one forward pass in one graph
CHUNK = 16


class _Compiled:
    """The compiled functions of one model. Opaque, so that Keras saves nothing of it."""

    def __init__(self, model: keras.Model, x: np.ndarray):
        self.logits = logits_model(model, x)
        # the tensors whose ids these are stay alive here, so that no id comes again
        self.outputs = list(getattr(model, "outputs", None) or [])
        self.signature = _signature(model)
        self.constants = _constants(model)
        self.functions: dict[Any, _AnyBatch] = {}


class _AnyBatch:
    """A graph function traced once for all batch sizes; other shapes get a trace of their own.

    Inside the scope of a strategy with several devices the rows are cut among them.
    """

    def __init__(self, function: Callable[..., Any], rowwise: int | None):
        self.plain = function
        self.function = tf.function(function)
        self.rowwise = rowwise
        self.traces: dict[Any, Callable[..., Any]] = {}

    def __call__(self, *tensors: tf.Tensor) -> Any:
        if is_spread() and self.rowwise != 0:
            strategy = tf.distribute.get_strategy()  # kept as a key, so that its id stays its own
            if strategy not in self.traces:
                self.traces[strategy] = spread(self.plain, self.rowwise)
            return self.traces[strategy](*tensors)
        specs = tuple(
            tf.TensorSpec([None, *tensor.shape[1:]] if tensor.shape.rank else [], tensor.dtype)
            for tensor in tensors
        )
        if specs not in self.traces:
            self.traces[specs] = self.function.get_concrete_function(*specs)
        return self.traces[specs](*tensors)


def _signature(model: keras.Model) -> Any:
    outputs = getattr(model, "outputs", None)
    return tuple(id(output) for output in outputs) if outputs else None


def _constants(model: keras.Model) -> list[Any]:
    """What a graph takes in as it is when traced, though a model may be given others later."""
    names = ("activation", "lora_enabled", "quantization_mode")
    adapted = ("mean", "variance", "scale", "offset")
    found = []
    for layer in all_layers(model):
        takes = names + adapted if isinstance(layer, _ADAPTED) else names
        found += [getattr(layer, name, None) for name in takes]
    return [*found, *model.variables]


def _compiled_of(model: keras.Model, x: np.ndarray) -> _Compiled:
    cache = model.__dict__.get("_tfrobust_compiled")
    now = _constants(model)
    same = cache is not None and len(cache.constants) == len(now)
    same = same and all(one is other for one, other in zip(cache.constants, now, strict=True))
    if not same or cache.signature != _signature(model):
        cache = _Compiled(model, x)
        # past Keras's tracker, which would take this for a part of the model
        object.__setattr__(model, "_tfrobust_compiled", cache)
    return cache


def compiled(
    model: keras.Model,
    key: Any,
    build: Callable[[keras.Model], Callable[..., Any]],
    x: Any,
    *,
    rowwise: int | None = None,
) -> Callable[..., Any]:
    """The graph function `build(logits)` of a model, traced once whatever the batch size.

    Under a `tf.distribute` strategy it runs on all devices of this host, each on some of the rows.

    Args:
        model: any classifier.
        key: names the function; the same key gives the same function again.
        build: takes the logits view, returns a function of tensors (batch, ...).
        x: inputs (batch, ...), checked already.
        rowwise: how many leading arguments have one row an example, as every result does; all
            arguments but scalars where None; 0 keeps it on one device.
    """
    cache = _compiled_of(model, x)
    if key not in cache.functions:
        cache.functions[key] = _AnyBatch(build(cache.logits), rowwise)
    return cache.functions[key]


def classes_of(model: keras.Model, x: Any) -> int:
    """Number of classes of a classifier; `x` is a batch (batch, ...) that it can take."""
    logits = _compiled_of(model, x).logits
    shape = getattr(logits, "output_shape", None) if hasattr(logits, "outputs") else None
    if shape and shape[-1] is not None:
        return int(shape[-1])
    return int(predict_logits(model, x[:1]).shape[1])


def gradients_at(
    logits: keras.Model, x: tf.Tensor
) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """In a graph: the logits at x, and a function from cotangents to input gradients.

    The forward pass is shared by as many cotangents (batch, classes) as are asked for. Logits come
    in the precision of x, whatever the model computes in.
    """
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        values = tf.cast(logits(x, training=False), x.dtype)

    def pull_back(cotangent: tf.Tensor) -> tf.Tensor:
        return tape.gradient(
            values, x, cotangent, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )

    return values, pull_back


def class_gradients(
    pull_back: Callable[[tf.Tensor], tf.Tensor], values: tf.Tensor, class_index: tf.Tensor
) -> tf.Tensor:
    """In a graph: the gradient of one class's logit; `class_index` is () or (batch,)."""
    one_hot = tf.one_hot(class_index, values.shape[1], dtype=values.dtype)
    return pull_back(tf.broadcast_to(one_hot, tf.shape(values)))


def push_forward(
    function: Callable[[], tf.Tensor], sources: Any, tangents: Any, watched: Any
) -> tuple[tf.Tensor, tf.Tensor]:
    """In a graph: `function()` and its derivative along `tangents` of `sources`.

    The derivative of a vector-Jacobian product with respect to its cotangent, which is linear in
    it: about 2.4 times faster than forward accumulation (double-VJP; Townsend 2017).
    """
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner_tape:
            for source in watched:
                inner_tape.watch(source)
            values = function()
        cotangent = tf.ones_like(values)
        outer.watch(cotangent)
        pulled = inner_tape.gradient(
            values, sources, cotangent, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
    derivative = outer.gradient(
        pulled, cotangent, tangents, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
    return values, derivative


def predict_logits(model: keras.Model, x: Any, *, batch_size: int = 100) -> np.ndarray:
    """Logits of a classifier in inference mode: (batch, ...) -> (batch, classes) float32.

    Raises:
        ValueError: x has the wrong shape, is empty, or is not finite.
        NotLogitsError: the model has no logits to give.
    """
    x = as_images(model, x)

    def build(logits: keras.Model) -> Callable[..., Any]:
        return lambda rows: tf.cast(logits(rows, training=False), tf.float32)

    run = compiled(model, "logits", build, x)
    return in_batches(run, x, batch_size=batch_size, description="logits")


def jacobian(model: keras.Model, x: Any, *, batch_size: int = 100) -> np.ndarray:
    """Jacobian of the logits: (batch, *input) -> (batch, classes, *input).

    One backward pass a class over shared forward passes, which beats `batch_jacobian`.

    Raises:
        ValueError: x has the wrong shape, is empty, or is not finite.
        NotLogitsError: the model has no logits to give.
    """
    x = as_images(model, x)
    classes = classes_of(model, x)
    chunks = [range(start, min(start + CHUNK, classes)) for start in range(0, classes, CHUNK)]

    def build(size: int) -> Callable[[keras.Model], Callable[..., Any]]:
        def of(logits: keras.Model) -> Callable[..., Any]:
            def run(rows: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
                values, pull_back = gradients_at(logits, rows)
                each = [class_gradients(pull_back, values, first + k) for k in range(size)]
                return tf.stack(each, axis=1)

            return run

        return of

    def rows_jacobian(rows: tf.Tensor) -> np.ndarray:
        parts = []
        for chunk in chunks:
            run = compiled(model, ("jacobian", len(chunk)), build(len(chunk)), x)
            parts.append(np.asarray(run(rows, tf.constant(chunk[0]))))
        return np.concatenate(parts, axis=1)

    return in_batches(rows_jacobian, x, batch_size=batch_size, description="Jacobian")


def vjp(model: keras.Model, x: Any, v: Any, *, batch_size: int = 100) -> np.ndarray:
    """Vector-Jacobian products v^T J of the logits: v (batch, classes) -> (batch, *input).

    Raises:
        ValueError: x or v has the wrong shape, is empty, or is not finite.
        NotLogitsError: the model has no logits to give.
    """
    x = as_images(model, x)
    v = _as_directions(v, (len(x), classes_of(model, x)))

    def build(logits: keras.Model) -> Callable[..., Any]:
        def run(rows: tf.Tensor, cotangent: tf.Tensor) -> tf.Tensor:
            values, pull_back = gradients_at(logits, rows)
            return pull_back(tf.cast(cotangent, values.dtype))

        return run

    run = compiled(model, "vjp", build, x)
    return in_batches(run, x, v, batch_size=batch_size, description="VJP")


def jvp(model: keras.Model, x: Any, v: Any, *, batch_size: int = 100) -> np.ndarray:
    """Jacobian-vector products J v of the logits: v (batch, *input) -> (batch, classes).

    Raises:
        ValueError: x or v has the wrong shape, is empty, or is not finite.
        NotLogitsError: the model has no logits to give.
    """
    x = as_images(model, x)
    v = _as_directions(v, x.shape)

    def build(logits: keras.Model) -> Callable[..., Any]:
        def run(rows: tf.Tensor, tangent: tf.Tensor) -> tf.Tensor:
            forward = push_forward(lambda: logits(rows, training=False), rows, tangent, [rows])
            return tf.cast(forward[1], tf.float32)

        return run

    run = compiled(model, "jvp", build, x)
    return in_batches(run, x, v, batch_size=batch_size, description="JVP")


def input_gradient(
    model: keras.Model,
    x: Any,
    labels: Any = None,
    *,
    of: Literal["logit", "loss"] = "logit",
    batch_size: int = 100,
) -> np.ndarray:
    """Gradient of each example's logit, or of its cross-entropy, with respect to the example.

    Args:
        model: any classifier.
        x: (batch, *input).
        labels: (batch,) classes; the predicted classes where None.
        of: "logit", the saliency map of Etmann 2019, or "loss", the cross-entropy's gradient.
        batch_size: examples a call.

    Returns:
        (batch, *input) float32.

    Raises:
        ValueError: x or labels are malformed, or `of` is unknown.
        NotLogitsError: the model has no logits to give.
    """
    if of not in ("logit", "loss"):
        raise InputError(f'of must be "logit" or "loss", got {of!r}')
    x = as_images(model, x)
    if labels is None:
        labels = np.argmax(predict_logits(model, x, batch_size=batch_size), axis=1)
    labels = as_labels(labels, len(x), classes_of(model, x))

    def build(logits: keras.Model) -> Callable[..., Any]:
        def run(rows: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
            values, pull_back = gradients_at(logits, rows)
            if of == "logit":
                return class_gradients(pull_back, values, classes)
            one_hot = tf.one_hot(classes, values.shape[1], dtype=values.dtype)
            return pull_back(tf.nn.softmax(values) - one_hot)

        return run

    run = compiled(model, ("input_gradient", of), build, x)
    return in_batches(run, x, labels, batch_size=batch_size, description=f"gradient of {of}")


def _as_directions(v: Any, shape: tuple[int, ...]) -> np.ndarray:
    v = np.asarray(v, np.float32)
    if v.shape != shape:
        raise InputError(f"v must have shape {shape}, got {v.shape}")
    if not np.isfinite(v).all():
        raise InputError("v holds NaN or infinite values")
    return v
