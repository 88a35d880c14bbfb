"""One object per Keras model: its logits view, and the functions compiled from it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust.classifier.checks import (
    check_rows_apart,
    check_view,
    checked_rows,
    in_chunks,
    other_batch,
)
from tfrobust.classifier.inputs import model_input_shape
from tfrobust.classifier.keras_internals import single_precision
from tfrobust.classifier.logits import views
from tfrobust.classifier.state import ModelState
from tfrobust.classifier.traced import TracedModel, call_model
from tfrobust.distribution import is_mirrored, run_sharded
from tfrobust.errors import InputTypeError

__all__ = ["Classifier", "values_of"]

_CLASSIFIERS: weakref.WeakKeyDictionary[keras.Model, Classifier] = weakref.WeakKeyDictionary()
_LOCK = threading.RLock()


class Classifier:
    """A Keras model as logits with compiled functions; obtained by `Classifier.of(model)`.

    Attributes:
        logits: a Keras model of the logits, sharing the model's weights.
        outputs: a Keras model of the model's own output, (batch, classes): with its softmax.
        classes: number of classes.
        input_shape: of one example; None for sizes that are not fixed.
    """

    @classmethod
    def of(cls, model: keras.Model, x: Any = None, *, check: bool = True) -> Classifier:
        """The classifier of a model, cached.

        It is the same object as long as the model computes the same function of its variables;
        their values may change. A change of anything else (an activation, a layer's settings,
        adapters, quantization) creates a new one. It does not keep the model alive, unless one of
        the model's layers refers to the model itself.

        Args:
            model: any Keras classifier.
            x: the inputs (batch, ...) that are to be evaluated, on which the logits are compared
                with the model (see `check`). Needed where the model declares no input shape.
            check: False for an x that only tells the shape.

        Raises:
            TypeError: not a Keras model.
            NotLogitsError: the model has no logits to give, or not for these inputs.
        """
        if not isinstance(model, keras.Model):
            raise InputTypeError(f"expected a keras.Model, got {type(model).__name__}")
        with _LOCK:
            classifier = _CLASSIFIERS.get(model)
            if classifier is None or classifier.state != ModelState(model):
                classifier = _CLASSIFIERS[model] = cls(model, x)
        if check and x is not None:
            classifier.check(model, x)
        return classifier

    def __init__(self, model: keras.Model, x: Any = None):
        found = views(model, x)
        self.logits, self.outputs, self.classes = found.logits, found.outputs, found.classes
        self._stripped, self._rebuilt = found.stripped, found.rebuilt
        shape = model_input_shape(model)
        self.input_shape = np.shape(x)[1:] if shape is None else shape
        self.state = ModelState(model)
        self._model = weakref.ref(model)
        self._functions: dict[Any, _Compiled] = {}
        self._lock = threading.RLock()
        compare = _comparison(self._model, self.logits)
        self._compare = _Compiled(compare, 0, self._lock, self._traced)
        self._rows_are_apart = False

    def check(self, model: keras.Model, x: Any) -> None:
        """Compare the logits with what the model itself returns, on up to 16 of the examples x.

        Compared are softmax(logits), where a softmax was left out, or else the logits: two forward
        passes over these examples in every call, whatever the number of examples. Once per object
        also: whether an example's logits depend on the other examples in its batch.

        Raises:
            NotLogitsError: they differ by more than rounding.
        """
        if self._rows_are_apart and not self._rebuilt:
            return  # the logits are computed by calling the model
        rows = checked_rows(x)
        outputs, logits = in_chunks(self._compare, rows)
        if not self._rows_are_apart:
            _, others = in_chunks(self._compare, other_batch(rows))
            check_rows_apart(model, logits, others)
            self._rows_are_apart = True
        check_view(model, logits, outputs, stripped=self._stripped)

    def compiled(
        self,
        build: Callable[..., Callable[..., Any]],
        *options: Hashable,
        batched_args: int | None = None,
    ) -> Callable[..., Any]:
        """The graph function `build(logits, *options)`, traced once for all batch sizes.

        The function is cached by `build` and the options. Under a `tf.distribute` strategy the rows
        are sharded over all devices of this worker.

        Args:
            build: a module-level function that takes the logits view and the options and returns a
                function of tensors (batch, ...).
            options: hashable; together with `build` the key of the function.
            batched_args: how many leading arguments have one row per example, as every result does;
                all arguments but scalars where None; 0 runs the function on one device.

        Raises:
            TypeError: `build` is a local function, a new object at every call.
        """
        return self._compiled(self.logits, build, options, batched_args)

    def compiled_outputs(
        self, *, batched_args: int | None = None, in_single_precision: bool = False
    ) -> Callable[..., Any]:
        """The model's own output, (batch, ...) to (batch, classes) float32, as a graph function.

        Args:
            batched_args: as in `compiled`.
            in_single_precision: layers that compute in half precision compute in float32 here.
        """
        build = _single_precision_values if in_single_precision else values_of
        return self._compiled(self.outputs, build, ("outputs",), batched_args)

    def _compiled(
        self,
        view: keras.Model,
        build: Callable[..., Callable[..., Any]],
        options: tuple[Hashable, ...],
        batched_args: int | None,
    ) -> Callable[..., Any]:
        key = build, options, batched_args
        with self._lock:
            if key not in self._functions:
                if isinstance(view, TracedModel):
                    view.viewed()  # a model that is gone cannot be compiled
                if "<" in getattr(build, "__qualname__", "<"):
                    raise InputTypeError(f"{build!r} is no function of a module")
                function = build(view, *options)
                self._functions[key] = _Compiled(function, batched_args, self._lock, self._traced)
            return self._functions[key]

    def _traced(self) -> None:
        """Record what tracing changed in users' layers, which must not compile everything again."""
        model = self._model()
        if model is not None:
            self.state = self.state.after_tracing(ModelState(model))


def _comparison(
    model: weakref.ref[keras.Model], logits: keras.Model
) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """What the model, as users call it, and the view of its logits return."""

    def run(rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        (outputs,) = keras.tree.flatten(call_model(model(), rows))
        return outputs, logits(rows, training=False)

    return run


def values_of(view: keras.Model, *_: Hashable) -> Callable[[tf.Tensor], tf.Tensor]:
    """Build: what a view returns in inference mode, (batch, classes) float32."""
    return lambda rows: tf.cast(view(rows, training=False), tf.float32)


def _single_precision_values(view: keras.Model, *_: Hashable) -> Callable[[tf.Tensor], tf.Tensor]:
    """Build: the same with all layers in float32."""
    evaluate = values_of(view)

    def run(rows: tf.Tensor) -> tf.Tensor:
        with single_precision():
            return evaluate(rows)

    return run


class _Compiled:
    """A graph function traced once for all batch sizes, and again for every other input shape.

    Inside the scope of a strategy with several devices the rows are sharded over them.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        batched_args: int | None,
        lock: threading.RLock,
        traced: Callable[[], None],
    ):
        self._plain = function
        # there is no control flow to convert, and tracing is a quarter faster without AutoGraph
        self._function = tf.function(function, autograph=False)
        self._batched_args = batched_args
        self._lock = lock
        self._traced = traced
        self._traces: dict[Any, Callable[..., Any]] = {}

    def __call__(self, *arrays: Any) -> Any:
        tensors = tuple(map(tf.convert_to_tensor, arrays))
        if is_mirrored() and self._batched_args != 0:
            return self._on_all_devices(tensors)
        key = tuple(
            tf.TensorSpec([None, *tensor.shape[1:]] if tensor.shape.rank else [], tensor.dtype)
            for tensor in tensors
        )
        trace = self._traces.get(key)
        if trace is None:
            with self._lock:
                if key not in self._traces:
                    self._traces[key] = self._function.get_concrete_function(*key)
                    self._traced()
                trace = self._traces[key]
        return trace(*tensors)

    def _on_all_devices(self, tensors: tuple[tf.Tensor, ...]) -> Any:
        strategy = tf.distribute.get_strategy()  # a key, so that its id is not reused
        with self._lock:
            is_new = strategy not in self._traces
            if is_new:
                self._traces[strategy] = run_sharded(self._plain, self._batched_args)
        result = self._traces[strategy](*tensors)
        if is_new:
            self._traced()
        return result
